"""The source of a run's batches: data by index, whose order follows from the step, or a stream, which records its position.

The log and the record of a checkpoint hold values of a feed from all ranks; one call gathers both.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch

from diffcli.config import UserError
from diffcli.data.images import ImageData
from diffcli.data.loader import batches
from diffcli.data.order import epoch_size
from diffcli.data.stream.dealing import Mark
from diffcli.data.stream.stream_data import StreamData
from diffcli.engine.distributed import Group
from diffcli.fields import Batch
from diffcli.preset import Preset


class Feed(ABC):
    """The batches of one rank. kept: its values for the record of a checkpoint, as of the last `gather`."""

    def __init__(self, preset: Preset, group: Group) -> None:
        self.preset, self.cfg, self.group = preset, preset.train, group
        self.kept: dict[str, Any] = {}

    @abstractmethod
    def batches(self, first: int) -> Iterator[tuple[int, Batch]]:
        """Steps first + 1 to the last, as loader.batches gives them."""

    @abstractmethod
    def gather(self) -> None:
        """Gathers `kept` and `numbers` for the last batch from all ranks; every rank calls it."""

    @abstractmethod
    def numbers(self, step: int) -> dict[str, float]:
        """The values for a line of the log about the data used so far."""

    def notes(self) -> list[str]:
        """Messages for the user since the last call."""
        return []


class IndexedFeed(Feed):
    """Data with a length."""

    def __init__(self, preset: Preset, group: Group, data: ImageData) -> None:
        super().__init__(preset, group)
        self.data, self.epoch = data, epoch_size(data, self.cfg.batch_size)

    def batches(self, first: int) -> Iterator[tuple[int, Batch]]:
        return batches(
            self.data,
            batch_size=self.cfg.batch_size,
            seed=self.preset.seed,
            first=first,
            last=self.cfg.steps,
            rank=self.group.rank,
            world=self.group.world,
            flip=self.preset.data.flip,
            device=self.group.device,
            workers=self.cfg.workers if self.data.in_files else 0,
        )

    def gather(self) -> None:
        """Does nothing: the step determines the position."""

    def numbers(self, step: int) -> dict[str, float]:
        return {"epoch": round(step * self.cfg.batch_size / self.epoch, 4)}


class StreamedFeed(Feed):
    """Endless data: an epoch is over when every shard has been read once, so progress is counted in shards.

    record: the key `feed` of a checkpoint: the number of shards, marks (the place of each lane), and how many samples and shards
    were broken so far.
    """

    def __init__(self, preset: Preset, group: Group, data: StreamData, record: dict[str, Any] | None) -> None:
        super().__init__(preset, group)
        if record is not None and record["shards"] != len(data.urls):
            raise UserError(
                f"data.shards: names {len(data.urls)} shards, the run was trained on {record['shards']}",
                "name those of the run, in their order; only where they lie may change",
            )
        marks = None if record is None else torch.tensor(record["marks"])
        self.feed = data.feed(self.cfg.batch_size, preset.seed, group.rank, group.world, marks)
        if group.leads:
            self.feed.notes += crowding(len(self.feed.marks), preset, group.world, len(data.urls))
        self.before = torch.tensor([0, 0] if record is None else record["broken"])
        self.marks, self.broken = self.feed.marks.clone(), self.before

    def batches(self, first: int) -> Iterator[tuple[int, Batch]]:
        flip, device = self.preset.data.flip, self.group.device
        return self.feed.batches(first, self.cfg.steps, flip=flip, device=device, workers=self.cfg.workers)

    def gather(self) -> None:
        self.marks = self.group.gather_rows(self.feed.marks[self.feed.owned].to(self.group.device)).cpu()
        counts = self.group.gather_rows(self.feed.counts[None].to(self.group.device)).cpu()
        self.broken = self.before + counts.sum(0)
        shards = self.feed.source.order.shards
        self.kept = {"feed": {"shards": shards, "marks": self.marks.tolist(), "broken": self.broken.tolist()}}

    def numbers(self, step: int) -> dict[str, float]:
        order = self.feed.source.order
        marks = [Mark(*mark) for mark in self.marks.tolist()]
        read = [mark.epoch + mark.turn / len(order.turns(lane, mark.epoch)) for lane, mark in enumerate(marks)]
        samples, shards = self.broken.tolist()
        return {"epoch": round(sum(read) / len(read), 4), "broken_samples": samples, "broken_shards": shards}

    def notes(self) -> list[str]:
        found, self.feed.notes = self.feed.notes, []
        return found


def crowding(lanes: int, preset: Preset, world: int, shards: int) -> list[str]:
    """For a stream with fewer lanes than `world` processes could use: the consequence, and what to type if anything helps."""
    workers, batch = max(1, preset.train.workers), preset.train.batch_size
    wanted = min(world * workers, shards, batch)
    if lanes // world >= workers or lanes >= max(wanted, world):
        return []
    if lanes < world:
        cost = f"up to {-(-world // lanes)} of {world} processes read the same shard"
    else:
        cost = f"each of {world} processes decodes with {max(1, lanes // world)} of its train.workers {workers}"
    more = (
        f": begin the run with --set data.lanes={wanted}"
        if lanes < wanted
        else f" ({shards} shards, batches of {batch})"
    )
    return [f"the stream has {lanes} lanes, so {cost}{more}"]


def open_feed(preset: Preset, group: Group, data: ImageData, record: dict[str, Any] | None) -> Feed:
    """The feed of a run; record: `kept` of the feed before, from a checkpoint."""
    if isinstance(data, StreamData):
        return StreamedFeed(preset, group, data, record)
    return IndexedFeed(preset, group, data)
