"""Batches as a pure function of the step: training state has no loader, no cursor and no random state to save.

A run is one endless stream of samples. Position p = (step - 1) * batch_size + i lies in epoch p // N and reads image
permutation(seed, epoch, N)[p % N]; everything random about it derives from (seed, p) or (seed, epoch, index). So resuming is
exact, on any number of processes, a batch may straddle two epochs, and a set may be smaller than a batch.
"""

import os
import signal
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffcli import noise
from diffcli.config import UserError
from diffcli.data.images import FileImages, ImageData, MemoryImages
from diffcli.noise import Domain

MEMORY_LIMIT = 2 << 30  # bytes of decoded pixels up to which a set is held in memory unless the preset says otherwise
LOAD_CHUNK = 256  # images that a worker decodes before it hands them over
WORTH_WORKERS = 4096  # images; fewer are decoded before the first worker process would have started


class Plan(NamedTuple):
    """What one rank reads in one step; all (b,), b its share of the batch."""

    indices: Tensor  # int64: which image
    positions: Tensor  # int64: place in the endless stream
    flips: Tensor  # bool: mirrored left to right


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

    def plan(self, first: int, last: int, flip: bool) -> Plan:
        """Positions first <= p < last."""
        indices, flips = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.bool)]  # a share may be empty
        for epoch in range(first // self.n, -(-last // self.n)):
            start = epoch * self.n
            index = self.order(epoch)[max(first - start, 0) : last - start]
            indices.append(index)
            flips.append(flipped(self.seed, epoch, index) if flip else torch.zeros_like(index, dtype=torch.bool))
        return Plan(torch.cat(indices), torch.arange(first, last), torch.cat(flips))


def flipped(seed: int, epoch: int, index: Tensor) -> Tensor:
    """Which images are mirrored in an epoch: a fair coin that depends on (seed, epoch, index) alone; bool (B,)."""
    return (noise.derive(seed, Domain.AUGMENT, index, epoch) & 1).bool()


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
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Yields (step, batch) for step = first + 1 .. last, with this rank's share of each global batch of batch_size.

    On `device`: image float32 (b, C, H, W) in [-1, 1]; label int64 (b,) where there are classes. On the CPU, so that a draw
    made there never waits for a GPU: index (b,), position (b,), and stream (b,), the seed of each sample's own randomness.
    workers: processes that decode files; sets in memory need none. Raises UserError where an image cannot be read.
    """
    stream = Stream(seed, len(data))
    start, stop = share(batch_size, rank, world)

    def plans() -> Iterator[Plan]:
        for step in range(first, last):
            yield stream.plan(step * batch_size + start, step * batch_size + stop, flip)

    for step, (plan, fields) in enumerate(_read_ahead(data, plans(), device, workers), start=first + 1):
        batch = on_device(fields, device)
        if flip:
            mirror = plan.flips.to(device, non_blocking=True)[:, None, None, None]
            batch["image"] = torch.where(mirror, batch["image"].flip(-1), batch["image"])
        batch["index"], batch["position"] = plan.indices, plan.positions
        batch["stream"] = noise.derive(seed, Domain.TRAIN, plan.positions)
        yield step, batch


def evaluation_batches(
    data: ImageData, batch_size: int, device: torch.device, limit: int | None = None, workers: int = 0
) -> Iterator[dict[str, Tensor]]:
    """The first `limit` images (all where it is None) in their order: image, label where there are classes, index."""
    n = len(data) if limit is None else min(limit, len(data))
    nothing = torch.zeros(0, dtype=torch.bool)
    plans = (Plan(index, index, nothing) for index in torch.arange(n).split(batch_size) if len(index))
    for plan, fields in _read_ahead(data, plans, device, workers):
        yield on_device(fields, device) | {"index": plan.indices}


def held(data: FileImages, in_memory: bool | None) -> ImageData:
    """`data` decoded into memory where `in_memory` says so, or says nothing and it takes at most 2 GiB.

    Decoded once, by as many processes as this rank has cores: small images spend their time in Python's lock, not in Pillow.
    """
    if not (data.bytes_in_memory <= MEMORY_LIMIT if in_memory is None else in_memory):
        return data
    images = torch.empty(len(data), *data.shape, dtype=torch.uint8)
    plans = (Plan(chunk, chunk, chunk) for chunk in torch.arange(len(data)).split(LOAD_CHUNK))
    workers = _decoders() if len(data) >= WORTH_WORKERS else 0
    for plan, fields in _read_ahead(data, plans, images.device, workers):
        images[plan.indices] = fields["image"]
    return MemoryImages(images, data.labels, data.classes)


def on_device(fields: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Fields of ImageData.read on a device, where the uint8 image becomes float32 in [-1, 1]: bytes travel, not floats."""
    moved = {name: value.to(device, non_blocking=True) for name, value in fields.items()}
    return moved | {"image": to_float(moved["image"])}


def to_float(image: Tensor) -> Tensor:
    """uint8 0..255 -> float32 -1..1; `round((x + 1) * 127.5)` is its exact inverse."""
    return image.float().div_(127.5).sub_(1)


class _Reader(Dataset):
    """Reads a batch of indices. An error travels as a value: a DataLoader would rebuild it wrongly from its text."""

    def __init__(self, data: ImageData) -> None:
        self.data = data

    def __getitem__(self, indices: list[int]) -> dict[str, Tensor] | UserError:
        try:
            return self.data.read(torch.tensor(indices))
        except UserError as error:
            return error


def _read_ahead(
    data: ImageData, plans: Iterator[Plan], device: torch.device, workers: int
) -> Iterator[tuple[Plan, dict[str, Tensor]]]:
    """Each plan with its fields, in order, read by `workers` processes where there are any."""
    pin = device.type == "cuda"
    if not workers:
        for plan in plans:
            fields = data.read(plan.indices)
            yield plan, {name: _pinned(value) for name, value in fields.items()} if pin else fields
        return
    pending: deque[Plan] = deque()

    def indices() -> Iterator[list[int]]:
        for plan in plans:
            pending.append(plan)
            yield plan.indices.tolist()

    generator = torch.Generator()  # its own: a DataLoader would draw from the global one
    loader = DataLoader(
        _Reader(data),
        sampler=indices(),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        generator=generator,
        worker_init_fn=_leave_signals,
    )
    for fields in loader:
        if isinstance(fields, UserError):
            raise fields
        yield pending.popleft(), fields


def _leave_signals(worker: int) -> None:
    """Ctrl-C reaches the whole process group; the parent decides when to stop, and needs its batches until then."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _decoders() -> int:
    """Cores for each process that torchrun started on this machine (LOCAL_WORLD_SIZE of them): all load at once."""
    return max(1, _cores() // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pinned(value: Tensor) -> Tensor:
    return value.pin_memory() if value.device.type == "cpu" else value
