"""A stream of shards as data of a preset: remote sets, or sets too large to index, read in one pass for each epoch.

`opening` opens and retries, `tar` reads a tar, `lanes` has the order, `layout` the meaning of members, and `dealing` decodes
samples into batches.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
)
from torch import Tensor

from diffcli.config import UserError, keys_agree
from diffcli.data.buckets import Framing
from diffcli.data.dataset import DataConfig, no_split
from diffcli.data.images import ImageData
from diffcli.data.listing import Split
from diffcli.data.loader import MEMORY_LIMIT
from diffcli.data.sample_labels import EXTENSIONS, label_in
from diffcli.data.set_folder import DATASET
from diffcli.data.shards import PreparedSet
from diffcli.data.stream.dealing import StreamFeed
from diffcli.data.stream.lanes import Fault, LaneEntry, LaneSource, Order
from diffcli.data.stream.layout import Layout, fields_of
from diffcli.data.stream.opening import PIPE, BrokenShard, Patience, ShardBytes, is_remote
from diffcli.data.stream.tar import IMAGES, OTHERS, TarSample
from diffcli.fields import Batch, Specs

PEEKS = 3  # shards to try for the first samples
PEEKED = 4  # samples that determine the fields
LARGEST_RECORD = 64 << 20  # bytes of a dataset.json
HINT = "write shards: https://host/train-{000000..000331}.tar, a list of such, or paths"


class Stream(DataConfig):
    """Tar shards in the WebDataset layout, at any place, in the order of `lanes`.

    shards: http(s)://, s3:// and other URLs that fsspec knows, pipe:COMMAND, file: or paths, with braces: {000..331}, {a,b}; or a
    list of these. test_shards: those of split `test`. classes: names of the labels; None takes those of a dataset.json beside the
    shards, if there is one. shuffle: encoded samples held over all lanes; half of them are read while the other half is used
    in random order; 0 keeps the order of the shards. lanes: shards read at a time, at most one for each row of a batch; more
    mix better and serve more worker processes. retries, pause, timeout: see opening.Patience.
    """

    kind: Literal["stream"] = "stream"
    shards: str | tuple[str, ...] = Field(
        description="tar shards: URLs, pipe:COMMAND or paths, with braces {000..331}; or a list of these"
    )
    test_shards: str | tuple[str, ...] | None = Field(
        None, description="tar shards of the split test, written as shards are"
    )
    classes: tuple[str, ...] | None = Field(
        None, description="names of the labels, in order; null: those of a dataset.json beside the shards"
    )
    shuffle: NonNegativeInt = Field(
        2000, description="encoded samples held for shuffling, over all lanes; 0 keeps the order of the shards"
    )
    lanes: PositiveInt = Field(32, description="shards read at a time, at most one for each image of a batch")
    retries: NonNegativeInt = Field(5, description="number of retries of a shard after faults")
    pause: PositiveFloat = Field(0.5, description="seconds before the first retry, doubled for each further one")
    timeout: PositiveFloat = Field(60.0, description="seconds to wait for a silent server")

    @field_validator("shards", "test_shards")
    @classmethod
    def _named(cls, shards: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if shards is None:
            return None
        try:
            found = expanded(shards)
        except ValueError as error:
            raise ValueError(f"the braces of {shards!r} do not pair ({error}); {HINT}") from None
        if not found or not all(found):
            raise ValueError(f"it names no shard; {HINT}")
        return shards

    @keys_agree
    def _streams(self) -> Iterator[str]:
        if self.root is not None:
            yield f"root is '{self.root}', but a stream has shards; set data.shards instead of data.root"
        if self.in_memory:
            yield "in_memory is true, but a stream is never held; leave data.in_memory out"
        if self.buckets:
            yield "buckets need the sizes of all images; leave data.buckets out, or use kind shards"

    def absolute(self) -> Self:
        found = {name: getattr(self, name) for name in ("shards", "test_shards")}
        return self.model_copy(update={name: _absolute(shards) for name, shards in found.items() if shards is not None})

    @property
    def commands(self) -> list[str]:
        named = [*expanded(self.shards), *(expanded(self.test_shards) if self.test_shards else ())]
        return [url.removeprefix(PIPE) for url in named if url.startswith(PIPE)]

    def build(self, split: Split) -> ImageData:
        """For `train` a StreamData; for `test` the samples of test_shards, read at once and held in memory, still encoded.

        Of `train` only its first samples are read, or a dataset.json beside the shards, to determine its fields.
        """
        if split == "train":
            return StreamData(self, expanded(self.shards))
        if self.test_shards is None:
            raise no_split(split, ["train"], "data.kind 'stream' without data.test_shards")
        return self._held(StreamData(self, expanded(self.test_shards), split))

    def _held(self, data: "StreamData") -> ImageData:
        """Raises UserError if a shard is broken, because scores of a part are not those of the whole."""
        source, entries, size = data.source(data.layout.wanted), [], 0
        for number, url in enumerate(data.urls):
            for item in source.shard(0, 0, number, 0, 0):
                if isinstance(item, Fault):
                    raise UserError(f"data.test_shards: {url}: {item.reason}", "mend that shard, or leave it out")
                entries.append(item)
                size += sum(map(len, item.sample.members.values()))
                if size > MEMORY_LIMIT:
                    raise UserError(
                        f"data.test_shards: hold more than {MEMORY_LIMIT >> 30} GiB, up to {url}", "name fewer of them"
                    )
        return data.over(entries)

    @property
    def patience(self) -> Patience:
        return Patience(self.retries, self.pause, self.timeout)


class StreamData(ImageData):
    """Samples in the order of a stream: no number of images, no access by index, but a `feed` of batches.

    labels: those that may occur. count: the number of images, if a dataset.json has it.
    """

    def __init__(self, config: Stream, urls: tuple[str, ...], split: Split = "train") -> None:
        self.config, self.urls = config, urls
        record = record_beside(urls[0], config.patience)
        self.count = counted(record, split, urls) if record else None
        self.layout = self._layout(record, config._framing(split, no_sides))
        labels = torch.arange(len(self.layout.classes or ())) if self.layout.labelled else None
        super().__init__(config.shape, labels, self.layout.classes, self.over([]).columns)
        self.derived = config.derived

    def _layout(self, record: PreparedSet | None, framing: Framing) -> Layout:
        """The layout of the samples, from a dataset.json or the first samples."""
        config = self.config
        if record is not None:
            fields = {name: note for name, note in record.fields.items() if note.kind != "video"}
            classes = config.classes or record.classes
            return Layout(config.shape, framing, classes is not None, classes, fields, config.captions, config.derived)
        found = self._first()
        dotted = have_dots(found)
        found = self._first(dotted) if dotted else found
        fields = {name: note for sample in reversed(found) for name, note in fields_of(sample.members).items()}
        labelled = any(label_in(sample.members) is not None for sample in found)
        stored = any(extension in sample.members for sample in found for extension in EXTENSIONS)
        made = (config.captions, config.derived)
        layout = Layout(config.shape, framing, labelled, config.classes, fields, *made)
        return replace(layout, json_labels=labelled and not stored, dotted=dotted)

    def _first(self, dotted: bool = False) -> list[TarSample]:
        """The first samples, at least one. Raises UserError if no shard has any."""
        found = []
        try:
            for entry in islice(self.samples(anything, dotted), PEEKED):
                found.append(entry.sample)
        except UserError:  # of shards that break off behind these samples
            if not found:
                raise
        return found

    def __len__(self) -> int:
        raise UserError(
            f"data.kind 'stream' ({len(self.urls)} shards from {self.urls[0]} on) has no order that images could be counted in",
            "give a folder of images, .npz samples or a set that `diffcli prep-data` wrote; or set data.test_shards",
        )

    def pixels(self, indices: Tensor, draws: Tensor | None = None) -> Tensor:
        raise AssertionError("a stream has no images by index")

    def select(self, fields: Collection[str]) -> "StreamData":
        chosen = super().select(fields)
        assert isinstance(chosen, StreamData)
        chosen.layout = self.layout.select(fields)
        return chosen

    def knowing(self, reads: Specs) -> "StreamData":
        chosen = super().knowing(reads)
        assert isinstance(chosen, StreamData)
        chosen.layout = self.layout.knowing(reads)
        return chosen

    def shown(self, count: int) -> tuple[Batch, Tensor]:
        """The first samples that can be decoded, of the first shards that can be read."""
        good: list[LaneEntry] = []
        for entry in self.samples(self.layout.wanted, self.layout.dotted):
            with suppress(UserError):
                self.over([entry]).read(torch.zeros(1, dtype=torch.int64))
                good.append(entry)
            if len(good) == count:
                break
        rows = torch.arange(len(good))
        return self.over(good).read(rows), rows

    def feed(self, batch_size: int, seed: int, rank: int, world: int, marks: Tensor | None) -> StreamFeed:
        """This rank's share of batches, from the marks of a checkpoint on, int64 (lanes, 6); None: from the beginning.

        Raises UserError if the checkpoint has more lanes than a batch has rows, or than there are shards.
        """
        lanes = min(self.config.lanes, len(self.urls), batch_size) if marks is None else len(marks)
        if lanes > min(batch_size, len(self.urls)):
            raise UserError(
                f"the run reads its stream in {lanes} lanes, more than the {len(self.urls)} shards or the batch of {batch_size}",
                f"keep the shards of the run, and train.batch_size at {lanes} or above",
            )
        order = Order(seed, len(self.urls), lanes, max(1, self.config.shuffle // (2 * lanes)))
        return StreamFeed(self.source(self.layout.wanted, order), self.layout, marks, batch_size, rank, world)

    def source(self, wanted: Callable[[str], bool], order: Order | None = None) -> LaneSource:
        dotted = self.layout.dotted
        return LaneSource(order or Order(0, len(self.urls), 1, 1), self.urls, self.config.patience, wanted, dotted)

    def samples(self, wanted: Callable[[str], bool], dotted: bool = False) -> Iterator[LaneEntry]:
        """The encoded samples of the first shards. Raises UserError if none of them can be read."""
        source, failed = LaneSource(Order(0, len(self.urls), 1, 1), self.urls, self.config.patience, wanted, dotted), {}
        for number in range(min(PEEKS, len(self.urls))):
            for item in source.shard(0, 0, number, 0, 0):
                if isinstance(item, Fault):
                    failed[number] = item.reason
                else:
                    yield item
        if len(failed) == min(PEEKS, len(self.urls)):
            raise source.all_broken(failed)

    def over(self, entries: Sequence[LaneEntry]) -> ImageData:
        """These samples, by index."""
        names = [f"{self.urls[entry.shard]}: {entry.sample.key}" for entry in entries]
        return self.layout.over([entry.sample for entry in entries], names)


def expanded(shards: str | Sequence[str]) -> tuple[str, ...]:
    """The shards that braces stand for. Raises ValueError for unpaired braces."""
    from braceexpand import braceexpand

    texts = [shards] if isinstance(shards, str) else shards
    return tuple(url for text in texts for url in braceexpand(text))


def record_beside(url: str, patience: Patience) -> PreparedSet | None:
    """The dataset.json of prep-data beside a shard; None if there is none.

    Raises UserError if the server does not answer, because without it the names of the classes would be lost.
    """
    if url.startswith(PIPE):
        return None
    place = (url.rpartition("/")[0] + "/" if "/" in url else "") + DATASET
    record = ShardBytes(place, patience)
    try:
        return PreparedSet.model_validate_json(record.read(LARGEST_RECORD))
    except ValidationError:
        return None
    except BrokenShard as error:
        if error.final:
            return None
        hint = "run the same command again when the server answers, or raise data.retries and data.pause"
        raise UserError(f"data.shards: {place}: {error}", hint) from error
    finally:
        record.close()


def lists_shards(place: str) -> bool:
    """Whether a path or URL stands for shards to stream: a URL, or a list in braces of tars on this machine."""
    if is_remote(place):
        return True
    try:
        several = len(expanded(place)) > 1
    except ValueError:
        return False
    return several and not Path(place).expanduser().exists()


def counted(record: PreparedSet, split: Split, urls: Sequence[str]) -> int | None:
    """The number of images, if the shards are those of that split."""
    listed = record.splits.get(split)
    names = {url.rpartition("/")[2] for url in urls}
    return listed.count if listed and names == {shard.tar for shard in listed.shards} else None


def anything(extension: str) -> bool:
    """Whether a member of the first samples may be a field."""
    return extension.rpartition(".")[2] in IMAGES | OTHERS


def have_dots(found: Sequence[TarSample]) -> bool:
    """Whether keys go on behind their first dot: no sample has an image of its own, and some have one that is called further."""
    own = any(extension in IMAGES for sample in found for extension in sample.members)
    return not own and any(extension.rpartition(".")[2] in IMAGES for sample in found for extension in sample.members)


def no_sides() -> Tensor:
    raise AssertionError("a stream has no buckets")


def _absolute(shards: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if isinstance(shards, tuple):
        return tuple(str(_absolute(url)) for url in shards)
    return shards if is_remote(shards) else str(Path(shards).expanduser().absolute())
