"""Batches as a pure function of the step: training state has no loader, no cursor and no random state to save.

A run is one endless stream of samples. Position p = (step - 1) * batch_size + i lies in epoch p // N and reads image
permutation(seed, epoch, N)[p % N]; everything random about it derives from (seed, p) or (seed, epoch, index). So resuming is
exact, on any number of processes, a batch may straddle two epochs, and a set may be smaller than a batch. Where images have
buckets, an epoch is whole batches of one bucket each instead.
"""

import atexit
import multiprocessing
import os
import signal
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffcli import noise
from diffcli.config import UserError
from diffcli.data.buckets import Framing
from diffcli.data.images import Fields, FileImages, ImageData, MemoryImages
from diffcli.noise import Domain

Batch = dict[str, Any]  # tensors (b, ...) and lists of b strings, by field name

MEMORY_LIMIT = 2 << 30  # bytes of decoded pixels up to which a set is held in memory unless the preset says otherwise
LOAD_CHUNK = 256  # images that a worker decodes before it hands them over
WORTH_WORKERS = 4096  # images; fewer are decoded before the first worker process would have started


class Plan(NamedTuple):
    """What one rank reads in one step; all (b,), b its share of the batch."""

    indices: Tensor  # int64: which image
    positions: Tensor  # int64: place in the endless stream
    draws: (
        Tensor | None
    )  # int64: what is random about each sample in its epoch; bit 0 mirrors it where that is asked for


