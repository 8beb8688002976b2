"""Segmentation of images: the probability of each class at each pixel, which is the mean of single masks.

A diffusion model draws an ensemble of masks for each image, all of a batch at once: mask k of image i follows from seed
+ i x K + k. A segmentation model predicts the probability itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffcli import __version__, checkpoint, preset
from diffcli.config import UserError
from diffcli.data.loader import on_device
from diffcli.engine.distributed import Group
from diffcli.engine.draw.conditions import Conditions
from diffcli.engine.draw.given import Value, choose_given
from diffcli.engine.draw.request import Request, request
from diffcli.engine.draw.rows import Reference, choose_rows
from diffcli.engine.draw.sample import gather, sampled, spans
from diffcli.engine.draw.sampling import SampleOptions, check_one_step
from diffcli.engine.model import Model
from diffcli.fields import Batch, Specs
from diffcli.preset import Preset
from diffcli.tasks.codecs.one_hot import OneHotCodec, OneHotCodecConfig
from diffcli.tasks.conditioners.spatial import SpatialConditionerConfig
from diffcli.tasks.diffusion_config import DiffusionConfig
from diffcli.tasks.segmentation import SegmentationConfig, SegmentationTask

ENSEMBLE = 5  # masks of an image, where nothing else is asked
THRESHOLD = 0.5  # that the probability of the second of two classes must exceed
BINARY = 2


class Segments(NamedTuple):
    """The probability of each class of images, float32 (B, C, H, W), and single masks of class numbers, int64 (B, K, H, W)."""

    probability: Tensor
    samples: Tensor


class Segmenter(ABC):
    """Predicts the masks of numbered images. n: the number of images."""

    model: Model
    classes: int
    ensemble: int
    n: int

    @abstractmethod
    def segment(self, rows: range) -> Segments:
        """The segments of the images of these numbers, computed as one batch, on the model's device."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The description of the masks, as JSON values."""

    def agree(self, group: Group) -> None:
        """Takes in, on rank 0, what the ranks have counted; nothing, unless it says otherwise."""
        return

    def at_once(self, batch_size: int) -> int:
        """The number of images in a batch of this number of masks."""
        return max(1, batch_size // self.ensemble)

    @property
    def rule(self) -> dict[str, Any]:
        """The rule by which a mask follows from the probability."""
        binary = {"threshold": THRESHOLD, "ensemble": self.ensemble}
        return binary if self.classes == BINARY else {"mask": "the likeliest class", "ensemble": self.ensemble}


@dataclass(frozen=True)
class Ensembled(Conditions):
    """Each row of other conditions, `size` times one after the other."""

    single: Conditions
    size: int

    @property
    def specs(self) -> Specs:
        return self.single.specs

    def fields(self, rows: range, seeds: Sequence[int]) -> Batch:
        images = range(rows.start // self.size, -(-rows.stop // self.size))
        found = self.single.fields(images, [seeds[0]] * len(images) if seeds else [])
        places = [i // self.size - images.start for i in rows]
        return {
            name: value[torch.tensor(places)] if isinstance(value, Tensor) else [value[i] for i in places]
            for name, value in found.items()
        }

    def describe(self, rows: range, seeds: Sequence[int]) -> dict[str, Any]:
        return self.single.describe(range(rows.start // self.size, -(-rows.stop // self.size)), seeds[:: self.size])


@dataclass(frozen=True)
class Ensembles(Segmenter):
    """Masks drawn by diffusion. req: of n x ensemble masks."""

    req: Request
    classes: int
    ensemble: int
    n: int

    @property
    def model(self) -> Model:  # type: ignore[override]
        return self.req.model

    def segment(self, rows: range) -> Segments:
        k = self.ensemble
        levels = sampled(self.req, range(rows.start * k, rows.stop * k))[:, 0]
        numbers = (levels.float() * ((self.classes - 1) / 255)).round().long()
        samples = numbers.unflatten(0, (len(rows), k))
        return Segments(frequency(samples, self.classes), samples)

    def agree(self, group: Group) -> None:
        self.req.agree(group)

    def describe(self) -> dict[str, Any]:
        """The sidecar of the request."""
        return self.req.describe() | self.rule


@dataclass(frozen=True)
class Direct(Segmenter):
    """The prediction of a segmentation model."""

    model: Model
    conditions: Conditions
    n: int
    ensemble: int = 1

    @property
    def task(self) -> SegmentationTask:
        assert isinstance(self.model.task, SegmentationTask)
        return self.model.task

    @property
    def classes(self) -> int:  # type: ignore[override]
        return self.task.classes

    @torch.no_grad()
    def segment(self, rows: range) -> Segments:
        fields = on_device(self.conditions.fields(rows, list(rows)), self.conditions.specs, self.model.device)
        probability = self.task.probabilities(self.task.logits(fields[self.task.source]))
        return Segments(probability, decided(probability))

    def describe(self) -> dict[str, Any]:
        conditions = self.conditions.describe(range(self.n), list(range(self.n)))
        return self.model.describe() | {"n": self.n, "version": __version__} | conditions | self.rule


def frequency(samples: Tensor, classes: int) -> Tensor:
    """The frequency of each class in masks (B, K, H, W): float32 (B, classes, H, W)."""
    return torch.stack([(samples == c).float().mean(1) for c in range(classes)], 1)


def decided(probability: Tensor) -> Tensor:
    """The mask of a probability (B, C, H, W): int64 (B, 1, H, W). Of several equally likely classes the first."""
    if probability.shape[1] == BINARY:
        return (probability[:, 1:] > THRESHOLD).long()
    return probability.argmax(1, keepdim=True)


def variance(probability: Tensor) -> Tensor:
    """The variance of single masks at each pixel, (B, H, W): p (1 - p) for two classes; for more, half the sum of p (1 - p)."""
    return (probability * (1 - probability)).sum(1) / 2


def source_of(chosen: Preset) -> str | None:
    """The image that conditions a model of masks; None if the model generates no masks or reads no single image."""
    task = chosen.task
    if isinstance(task, SegmentationConfig):
        return task.source
    if not isinstance(task, DiffusionConfig) or not isinstance(task.codec, OneHotCodecConfig):
        return None
    spatial = [c for c in task.conditioners if isinstance(c, SpatialConditionerConfig) and c.of == "image"]
    return spatial[0].field if len(spatial) == 1 else None


def tells_masks(path: Path) -> bool:
    """Whether the checkpoint at a path holds a model of masks of images; reads only its record. Raises UserError."""
    found = checkpoint.locate(path)
    record = checkpoint.read_record(found)
    return source_of(preset.build(record.get("preset"), f"{found}/{checkpoint.RECORD}")) is not None


def segmenter(
    model: Model, options: SampleOptions, images: Value | Reference, n: int, ensemble: int | None = None
) -> Segmenter:
    """The segmenter of n images: those of a value, or the rows of a reference. Raises UserError.

    ensemble: masks of an image, an odd number; None: ENSEMBLE, or the one that a segmentation model has.
    """
    source = source_of(model.preset)
    if source is None:
        raise UserError(
            f"{model.path} is {model.preset.task.noun}, which predicts no masks of images",
            "give the run of a model of masks, such as that of the preset digits-segmentation",
        )
    check_ensemble(model, ensemble)
    given = {source: images} if isinstance(images, Value) else {}
    reference = None if isinstance(images, Value) else images
    if isinstance(model.task, SegmentationTask):
        check_one_step(options, f"{model.path} is a segmentation model, which predicts in one step")
        conditions = (
            choose_given(model, given, None) if reference is None else choose_rows(model, reference, None, False)
        )
        assert conditions is not None
        return Direct(model, conditions, n)
    size = ENSEMBLE if ensemble is None else ensemble
    req = request(model, options.model_copy(update={"n": n * size}), reference, given)
    req = replace(req, conditions=tuple(Ensembled(each, size) for each in req.conditions))
    assert isinstance(req.task.codec, OneHotCodec)
    return Ensembles(req, req.task.codec.classes, size, n)


def check_ensemble(model: Model, ensemble: int | None) -> None:
    """Raises UserError for an ensemble that ties, or of a model that gives the same mask each time."""
    if ensemble is None:
        return
    if ensemble % 2 == 0:
        problem = (
            f"--ensemble {ensemble}: with an even number of masks, half of them may mark a pixel, which ties at 0.5"
        )
        raise UserError(problem, f"use an odd number: --ensemble {ensemble + 1}")
    if isinstance(model.task, SegmentationTask) and ensemble != 1:
        problem = f"--ensemble {ensemble}: {model.path} is a segmentation model, which gives the same mask each time"
        raise UserError(problem, "leave --ensemble out")


def check_options(options: SampleOptions) -> None:
    """Raises UserError for sampling options without a meaning in segmentation."""
    if not isinstance(options.seed, int):
        raise UserError("--seed names several seeds: the masks of all images follow from one", "give the first alone")
    fresh = SampleOptions()
    flags = {
        name: f"--{name}" for name in ("mask", "strength", "compare", "interpolate", "restore", "degrade", "n", "size")
    }
    flags |= {
        "fields": "--field",
        "augment": "--augment",
        "tile": "--tile",
        "overlap": "--overlap",
        "exact_tiles": "--exact-tiles",
        "whole": "--no-tile",
    }
    for name, flag in flags.items():
        value = getattr(options, name, None)
        if value != getattr(fresh, name, None):
            shown = "" if value is True else f" {value}"
            raise UserError(f"{flag}{shown}: the model predicts one mask of each --image", f"leave {flag} out")


def probabilities(seg: Segmenter, batch_size: int, group: Group) -> Iterator[Tensor]:
    """The probabilities of all images in order, (b, C, H, W) on the CPU, on rank 0; the other ranks help and yield nothing.

    batch_size: masks drawn at once.
    """
    size = seg.at_once(batch_size)
    batches = list(spans(range(seg.n), size))
    for first in range(0, len(batches), group.world):
        together = batches[first : first + group.world]
        mine = together[group.rank] if group.rank < len(together) else together[0][:0]
        own = seg.segment(mine).probability if mine else seg.segment(range(1)).probability[:0]
        parts = gather(own, size, group)
        seg.agree(group)
        if group.leads:
            for part, rows in zip(parts, together, strict=False):
                yield part[: len(rows)].cpu()
