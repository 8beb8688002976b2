"""The order of a stream: independent, infinite lanes that read whole shards, for any number of processes.

With S shards, L lanes and a global batch of B rows, all of this is a function of the seed alone:

    epoch e       reads the shards in the order permutation(seed, e, S); lane l takes every L-th of them, from the l-th on
    lane          its shards of epoch 0, then those of epoch 1, ...; lanes are independent and infinite
    block         a lane's samples are cut into blocks of `block`, and each is permuted by (seed, lane, its number)
    row i of B    is the next sample of lane i L // B, so that each lane deals a contiguous part of every batch

A rank reads the lanes of its rows. The position of a lane is six numbers, a `Mark`.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch

from diffcli import noise
from diffcli.config import UserError
from diffcli.data.stream.opening import BrokenShard, Patience, ShardBytes
from diffcli.data.stream.tar import TarSample, samples
from diffcli.noise import Domain

LANE_SEEDS = 0xFFFFFFFF  # an epoch that no run reaches, so that lanes have separate seeds
POLL = 0.5  # seconds between checks for a stop while waiting for a shard

T = TypeVar("T")


class Mark(NamedTuple):
    """The position of a lane. epoch, turn (of the lane's shards in the epoch), position (of the sample in the shard) and offset
    (the byte where it begins) are those of the first sample of block number `block`, of which `taken` samples have been dealt."""

    epoch: int = 0
    turn: int = 0
    position: int = 0
    offset: int = 0
    block: int = 0
    taken: int = 0


class LaneEntry(NamedTuple):
    """A sample and its place."""

    epoch: int
    turn: int
    shard: int
    position: int
    sample: TarSample


class Fault(NamedTuple):
    """A shard that could not be read to its end."""

    shard: int
    reason: str


class LaneBlock(NamedTuple):
    """Samples in the order of their use, and the shards that broke while it was filled."""

    begin: Mark
    entries: list[LaneEntry]
    faults: list[Fault]


@dataclass(frozen=True)
class Order:
    """The arithmetic of lanes; see the module. lanes <= shards, and lanes <= the size of batches."""

    seed: int
    shards: int
    lanes: int
    block: int

    def turns(self, lane: int, epoch: int) -> list[int]:
        """The numbers of the shards that a lane reads in an epoch, in order."""
        return noise.permutation(self.seed, epoch, self.shards)[lane :: self.lanes].tolist()

    def dealt(self, lane: int, block: int) -> list[int]:
        """The order in which the samples of a block are used."""
        seed = int(noise.derive(self.seed, Domain.ORDER, torch.tensor(lane), LANE_SEEDS))
        return noise.permutation(seed, block, self.block).tolist()

    def rows(self, lane: int, batch_size: int) -> range:
        """The rows of a global batch from a lane: those i with i * lanes // batch_size == lane."""
        return range(-(-lane * batch_size // self.lanes), -(-(lane + 1) * batch_size // self.lanes))

    def needed(self, rows: range, batch_size: int) -> range:
        """The lanes of some of these rows (at least one)."""
        return range(rows[0] * self.lanes // batch_size, rows[-1] * self.lanes // batch_size + 1)

    def owned(self, rows: range, batch_size: int) -> list[int]:
        """The lanes whose first row is among these: those of all ranks, one rank after the other, are all lanes."""
        return [lane for lane in self.needed(rows, batch_size) if self.rows(lane, batch_size)[0] in rows]


@dataclass(frozen=True)
class LaneSource:
    """Reads the shards of a lane. wanted: which members, by extension; dotted: whether keys have dots, see `tar.samples`."""

    order: Order
    urls: tuple[str, ...]
    patience: Patience
    wanted: Callable[[str], bool]
    dotted: bool = False

    def blocks(self, lane: int, mark: Mark) -> Iterator[LaneBlock]:
        """The lane from the beginning of the mark's block on, endlessly.

        Raises UserError if every shard has failed since the last sample.
        """
        number, entries, faults = mark.block, list[LaneEntry](), list[Fault]()
        failed: dict[int, str] = {}  # shards without a sample since the last sample
        giving = None  # the shard of the last sample, which counts as useful even if it breaks later
        for found in self.entries(lane, mark):
            if isinstance(found, Fault):
                faults.append(found)
                if found.shard != giving:
                    failed.setdefault(found.shard, found.reason)
                giving = None
                if len(failed) == self.order.shards:
                    raise self.all_broken(failed)
                continue
            failed.clear()
            giving = found.shard
            entries.append(found)
            if len(entries) == self.order.block:
                first = entries[0]
                begin = Mark(first.epoch, first.turn, first.position, first.sample.offset, number)
                yield LaneBlock(begin, [entries[i] for i in self.order.dealt(lane, number)], faults)
                number, entries, faults = number + 1, [], []

    def entries(self, lane: int, mark: Mark) -> Iterator[LaneEntry | Fault]:
        """The lane's samples one by one; a shard that breaks is a Fault after those that were read of it."""
        epoch, turn, position, offset, *_ = mark
        while True:
            turns = self.order.turns(lane, epoch)
            for now in range(turn, len(turns)):
                yield from self.shard(epoch, now, turns[now], position, offset)
                position = offset = 0
            epoch, turn = epoch + 1, 0

    def shard(self, epoch: int, turn: int, number: int, position: int, offset: int) -> Iterator[LaneEntry | Fault]:
        """The samples of one shard from a position on, which begins at byte `offset`."""
        shard = ShardBytes(self.urls[number], self.patience, offset)
        empty, images = True, self.wanted("png")
        try:
            for place, sample in enumerate(samples(shard, self.wanted, self.dotted), start=position):
                # else it is a read-me, a listing, or another file of webdataset's tools
                if sample.members or (images and sample.has_more):
                    empty = False
                    yield LaneEntry(epoch, turn, number, place, sample)
            if empty and not position:
                yield Fault(number, "it holds nothing that the task reads")
        except BrokenShard as error:
            yield Fault(number, str(error))
        finally:
            shard.close()

    def all_broken(self, failed: dict[int, str]) -> UserError:
        number, reason = next(iter(failed.items()))
        return UserError(
            f"data.shards: none of the {self.order.shards} shards can be read; {self.urls[number]}: {reason}",
            "check the address with a browser or curl, and that the files are tars of images",
        )


def ahead(items: Iterator[T], stopping: Callable[[], bool]) -> Iterator[T]:
    """The same items, each made by a thread while the one before it is in use; ends early once `stopping()`.

    Threads are daemons: one that waits for a silent server does not keep the process alive.
    """

    def make(box: "queue.SimpleQueue[tuple[T | None, BaseException | None]]") -> None:
        try:
            box.put((next(items), None))
        except BaseException as error:
            box.put((None, error))

    def start() -> "queue.SimpleQueue[tuple[T | None, BaseException | None]]":
        box: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
        threading.Thread(target=make, args=(box,), daemon=True).start()
        return box

    box = start()
    while not stopping():
        try:
            item, error = box.get(timeout=POLL)
        except queue.Empty:
            continue
        if isinstance(error, StopIteration):
            return
        if error is not None:
            raise error
        box = start()
        yield item  # type: ignore[misc]  # None only beside an error
