"""Conditions that are given as they are: files, arrays, and the images of an earlier stage, each for a named field."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffcli.config import ImageShape, UserError, did_you_mean
from diffcli.data.pixels import fit
from diffcli.data.shards import WHITE
from diffcli.engine.draw.conditions import Conditions, condition_specs
from diffcli.engine.draw.edits import described, open_picture
from diffcli.engine.draw.pictures import MemoryPicture
from diffcli.engine.model import Model
from diffcli.fields import FieldSpec, Specs, fits, listed

BINARY = 2  # classes of a mask that may be black and white
OPTIONS = {"classes": "--class", "text": "--prompt"}  # kinds of fields that have an option of their own
PICTURED = ("image", "mask")  # the kinds of fields that are read from files


class Value:
    """Rows of one field. rows: (K, ...) on the CPU, pictures as uint8. origin: for the sidecar, where they come from."""

    def __init__(self, rows: Tensor, origin: Any) -> None:
        self.rows, self.origin = rows, origin


@dataclass(frozen=True)
class Given(Conditions):
    """Values of fields; image i is drawn under the row numbered i mod K of each."""

    given: Specs
    values: Mapping[str, Value]

    @property
    def specs(self) -> Specs:
        return self.given

    @property
    def images(self) -> int:
        return max(len(value.rows) for value in self.values.values())

    def fields(self, rows: range, seeds: Sequence[int]) -> dict[str, Tensor]:
        places = torch.arange(rows.start, rows.stop)
        return {name: value.rows[places % len(value.rows)] for name, value in self.values.items()}

    def describe(self, rows: range, seeds: Sequence[int]) -> dict[str, Any]:
        return {"given": {name: value.origin for name, value in self.values.items()}}


def choose_given(model: Model, values: Mapping[str, Value], interpolate: int | None) -> Given | None:
    """The values as conditions; None where there are none. Raises UserError where one does not fit the model."""
    wanted = condition_specs(model)
    for name, value in values.items():
        spec = spec_of(model, name)
        shape = tuple(value.rows.shape[1:])
        if not fits(spec.shape, shape):
            raise UserError(
                f"'{name}' is given in the shape {listed(shape)}, but {model.path} reads {listed(spec.shape)}",
                "give it in the shape that the model reads, or as files, which are cut and resized",
            )
        _check_mask(name, spec, value.rows)
        if interpolate is not None and len(value.rows) > 1:
            raise UserError(
                f"--interpolate {interpolate} with {len(value.rows)} of '{name}': it must not change on the way",
                "give one",
            )
    return Given({name: wanted[name] for name in values}, dict(values)) if values else None


def spec_of(model: Model, name: str) -> FieldSpec:
    """What the model reads under this name. Raises UserError where it reads nothing, or what has an option of its own."""
    wanted, read = condition_specs(model), model.task.reads.get(name)
    if read is not None and read.kind in OPTIONS:
        raise UserError(f"'{name}' is given, which is of kind {read.kind}", f"say it with {OPTIONS[read.kind]}")
    if name not in wanted:
        hint = did_you_mean(name, sorted(wanted)) if wanted else "leave it out: this model has no such condition"
        raise UserError(f"'{name}' is given, but {model.path} does not read it", hint)
    return wanted[name]


def from_files(model: Model, name: str, paths: Sequence[Path | MemoryPicture]) -> Value:
    """Pictures for a field, cut and resized to what the model reads. Raises UserError where there is none that can be read."""
    spec = spec_of(model, name)
    if spec.kind not in PICTURED:
        raise UserError(
            f"'{name}' is given by {paths[0]}, but is of kind {spec.kind}, which is not read from files",
            "give an array",
        )
    rows = [_picture(name, spec, open_picture(f"'{name}'", path), model) for path in paths]
    return Value(torch.from_numpy(np.stack(rows)), [described(path) for path in paths])


def from_stage(model: Model, images: Tensor, record: Mapping[str, Any], field: str | None = None) -> dict[str, Value]:
    """The finished images of an earlier model, uint8 (K, C, H, W), as the condition of the next; record: how they were drawn.

    field: which condition they are; None where the next model has one alone that pictures can be.
    Raises UserError where it has none or several.
    """
    if field is None:
        there = [name for name, spec in condition_specs(model).items() if spec.kind == "image"]
        if len(there) != 1:
            several = (
                f"several conditions that are images: {', '.join(there)}" if there else "no condition that is an image"
            )
            hint = "name one" if there else "give a model that is conditioned on images, such as an upscaler"
            raise UserError(f"{model.path} has {several}", hint)
        field = there[0]
    return {field: Value(images, {"stage": dict(record)})}


def _picture(name: str, spec: FieldSpec, image: Image.Image, model: Model) -> np.ndarray:
    """uint8 (C, H, W); sides that the model leaves open are those of its own images."""
    own = tuple(model.preset.data.shape)
    channels, height, width = (side or other for side, other in zip(spec.shape, own, strict=True))
    resampling = Image.Resampling.NEAREST if spec.kind == "mask" else Image.Resampling.BICUBIC
    levels = fit(image, ImageShape(channels, height, width), resampling)
    binary = spec.kind == "mask" and spec.class_count == BINARY
    return np.where(levels == WHITE, np.uint8(1), levels) if binary else levels


def _check_mask(name: str, spec: FieldSpec, rows: Tensor) -> None:
    count = spec.class_count
    if spec.kind == "mask" and count is not None and (highest := int(rows.max())) >= count:
        raise UserError(
            f"'{name}' holds the class {highest}, but the model knows the classes 0 to {count - 1}",
            "give a mask whose grey levels are class numbers",
        )
