"""Batches as a pure function of the step: there is no state of a loader to save.

The images of a step follow from seed and step (see `order`), random choices for a sample from (seed, position) or (seed, epoch,
index). So resuming is exact, on any number of processes.
"""

import atexit
import multiprocessing
import os
import signal
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffcli import noise, transfer
from diffcli.config import UserError
from diffcli.data.images import FileImages, ImageData, MemoryImages
from diffcli.data.order import StepRows, order_of, share
from diffcli.fields import Batch, Specs, converted, mirrored
from diffcli.noise import Domain

MEMORY_LIMIT = 2 << 30  # bytes of decoded pixels up to which a set is held in memory by default
LOAD_CHUNK = 256  # images that a worker decodes at once
WORTH_WORKERS = 4096  # images; fewer are decoded faster than a worker process starts


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
    the data. On the CPU, so that random draws there never wait for a GPU: index (b,), position (b,), and stream (b,), the
    seed of each sample.
    workers: processes that decode files; sets in memory need none. Raises UserError where an image cannot be read.
    """
    order = order_of(data, seed, batch_size)
    start, stop = share(batch_size, rank, world)

    def plans() -> Iterator[StepRows]:
        for step in range(first, last):
            yield order.rows(step * batch_size + start, step * batch_size + stop)

    specs = data.specs
    for step, (plan, fields) in enumerate(_read_ahead(data, plans(), device, workers), start=first + 1):
        yield step, trained_batch(fields, specs, plan, seed, flip, device)


def trained_batch(
    fields: Batch, specs: Specs, plan: StepRows, seed: int, flip: bool, device: torch.device
) -> dict[str, Any]:
    """The fields read for the rows of a step as a batch, see `batches`; nothing waits for the device."""
    batch = on_device(fields, specs, device)
    if flip:
        mirror(batch, specs, plan, device)
    stream = noise.derive(seed, Domain.TRAIN, plan.positions)
    about = {"index": plan.indices, "position": plan.positions, "stream": stream}
    return batch | {name: transfer.pinned(value, device) for name, value in about.items()}


def mirror(batch: dict[str, Any], specs: Specs, plan: StepRows, device: torch.device) -> None:
    """Mirrors half of the samples left to right: the image and all fields of the same scene."""
    assert plan.draws is not None
    coin = transfer.moved((plan.draws & 1).bool(), device)
    for name, spec in specs.items():
        batch[name] = mirrored(batch[name], spec, coin)


def evaluation_batches(
    data: ImageData, rows: Tensor, batch_size: int, device: torch.device, workers: int = 0
) -> Iterator[dict[str, Any]]:
    """Batches of the images of these rows, int64 (n,), in order, without draws: the fields of the data, and index."""
    specs = data.specs
    plans = (StepRows(index, index, None) for index in rows.split(batch_size) if len(index))
    for plan, fields in _read_ahead(data, plans, device, workers):
        yield on_device(fields, specs, device) | {"index": plan.indices}


def loaded(data: FileImages, in_memory: bool | None) -> ImageData:
    """`data` decoded into memory if `in_memory` is true, or None and it takes at most 2 GiB; never with changing crops.

    Decoding uses as many processes as this rank has cores: for small images, threads would wait for Python's lock.
    """
    if data.framing.varies or not (data.bytes_in_memory <= MEMORY_LIMIT if in_memory is None else in_memory):
        return data
    images = torch.empty(len(data), *data.shape, dtype=torch.uint8)
    plans = (StepRows(chunk, chunk, None) for chunk in torch.arange(len(data)).split(LOAD_CHUNK))
    workers = decoders() if len(data) >= WORTH_WORKERS else 0
    for plan, fields in _read_ahead(data.select({"image"}), plans, images.device, workers):
        images[plan.indices] = cast(Tensor, fields["image"])
    decoded = MemoryImages(images, data.labels, data.classes, data.columns)
    decoded.origin = data.origin
    return decoded


def on_device(fields: Batch, specs: Specs, device: torch.device) -> dict[str, Any]:
    """The fields of ImageData.read that `specs` declare, on a device, converted there by their kind.

    Bytes are copied, not floats, and nothing waits.
    """
    declared = {name: value for name, value in fields.items() if name in specs}
    there = {name: transfer.moved(v, device) if isinstance(v, Tensor) else v for name, v in declared.items()}
    return {name: converted(value, specs[name]) for name, value in there.items()}


class _Reader(Dataset):
    """Reads a batch of (index, draw) pairs in a variant of the data. An error is returned as a value, because a DataLoader would
    rebuild it wrongly."""

    def __init__(self, data: ImageData) -> None:
        self.data, self.variants = data, data.variants

    def __getitem__(self, rows: tuple[list[int], list[int] | None, int | None]) -> Batch | UserError:
        index, draws, variant = rows
        data = self.data if variant is None else self.variants[variant]
        try:
            return data.read(torch.tensor(index), None if draws is None else torch.tensor(draws))
        except UserError as error:
            return error


def _read_ahead(
    data: ImageData, plans: Iterator[StepRows], device: torch.device, workers: int
) -> Iterator[tuple[StepRows, Batch]]:
    """Each plan with its fields, in order, read by `workers` processes where there are any."""
    if not workers:
        variants = data.variants
        for plan in plans:
            form = data if plan.variant is None else variants[plan.variant]
            yield plan, form.read(plan.indices, plan.draws)
        return
    pending: deque[StepRows] = deque()

    def rows() -> Iterator[tuple[list[int], list[int] | None, int | None]]:
        for plan in plans:
            pending.append(plan)
            yield plan.indices.tolist(), None if plan.draws is None else plan.draws.tolist(), plan.variant

    for fields in from_workers(_Reader(data), workers, device, rows()):
        if isinstance(fields, UserError):
            raise fields
        yield pending.popleft(), fields


def from_workers(
    dataset: Dataset, workers: int, device: torch.device, rows: Iterable[Any] | None = None
) -> Iterator[Any]:
    """The items of a dataset from `workers` processes (at least one), in order. rows: the requests for a map-style one."""
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
    """Ends the workers of unclosed loops, for example after a traceback: they ignore SIGTERM, so our exit would hang."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises for a worker that was killed
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _leave_signals(worker: int) -> None:
    """Ignores Ctrl-C, which reaches the whole process group; the parent decides when to stop, and needs batches until then."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def decoders() -> int:
    """Cores for each process that torchrun started on this machine (LOCAL_WORLD_SIZE of them): all load at once."""
    return max(1, _cores() // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
