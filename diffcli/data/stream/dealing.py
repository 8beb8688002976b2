"""Batches of a stream: worker processes read and decode whole lanes, and their rows are joined in order.

A sample that cannot be decoded is counted and replaced by the next good one of its block, so that no other row of any rank
moves. A block without a good sample is skipped. A checkpoint keeps one `Mark` for each lane, of the last batch that was used;
samples that workers have read ahead are read again. This is exact as long as the shards can be read. A shard that breaks only
sometimes (beyond its retries) is missing from that run, and the order of the lane shifts.
"""

import multiprocessing
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from diffcli.config import UserError
from diffcli.data.loader import from_workers, trained_batch
from diffcli.data.order import StepRows, epoch_draws, share
from diffcli.data.stream.lanes import LaneBlock, LaneSource, Mark, ahead
from diffcli.data.stream.layout import Layout
from diffcli.data.stream.tar import REMARKS
from diffcli.fields import Batch, joined

MARKS = len(Mark._fields)
ALL_BROKEN = 5000  # samples in a row that cannot be decoded, after which a lane gives up
SHARD_BITS = 32  # an index is the shard's number and, below it, the sample's position in the shard


class Part(NamedTuple):
    """The rows of one process for one step, and reports about them."""

    fields: Batch
    indices: Tensor  # int64 (b,)
    draws: Tensor  # int64 (b,)
    marks: Tensor  # int64 (lanes, 6): after this step
    broken: tuple[str, ...]  # reasons why samples of these rows could not be decoded
    faults: tuple[str, ...]  # reasons why shards could not be read further, from the first rank that reads them
    remarks: frozenset[str]  # on the samples, keys of tar.REMARKS


class OpenBlock:
    """A block in use; decodes its samples when they are needed."""

    def __init__(self, block: LaneBlock, layout: Layout, urls: tuple[str, ...], seed: int) -> None:
        self.entries = block.entries
        names = [f"{urls[entry.shard]}: {entry.sample.key}" for entry in block.entries]
        self.data = layout.over([entry.sample for entry in block.entries], names)
        self.indices = torch.tensor([entry.shard << SHARD_BITS | entry.position for entry in block.entries])
        epochs = torch.tensor([entry.epoch for entry in block.entries])
        self.draws = torch.zeros_like(self.indices)
        for epoch in epochs.unique().tolist():
            here = epochs == epoch
            self.draws[here] = epoch_draws(seed, epoch, self.indices[here])
        self.broken: dict[int, str] = {}
        self.hint = ""  # of the first that was broken
        self._first: tuple[int, Batch] | None = None

    def has_any(self) -> bool:
        """Whether at least one of its samples can be decoded; every rank that reads the lane finds the same."""
        for row in range(len(self.entries)):
            fields = self.decoded(row)
            if fields is not None:
                self._first = row, fields
                return True
        return False

    def dealt(self, row: int) -> tuple[int, Batch]:
        """A sample's fields (1, ...) and its row; those of the next good one if it is broken."""
        for shift in range(len(self.entries)):
            at = (row + shift) % len(self.entries)
            fields = self.decoded(at)
            if fields is not None:
                return at, fields
        raise AssertionError("a block without a good sample is never dealt")

    def decoded(self, row: int) -> Batch | None:
        if self._first is not None and self._first[0] == row:
            return self._first[1]
        if row in self.broken:
            return None
        try:
            return self.data.read(torch.tensor([row]), self.draws[row : row + 1])
        except UserError as error:
            self.broken[row] = error.problem
            self.hint = self.hint or error.hint
            return None


class LaneDealer:
    """Reads one lane: `count` samples for every step, of which the rows of `mine` are decoded here."""

    def __init__(self, lane: int, mark: Mark, count: int, mine: range, owned: bool, reader: "Deals") -> None:
        self.lane, self.mark, self.count, self.mine, self.owned, self.reader = lane, mark, count, mine, owned, reader
        self.blocks = ahead(reader.source.blocks(lane, mark), reader.stopping)
        self.told_until = mark.block + bool(mark.taken)  # faults in a resumed block have been reported before
        self.open: OpenBlock | None = None
        self.broken: list[str] = []
        self.faults: list[str] = []
        self.remarks = frozenset[str]()

    def step(self) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        """Fields, index and draw of each row that this process deals to the next step."""
        for number in range(self.count):
            while self.open is None or self.mark.taken == len(self.open.entries):
                self.open = self.next_block()
            row = self.mark.taken
            self.mark = self.mark._replace(taken=row + 1)
            if number in self.mine:
                at, fields = self.open.dealt(row)
                if row in self.open.broken:
                    self.broken.append(self.open.broken[row])
                yield fields, self.open.indices[at : at + 1], self.open.draws[at : at + 1]

    def next_block(self) -> OpenBlock:
        """The next block with a good sample. Raises UserError after thousands of samples without one."""
        hopeless = 0
        for block in self.blocks:
            reported = self.owned and block.begin.block >= self.told_until
            opened = OpenBlock(block, self.reader.layout, self.reader.source.urls, self.reader.source.order.seed)
            self.remarks |= {remark for entry in block.entries for remark in entry.sample.remarks}
            if reported:
                self.faults += [f"{self.reader.source.urls[f.shard]}: {f.reason}" for f in block.faults]
            taken = self.mark.taken if self.open is None and block.begin.block == self.mark.block else 0
            self.mark = block.begin._replace(taken=taken)
            if opened.has_any():
                return opened
            self.broken += list(opened.broken.values()) if reported else []
            hopeless += len(block.entries)
            if hopeless >= ALL_BROKEN:
                raise UserError(
                    f"data.shards: none of {hopeless} samples in a row can be used; {next(iter(opened.broken.values()))}",
                    f"check what the shards hold, and that the fields the task reads are among it; {opened.hint}",
                )
        raise Stopped

    def take_notes(self) -> tuple[list[str], list[str]]:
        notes = self.broken, self.faults
        self.broken, self.faults = [], []
        return notes


