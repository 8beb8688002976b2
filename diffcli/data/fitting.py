"""Fills size and channels of images into a preset, from an index or the headers of a few files."""

from typing import TypeVar

from diffcli.config import UserError
from diffcli.data.dataset import DataConfig, TreeFiles
from diffcli.data.datasets import Folder
from diffcli.data.description import StoredSizes, spread, stored_sizes
from diffcli.data.personal import Personal
from diffcli.data.prepared import Shards
from diffcli.data.shards import PreparedSet, ShardFiles, open_shards
from diffcli.data.stream.stream_data import Stream, expanded, record_beside
from diffcli.fields import listed

Data = TypeVar("Data", bound=DataConfig)


def fitted(config: Data) -> Data:
    """The same data config with size and channels from the images, if the preset leaves them out.

    Raises UserError if the size is left out and the images differ in size, or if it is unknown.
    """
    if config.size is not None and "channels" in config.model_fields_set:
        return config
    sizes: StoredSizes | None
    channels: int | None
    try:
        match config:
            case Shards():
                sizes, channels = _of_set(config)
            case Stream() if config.size is None:  # no request to a server for channels alone
                record = record_beside(expanded(config.shards)[0], config.patience)
                sizes, channels = (None, None) if record is None else (_uniform(record), record.channels)
            case Folder() | Personal():
                sizes, channels = _of_files(config)
            case _:
                return config  # an array of images, of one size
    except UserError:
        if config.size is None:
            raise
        return config  # opening the data reports it
    update: dict[str, object] = {}
    if "channels" not in config.model_fields_set and channels is not None:
        update["channels"] = channels
    if config.size is None:
        if sizes is None or sizes.smallest != sizes.largest:
            differ = (
                "" if sizes is None else f": they are {listed(sizes.smallest)} to {listed(sizes.largest)} pixels (HxW)"
            )
            raise UserError(
                f"data.size is left out, but the images have no one size{differ}",
                "name one, in pixels: --set data.size=64; others are resized and cropped to it",
            )
        height, width = sizes.smallest
        update["size"] = height if height == width else (height, width)
    return config.model_copy(update=update)


def _of_set(config: Shards) -> tuple[StoredSizes | None, int]:
    root = config._source()
    prepared = open_shards(root, "data.root")
    if prepared.size or config.size is not None:
        return _uniform(prepared), prepared.channels
    return stored_sizes(ShardFiles(root, prepared, next(iter(prepared.splits)))), prepared.channels


def _uniform(prepared: PreparedSet) -> StoredSizes | None:
    return StoredSizes(smallest=prepared.size, largest=prepared.size) if prepared.size else None


def _of_files(config: Folder | Personal) -> tuple[StoredSizes | None, int | None]:
    """The channels of a few files of a folder; grey only if all of them are."""
    plain = {"size": 1, "in_memory": False, "buckets": (), "derived": (), "captions": None, "broken": "refuse"}
    origin = config.model_copy(update=plain).build("train").origin
    files = None if origin is None else origin.files
    if not isinstance(files, TreeFiles):
        return None, None
    return stored_sizes(files), 1 if all(files.is_grey(row) for row in spread(len(files))) else 3
