"""Drawing images from a checkpoint: the same seed gives the same image, whatever the batch size or number of processes.

Images become bytes on the device that draws them. Rank 0 gathers those of all processes, and only it copies them
to the CPU.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from diffcli.engine.distributed import Group
from diffcli.engine.draw.conditions import enlargement
from diffcli.engine.draw.given import Value
from diffcli.engine.draw.labels import class_id
from diffcli.engine.draw.pictured.controls import led
from diffcli.engine.draw.pictured.enlarging import enlargements
from diffcli.engine.draw.pictured.following import picture_conditions, pictured
from diffcli.engine.draw.pictured.gallery import Gallery
from diffcli.engine.draw.reconstruction import reconstruction
from diffcli.engine.draw.request import Request, composed, request
from diffcli.engine.draw.sampling import SampleOptions
from diffcli.engine.model import Model, load_model
from diffcli.tasks.autoencoder.autoencoder_task import AutoencoderTask
from diffcli.tasks.diffusion import DiffusionTask
from diffcli.tasks.super_resolution import SuperResolutionTask

__all__ = [
    "Finished",
    "ImageRequest",
    "Model",
    "Request",
    "SampleOptions",
    "class_id",
    "draw",
    "frame_count",
    "frames",
    "load_model",
    "request",
    "request_of",
]


class ImageRequest(Protocol):
    """A request for images of any kind of model."""

    @property
    def model(self) -> Model: ...

    @property
    def n(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image: channels, height and width."""

    @property
    def labels(self) -> Tensor | None:
        """The class of each image, int64 (n,), where they have one."""

    @property
    def parts(self) -> Iterable[tuple["ImageRequest", range]]:
        """Ranges of images of one size, in order, each with its request."""

    def images(self, rows: range) -> Tensor:
        """The finished images `rows`, computed as one batch: uint8 (B, C, H, W) on the model's device. Rows may end after n."""

    def agree(self, group: Group) -> None:
        """Adds the counts of all ranks, on rank 0."""

    def captions(self) -> list[str]:
        """The caption of each image. Raises UserError if there are none."""

    def describe(self) -> dict[str, Any]:
        """The sidecar: everything that is needed to make the images again."""


class Finished(NamedTuple):
    """A batch of finished images."""

    images: Tensor  # uint8 (B, C, H, W) on the CPU
    labels: Tensor | None  # int64 (B,)


def request_of(model: Model, options: SampleOptions, given: Mapping[str, Value] | None = None) -> ImageRequest:
    """The options completed from a checkpoint of any task that draws. Raises UserError; given: see `request`."""
    if isinstance(model.task, AutoencoderTask) and not given:
        return reconstruction(model, options)
    if isinstance(model.task, SuperResolutionTask):
        return enlargements(model, options, given)
    return drawing(*led(model, options), given)


def drawing(model: Model, options: SampleOptions, given: Mapping[str, Value] | None = None) -> ImageRequest:
    """`request`, of images of several sizes where the pictures that they are drawn of have several. Raises UserError."""
    enlarges = isinstance(model.task, DiffusionTask) and any(enlargement(model, name) > 1 for name in pictured(model))
    if not enlarges:
        return request(model, options, given=given)
    gathered = picture_conditions(model, options, given or {})
    if len(set(gathered.sizes)) < 2:
        return request(model, gathered.options, given=gathered.values)
    parts = {size: composed(model, gathered, size) for size in dict.fromkeys(gathered.sizes)}
    tally = parts[gathered.sizes[0]].tally
    return Gallery({size: replace(part, tally=tally) for size, part in parts.items()}, gathered.sizes)


@torch.no_grad()
def draw(req: ImageRequest, group: Group) -> Iterator[Finished]:
    """The images of a request in order, batch by batch, on rank 0; the other ranks help and yield nothing."""
    for part, rows in req.parts:
        yield from draw_part(part, rows, group)


def draw_part(req: ImageRequest, chosen: range, group: Group) -> Iterator[Finished]:
    """The images `chosen`, which are of one size; see `draw`."""
    batches = list(spans(chosen, req.batch_size))
    for first in range(0, len(batches), group.world):
        together = batches[first : first + group.world]
        mine = together[group.rank] if group.rank < len(together) else range(0)
        parts = gather(sampled(req, mine), req.batch_size, group)
        req.agree(group)
        if not group.leads:
            continue
        counts = [len(rows) for rows in together]
        images = torch.cat([part[:count] for part, count in zip(parts, counts, strict=False)]).cpu()
        for rows, own in zip(together, images.split(counts), strict=True):
            yield Finished(own, None if req.labels is None else req.labels[rows.start : rows.stop])


def sampled(req: ImageRequest, rows: range) -> Tensor:
    """The finished images `rows`, computed as one batch, as uint8 (B, C, H, W) on the device that drew them."""
    if not rows:
        return torch.zeros(0, *req.shape, dtype=torch.uint8, device=req.model.device)
    return req.images(computed(req, rows))[: len(rows)]


def computed(req: ImageRequest, rows: range) -> range:
    """The rows to compute for `rows`, which are the first of them.

    A compiled network would be compiled once more for a batch of one, so a single last image is computed together with a further
    row: rows past the end of a request have seeds and conditions as well.
    """
    alone = req.model.compiled and len(rows) == 1 < min(req.batch_size, req.n)
    return range(rows.start, rows.start + 2) if alone else rows


def frame_count(req: Request, show: Literal["x", "x0"]) -> int:
    """The number of `frames` of a request: one for each step, and for x also the start."""
    return req.walked.steps + (show == "x")


@torch.no_grad()
def frames(req: Request, show: Literal["x", "x0"], group: Group) -> Iterator[Tensor]:
    """The trajectory of all images of a request as uint8 (n, C, H, W), on rank 0; the other ranks help and yield nothing.

    show: x, from where they begin to the samples, or the x0 that each step predicts, the last of which are the samples.
    """
    shares = group.shares(req.n)
    most = max(map(len, shares))
    walks = [walk(req, rows, show) for rows in spans(shares[group.rank], req.batch_size)]
    for _ in range(frame_count(req, show)):
        levels = torch.cat([next(each) for each in walks]) if walks else sampled(req, range(0))
        parts = gather(levels, most, group)
        if group.leads:
            yield torch.cat([part[: len(rows)] for part, rows in zip(parts, shares, strict=True)]).cpu()
    req.agree(group)


@torch.no_grad()
def walk(req: Request, rows: range, show: Literal["x", "x0"]) -> Iterator[Tensor]:
    """`frames` of the images `rows` alone, computed as one batch, on the device that draws them."""
    whole = computed(req, rows)
    start, steps = req.walk(whole)
    if show == "x":
        yield req.finished(start, whole)[: len(rows)]
    for step in steps:
        yield req.finished(step.x0 if show == "x0" else step.x, whole)[: len(rows)]


def gather(levels: Tensor, size: int, group: Group) -> list[Tensor]:
    """The images (n, ...) of all ranks on rank 0, n at most `size`, in rank order; elsewhere nothing.

    Of several processes each part is padded to `size`: a collective takes tensors of one shape.
    """
    if group.world == 1:
        return [levels]
    padded = levels.new_zeros(size, *levels.shape[1:])
    padded[: len(levels)] = levels
    return group.gather(padded)


def spans(rows: range, size: int) -> Iterator[range]:
    """`rows` cut into ranges of `size`, the last of which may be shorter."""
    for start in range(rows.start, rows.stop, size):
        yield range(start, min(start + size, rows.stop))
