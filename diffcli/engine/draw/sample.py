"""Drawing images from a checkpoint: the same seed gives the same image, whatever the batch size or number of processes."""

from collections.abc import Iterator
from itertools import islice
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from diffcli.diffusion.samplers import last
from diffcli.engine.distributed import Group
from diffcli.engine.draw.pictures import to_uint8
from diffcli.engine.draw.request import Request, SampleOptions, class_id, request
from diffcli.engine.model import Model, load_model

__all__ = [
    "Drawn",
    "Model",
    "Request",
    "SampleOptions",
    "class_id",
    "draw",
    "frame_count",
    "frames",
    "load_model",
    "request",
]


class Drawn(NamedTuple):
    """A batch of finished images."""

    images: Tensor  # uint8 (B, C, H, W) on the CPU
    labels: Tensor | None  # int64 (B,)


@torch.no_grad()
def draw(req: Request, group: Group) -> Iterator[Drawn]:
    """The images of a request in order, batch by batch, on rank 0; the other ranks help and yield nothing."""
    starts = range(0, req.n, req.batch_size)
    for first in range(0, len(starts), group.world):
        mine = first + group.rank
        rows = rows_of(req, starts[mine]) if mine < len(starts) else range(0)
        images = torch.zeros(req.batch_size, *req.model.preset.data.shape, dtype=torch.uint8)
        if rows:
            images[: len(rows)] = to_uint8(req.task.decode(last(req.walk(rows)[1]).x))
        parts = group.gather(images.to(group.device))
        req.tally.agree(group)
        for part, start in zip(parts, islice(starts, first, None), strict=False):
            done = rows_of(req, start)
            labels = None if req.labels is None else req.labels[done.start : done.stop]
            yield Drawn(part[: len(done)].cpu(), labels)


def frame_count(req: Request, show: Literal["x", "x0"]) -> int:
    """How many `frames` a request has: one a step, and for x where it begins."""
    return req.walked.steps + (show == "x")


@torch.no_grad()
def frames(req: Request, show: Literal["x", "x0"], group: Group) -> Iterator[Tensor]:
    """The trajectory of all images of a request as uint8 (n, C, H, W), on rank 0; the other ranks help and yield nothing.

    show: x, from where they begin to the samples, or the x0 that each step predicts, the last of which are the samples.
    """
    shares = group.shares(req.n)
    mine, most = shares[group.rank], max(map(len, shares))
    starts = range(mine.start, mine.stop, req.batch_size)
    walks = [walk(req, range(start, min(start + req.batch_size, mine.stop)), show) for start in starts]
    for _ in range(frame_count(req, show)):
        images = torch.zeros(most, *req.model.preset.data.shape, dtype=torch.uint8)
        if walks:
            images[: len(mine)] = torch.cat([next(each) for each in walks])
        parts = group.gather(images.to(group.device))
        if parts:
            yield torch.cat([part[: len(rows)] for part, rows in zip(parts, shares, strict=True)]).cpu()
    req.tally.agree(group)


@torch.no_grad()
def walk(req: Request, rows: range, show: Literal["x", "x0"]) -> Iterator[Tensor]:
    """`frames` of the images `rows` alone, computed as one batch."""
    start, steps = req.walk(rows)
    if show == "x":
        yield to_uint8(req.task.decode(start))
    for step in steps:
        yield to_uint8(req.task.decode(step.x0 if show == "x0" else step.x))


def rows_of(req: Request, start: int) -> range:
    """The images of the batch that begins at `start`."""
    return range(start, min(start + req.batch_size, req.n))