class Stopped(Exception):
    """The training has ended while a worker waited for a shard."""


class Deals(IterableDataset):
    """The parts of every step; in worker processes, each worker's, which takes whole lanes. An error travels as a value."""

    def __init__(self, source: LaneSource, layout: Layout, rows: range, batch_size: int, steps: int) -> None:
        self.source, self.layout, self.rows, self.batch_size, self.steps = source, layout, rows, batch_size, steps
        self.lanes = source.order.needed(rows, batch_size)
        self.marks = torch.zeros(source.order.lanes, MARKS, dtype=torch.int64)
        self.stop: Any = multiprocessing.get_context().Event()

    def stopping(self) -> bool:
        return bool(self.stop.is_set())

    def __iter__(self) -> Iterator[Part | UserError]:
        info = get_worker_info()
        number, workers = (info.id, info.num_workers) if info else (0, 1)
        mine = self.lanes[number * len(self.lanes) // workers : (number + 1) * len(self.lanes) // workers]
        dealers = [self.dealer(lane) for lane in mine]
        try:
            for _ in range(self.steps):
                yield part_of(dealers)
        except UserError as error:
            yield error
        except Stopped:
            return

    def dealer(self, lane: int) -> LaneDealer:
        rows = self.source.order.rows(lane, self.batch_size)
        mine = range(max(rows.start, self.rows.start) - rows.start, min(rows.stop, self.rows.stop) - rows.start)
        mark = Mark(*self.marks[lane].tolist())
        return LaneDealer(lane, mark, len(rows), mine, rows[0] in self.rows, self)


class StreamFeed:
    """The batches of one rank, and the state to save. marks: int64 (lanes, 6), of all lanes, to begin from.

    counts: int64 (2,), broken samples and shards since this feed began, on this rank. notes: sentences for the user; the caller
    that shows them removes them.
    """

    def __init__(
        self, source: LaneSource, layout: Layout, marks: Tensor | None, batch_size: int, rank: int, world: int
    ) -> None:
        self.source, self.layout, self.batch_size = source, layout, batch_size
        self.rows = range(*share(batch_size, rank, world))
        self.marks = torch.zeros(source.order.lanes, MARKS, dtype=torch.int64) if marks is None else marks.clone()
        self.counts = torch.zeros(2, dtype=torch.int64)
        self.notes: list[str] = []
        self._told: set[str] = set()
        self.owned = source.order.owned(self.rows, batch_size)

    def batches(
        self, first: int, last: int, *, flip: bool, device: torch.device, workers: int
    ) -> Iterator[tuple[int, Batch]]:
        """As loader.batches: (step, batch) for step = first + 1 .. last; index is shard number * 2^32 + position in it."""
        seed, specs = self.source.order.seed, self.layout.specs
        deals = Deals(self.source, self.layout, self.rows, self.batch_size, last - first)
        deals.marks = self.marks
        workers = min(workers, len(deals.lanes))
        try:
            parts = read_parts(deals, workers, device)
            for step in range(first, last):
                fields, indices, draws = self.joined([next(parts) for _ in range(max(1, workers))], deals)
                positions = torch.arange(self.rows.start, self.rows.stop) + step * self.batch_size
                plan = StepRows(indices, positions, draws)
                yield step + 1, trained_batch(fields, specs, plan, seed, flip, device)
        finally:
            deals.stop.set()

    def joined(self, parts: list[Part | UserError], deals: Deals) -> tuple[Batch, Tensor, Tensor]:
        """The rows of a step; updates the marks of its lanes."""
        whole = []
        for part in parts:
            if isinstance(part, UserError):
                raise part
            whole.append(part)
        self.marks[deals.lanes.start : deals.lanes.stop] = torch.cat([part.marks for part in whole])
        for part in whole:
            self.tell(part)
        return (
            joined([part.fields for part in whole]),
            torch.cat([part.indices for part in whole]),
            torch.cat([part.draws for part in whole]),
        )

    def tell(self, part: Part) -> None:
        self.counts += torch.tensor([len(part.broken), len(part.faults)])
        for reason in part.faults:
            self.say_once(f"broken shard: {reason}; going on with the next", reason)
        if part.broken:
            self.say_once(f"sample left out: {part.broken[0]} (the log counts further ones)", "sample")
        for remark in sorted(part.remarks):
            self.say_once(REMARKS[remark], remark)

    def say_once(self, note: str, topic: str) -> None:
        if topic not in self._told:
            self._told.add(topic)
            self.notes.append(note)


def read_parts(deals: Deals, workers: int, device: torch.device) -> Iterator[Part | UserError]:
    """Parts in the order of steps and, in a step, of workers."""
    if not workers:
        yield from deals
        return
    yield from from_workers(deals, workers, device)


def part_of(dealers: list[LaneDealer]) -> Part:
    """The next step of some lanes."""
    rows = [row for dealer in dealers for row in dealer.step()]
    notes = [dealer.take_notes() for dealer in dealers]
    return Part(
        joined([fields for fields, _, _ in rows]),
        torch.cat([index for _, index, _ in rows]),
        torch.cat([draw for _, _, draw in rows]),
        torch.tensor([dealer.mark for dealer in dealers]),
        tuple(reason for broken, _ in notes for reason in broken),
        tuple(reason for _, faults in notes for reason in faults),
        frozenset().union(*(dealer.remarks for dealer in dealers)),
    )