class Stream:
    """The endless order of a data set of n images; remembers the permutation of the last epoch it was asked for."""

    def __init__(self, seed: int, n: int) -> None:
        self.seed, self.n = seed, n
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def order(self, epoch: int) -> Tensor:
        """int64 (n,): the permutation of an epoch."""
        if epoch != self._epoch:
            self._epoch, self._order = epoch, noise.permutation(self.seed, epoch, self.n)
        return self._order

    def plan(self, first: int, last: int) -> Plan:
        """Positions first <= p < last."""
        indices, draws = (
            [torch.empty(0, dtype=torch.int64)],
            [torch.empty(0, dtype=torch.int64)],
        )  # a share may be empty
        for epoch in range(first // self.n, -(-last // self.n)):
            start = epoch * self.n
            index = self.order(epoch)[max(first - start, 0) : last - start]
            indices.append(index)
            draws.append(drawn(self.seed, epoch, index))
        return Plan(torch.cat(indices), torch.arange(first, last), torch.cat(draws))


class BucketStream:
    """The endless order of a set in buckets, in batches of one bucket each.

    In an epoch the images of each bucket, in the order of the epoch's permutation, are cut into whole batches, and the batches
    of all buckets shuffled; the up to batch_size - 1 images that are left of a bucket sit this epoch out, others the next one.
    Raises UserError where images would never be seen, because their bucket has less than a batch of them.
    """

    def __init__(self, seed: int, framing: Framing, batch_size: int) -> None:
        assert framing.bucket is not None
        self.seed, self.bucket, self.batch_size = seed, framing.bucket, batch_size
        self.counts: list[int] = self.bucket.bincount(minlength=len(framing.buckets)).tolist()
        for (height, width), count in zip(framing.buckets, self.counts, strict=True):
            if 0 < count < batch_size:
                raise UserError(
                    f"data.buckets: {count} images are nearest to {height}x{width}, less than a batch of {batch_size}",
                    f"take [{height}, {width}] out, so that they go to the next bucket, or lower train.batch_size",
                )
        self.batches = sum(count // batch_size for count in self.counts)  # in an epoch
        self._epoch, self._order = -1, torch.empty(0, batch_size, dtype=torch.int64)

    def order(self, epoch: int) -> Tensor:
        """int64 (batches, batch_size): the images of each batch of an epoch."""
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        return self._order

    def _shuffled(self, epoch: int) -> Tensor:
        images = noise.permutation(self.seed, epoch, len(self.bucket))
        groups = images[self.bucket[images].argsort(stable=True)].split(self.counts)
        whole = torch.cat([group[: len(group) // self.batch_size * self.batch_size] for group in groups])
        counters = torch.arange(self.batches) + len(self.bucket)  # those that the images' permutation leaves
        shuffled = noise.derive(self.seed, Domain.ORDER, counters, epoch).argsort(stable=True)
        return whole.view(-1, self.batch_size)[shuffled]

    def plan(self, first: int, last: int) -> Plan:
        """Positions first <= p < last, all within one batch."""
        step = first // self.batch_size
        epoch, number = divmod(step, self.batches)
        start = step * self.batch_size
        index = self.order(epoch)[number][first - start : last - start]
        return Plan(index, torch.arange(first, last), drawn(self.seed, epoch, index))


def epoch_size(data: ImageData, batch_size: int) -> int:
    """Samples that an epoch deals: all of them, or the whole batches that the buckets give."""
    framing = data.framing
    return BucketStream(0, framing, batch_size).batches * batch_size if framing.buckets else len(data)


def drawn(seed: int, epoch: int, index: Tensor) -> Tensor:
    """What is random about images in an epoch, int64 (B,): it depends on (seed, epoch, index) alone."""
    return noise.derive(seed, Domain.AUGMENT, index, epoch)


def share(batch_size: int, rank: int, world: int) -> tuple[int, int]:
    """The contiguous part [first, last) of a global batch that a rank takes."""
    return rank * batch_size // world, (rank + 1) * batch_size // world


def batches(
    data: ImageData,
    *,
    batch_size: int,
    seed: int,
    first: int,
    last: int,
    rank: int = 0,
    world: int = 1,
    flip: bool,
    device: torch.device,
    workers: int = 0,
) -> Iterator[tuple[int, Batch]]:
    """Yields (step, batch) for step = first + 1 .. last, with this rank's share of each global batch of batch_size.

    On `device`: image float32 (b, C, H, W) in [-1, 1], of the size of one bucket where there are any, and the other fields of
    the data. On the CPU, so that a draw made there never waits for a GPU: index (b,), position (b,), and stream (b,), the seed
    of each sample's own randomness.
    workers: processes that decode files; sets in memory need none. Raises UserError where an image cannot be read.
    """
    stream = BucketStream(seed, data.framing, batch_size) if data.framing.buckets else Stream(seed, len(data))
    start, stop = share(batch_size, rank, world)

    def plans() -> Iterator[Plan]:
        for step in range(first, last):
            yield stream.plan(step * batch_size + start, step * batch_size + stop)

    for step, (plan, fields) in enumerate(_read_ahead(data, plans(), device, workers), start=first + 1):
        batch = on_device(fields, device)
        if flip:
            mirror(batch, plan)
        batch["index"], batch["position"] = plan.indices, plan.positions
        batch["stream"] = noise.derive(seed, Domain.TRAIN, plan.positions)
        yield step, batch


def mirror(batch: Batch, plan: Plan) -> None:
    """Mirrors half of the samples left to right: every field that is a picture, the image and what lies over it alike."""
    assert plan.draws is not None
    coin = (plan.draws & 1).bool()[:, None, None, None]
    for name, value in batch.items():
        if isinstance(value, Tensor) and value.ndim == 4:
            batch[name] = torch.where(coin.to(value.device, non_blocking=True), value.flip(-1), value)


def evaluation_batches(
    data: ImageData, rows: Tensor, batch_size: int, device: torch.device, workers: int = 0
) -> Iterator[Batch]:
    """The images of these rows, int64 (n,), in their order, nothing drawn: the fields of the data, and index."""
    plans = (Plan(index, index, None) for index in rows.split(batch_size) if len(index))
    for plan, fields in _read_ahead(data, plans, device, workers):
        yield on_device(fields, device) | {"index": plan.indices}


def held(data: FileImages, in_memory: bool | None) -> ImageData:
    """`data` decoded into memory where `in_memory` says so, or says nothing and it takes at most 2 GiB; if cropped one way.

    Decoded once, by as many processes as this rank has cores: small images spend their time in Python's lock, not in Pillow.
    """
    if data.framing.drawn or not (data.bytes_in_memory <= MEMORY_LIMIT if in_memory is None else in_memory):
        return data
    images = torch.empty(len(data), *data.shape, dtype=torch.uint8)
    plans = (Plan(chunk, chunk, None) for chunk in torch.arange(len(data)).split(LOAD_CHUNK))
    workers = _decoders() if len(data) >= WORTH_WORKERS else 0
    for plan, fields in _read_ahead(data.select({"image"}), plans, images.device, workers):
        images[plan.indices] = cast(Tensor, fields["image"])
    return MemoryImages(images, data.labels, data.classes, data.columns)


def on_device(fields: Fields, device: torch.device) -> Batch:
    """Fields of ImageData.read on a device, where uint8 pixels become float32 in [-1, 1]: bytes travel, not floats."""
    return {name: _moved(value, device) if isinstance(value, Tensor) else value for name, value in fields.items()}


def _moved(value: Tensor, device: torch.device) -> Tensor:
    moved = value.to(device, non_blocking=True)
    return to_float(moved) if moved.dtype == torch.uint8 else moved


def to_float(image: Tensor) -> Tensor:
    """uint8 0..255 -> float32 -1..1; `round((x + 1) * 127.5)` is its exact inverse."""
    return image.float().div_(127.5).sub_(1)


class _Reader(Dataset):
    """Reads a batch of (index, draw) pairs. An error travels as a value: a DataLoader would rebuild it wrongly from its text."""

    def __init__(self, data: ImageData) -> None:
        self.data = data

    def __getitem__(self, rows: tuple[list[int], list[int] | None]) -> Fields | UserError:
        index, draws = rows
        try:
            return self.data.read(torch.tensor(index), None if draws is None else torch.tensor(draws))
        except UserError as error:
            return error


def _read_ahead(
    data: ImageData, plans: Iterator[Plan], device: torch.device, workers: int
) -> Iterator[tuple[Plan, Fields]]:
    """Each plan with its fields, in order, read by `workers` processes where there are any."""
    pin = device.type == "cuda"
    if not workers:
        for plan in plans:
            fields = data.read(plan.indices, plan.draws)
            yield plan, {name: _pinned(value) for name, value in fields.items()} if pin else fields
        return
    pending: deque[Plan] = deque()

    def rows() -> Iterator[tuple[list[int], list[int] | None]]:
        for plan in plans:
            pending.append(plan)
            yield plan.indices.tolist(), None if plan.draws is None else plan.draws.tolist()

    for fields in from_workers(_Reader(data), workers, device, rows()):
        if isinstance(fields, UserError):
            raise fields
        yield pending.popleft(), fields


def from_workers(
    dataset: Dataset, workers: int, device: torch.device, rows: Iterable[Any] | None = None
) -> Iterator[Any]:
    """What `workers` processes (at least one) make of a dataset, in order. rows: what is asked of a map-style one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # presets are written for larger machines, too
        loader = DataLoader(
            dataset,
            sampler=rows,
            batch_size=None,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # its own: a DataLoader would draw from the global one
            worker_init_fn=_leave_signals,
        )
    items = iter(loader)
    atexit.unregister(_end_workers)
    atexit.register(_end_workers)  # the last to be registered is the first to run: before torch's, which wait for each
    yield from items


def _end_workers() -> None:
    """Ends the workers of loops that nobody closed, as after a traceback: they ignore SIGTERM, so our exit would hang."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises for a worker that was killed
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _leave_signals(worker: int) -> None:
    """Ctrl-C reaches the whole process group; the parent decides when to stop, and needs its batches until then."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _decoders() -> int:
    """Cores for each process that torchrun started on this machine (LOCAL_WORLD_SIZE of them): all load at once."""
    return max(1, _cores() // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pinned(value: Tensor | list[str]) -> Tensor | list[str]:
    return value.pin_memory() if isinstance(value, Tensor) and value.device.type == "cpu" else value
