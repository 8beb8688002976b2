"""Measurements that a task makes on its data before the first step, on all processes together."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any, Protocol

import torch
from torch import Tensor

from diffcli.data.images import ImageData
from diffcli.data.order import epoch_size
from diffcli.data.stream.stream_data import StreamData
from diffcli.engine.distributed import Group
from diffcli.engine.run.feed import open_feed
from diffcli.fields import Batch
from diffcli.preset import Preset
from diffcli.tasks.task import Task

OF_A_STREAM = 50_000  # samples to measure of a stream of unknown length


@dataclass(frozen=True)
class GroupRanks:
    """The processes of a group, for a task. counts: rows of each, where that is known before."""

    group: Group
    counts: Sequence[int] | None = None

    def gather(self, rows: Tensor) -> Tensor:
        return self.group.gather_rows(rows, self.counts)

    def sum(self, values: Tensor) -> Tensor:
        return self.group.sum(values)


class ShowDone(Protocol):
    """Shows progress."""

    def __call__(self, what: str, done: int, total: int | None) -> None: ...


Counting = Callable[[], AbstractContextManager[ShowDone]]


@torch.no_grad()
def measure(preset: Preset, group: Group, data: ImageData, task: Task, counting: Counting | None = None) -> None:
    """Gives a new task as much of its training data as it needs, to each process its part of every batch.

    counting: shows the progress in images.
    """
    if task.measures == 0:
        return
    batches = shown(preset, group, data, task.measures)
    with (counting or unseen)() as show:
        total = pass_of(preset, data, task.measures) * preset.train.batch_size
        task.measure(_counted(batches, lambda done: show(task.measured, done, total), group.world), GroupRanks(group))


@contextmanager
def unseen() -> Iterator[ShowDone]:
    """Shows nothing."""
    yield lambda what, done, total: None


def _counted(batches: Iterator[Batch], show: Callable[[int], None], world: int) -> Iterator[Batch]:
    done = 0
    show(done)
    for batch in batches:
        yield batch
        done += len(batch["position"]) * world
        show(done)


def pass_of(preset: Preset, data: ImageData, wanted: int | None) -> int:
    """The number of batches of training with at least `wanted` samples; None: all of them."""
    cfg = preset.train
    whole = (data.count or OF_A_STREAM) if isinstance(data, StreamData) else epoch_size(data, cfg.batch_size)
    return ceil(min(wanted or whole, whole) / cfg.batch_size)


def shown(preset: Preset, group: Group, data: ImageData, wanted: int | None) -> Iterator[Batch]:
    """Micro-batches of training as it begins, not mirrored: `wanted` samples at least, one pass and a batch at most."""
    cfg, steps = preset.train, pass_of(preset, data, wanted)
    train, source = cfg.model_copy(update={"steps": steps}), preset.data.model_copy(update={"flip": False})
    feed = open_feed(preset.model_copy(update={"train": train, "data": source}), group, data, None)
    for _, batch in feed.batches(0):
        yield from split(batch, cfg.accumulate)


def split(batch: Batch, parts: int) -> list[dict[str, Any]]:
    """A batch as `parts` micro-batches of nearly equal size, none empty."""
    if parts == 1:
        return [dict(batch)]
    rows = [part.tolist() for part in torch.arange(len(batch["position"])).tensor_split(parts)]
    return [{name: value[part[0] : part[-1] + 1] for name, value in batch.items()} for part in rows if part]
