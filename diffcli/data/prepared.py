"""A prepared set as data of a preset: what `diffcli prep-data` wrote, read by random access."""

from typing import Literal, assert_never

from diffcli.data.columns import Pictures, Texts, Vectors
from diffcli.data.dataset import DataConfig, no_split
from diffcli.data.images import Column, FileImages, ImageData
from diffcli.data.listing import Split
from diffcli.data.loader import held
from diffcli.data.shards import FieldNote, ShardFiles, open_shards


class Shards(DataConfig):
    """A set that `diffcli prep-data` wrote, read by random access. verify: check the digest of every shard first."""

    kind: Literal["shards"] = "shards"
    verify: bool = False

    def build(self, split: Split) -> ImageData:
        source = self._source()
        prepared = open_shards(source, "data.root")
        if split not in prepared.splits:
            raise no_split(split, list(prepared.splits), f"data.root '{source}'")
        files = ShardFiles(source, prepared, split)
        if self.verify:
            files.verify()
        pairs = {name: self._column(files.field(name), note) for name, note in prepared.fields.items()}
        columns = {name: column for name, column in pairs.items() if column}
        images = FileImages(files, self.shape, files.labels, prepared.classes, columns)
        return self._captioned(held(images, self.in_memory))

    def _column(self, files: ShardFiles, note: FieldNote) -> Column | None:
        match note.kind:
            case "text":
                return Texts(files)
            case "vector":
                return Vectors(files)
            case "picture":
                return Pictures(files, self.shape._replace(channels=1))
            case "video":
                return None  # its middle frame is the image; nothing trains on the clip itself yet
            case never:
                assert_never(never)
