"""Conditions that are given as they are: files, arrays, and the images of an earlier stage, each for a named field."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffcli.config import ImageShape, Note, UserError, did_you_mean
from diffcli.data.derived import Edges
from diffcli.data.field_notes import WHITE
from diffcli.data.modes import class_values
from diffcli.data.pixels import fit
from diffcli.engine.draw.conditions import Conditions, condition_specs, enlargement
from diffcli.engine.draw.edits import described, open_picture
from diffcli.engine.draw.pictures import MemoryPicture
from diffcli.engine.model import Model
from diffcli.fields import FieldSpec, Specs, fits, listed

EDGES_AT_MOST = 0.5  # of a picture is white where edges are one pixel wide, with at least one black pixel between two
HALF = 128  # levels from here on are white
BINARY = 2  # classes of a mask that may be black and white
OPTIONS = {"classes": "--class", "text": "--prompt"}  # kinds of fields that have an option of their own
PICTURED = ("image", "mask")  # the kinds of fields that are read from files


class Value:
    """Rows of one field. rows: K of them on the CPU, pictures as uint8. origin: their source, for the sidecar."""

    def __init__(self, rows: Tensor | Sequence[Tensor], origin: Any) -> None:
        self.rows, self.origin = rows, origin

    def chosen(self, rows: range) -> Tensor:
        """The rows for images `rows`, which have one shape: image i takes row i mod K."""
        if isinstance(self.rows, Tensor):
            return self.rows[torch.arange(rows.start, rows.stop) % len(self.rows)]
        return torch.stack([self.rows[i % len(self.rows)] for i in rows])

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each row; a single one if all are alike."""
        if isinstance(self.rows, Tensor):
            return [tuple(self.rows.shape[1:])]
        return [tuple(row.shape) for row in self.rows]


@dataclass(frozen=True)
class Given(Conditions):
    """Values of fields; image i takes row i mod K of each.

    sides: (height, width) to which the edges of pictures are repeated, on the right and below, by field.
    """

    given: Specs
    values: Mapping[str, Value]
    sides: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def specs(self) -> Specs:
        return self.given

    @property
    def images(self) -> int:
        return max(len(value.rows) for value in self.values.values())

    def fields(self, rows: range, seeds: Sequence[int]) -> dict[str, Tensor]:
        found = {name: value.chosen(rows) for name, value in self.values.items()}
        return found | {name: extended(found[name], size) for name, size in self.sides.items()}

    def describe(self, rows: range, seeds: Sequence[int]) -> dict[str, Any]:
        return {"given": {name: value.origin for name, value in self.values.items()}}


def choose_given(
    model: Model,
    values: Mapping[str, Value],
    interpolate: int | None,
    sides: Mapping[str, tuple[int, int]] | None = None,
) -> Given | None:
    """The values as conditions; None where there are none. Raises UserError where one does not fit the model.

    sides: see `Given`.
    """
    wanted = condition_specs(model)
    for name, value in values.items():
        spec = spec_of(model, name)
        for shape in value.shapes:
            if not fits(spec.shape, shape) or 0 in shape:
                raise UserError(
                    f"'{name}' is given in the shape {listed(shape)}, but {model.path} reads {listed(spec.shape)}",
                    "give it in the shape that the model reads, or as files, which are cut and resized",
                )
        for rows in [value.rows] if isinstance(value.rows, Tensor) else value.rows:
            check_values(f"'{name}'", spec, rows)
        if interpolate is not None and len(value.rows) > 1:
            raise UserError(
                f"--interpolate {interpolate} with {len(value.rows)} of '{name}': it must not change on the way",
                "give one",
            )
    return Given({name: wanted[name] for name in values}, dict(values), sides or {}) if values else None


def extended(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures (..., H, W) of any type made (height, width) large: their last column and row are repeated."""
    down, across = (torch.arange(to).clamp(max=side - 1) for to, side in zip(size, pictures.shape[-2:], strict=True))
    return pictures[..., down[:, None], across]


def spec_of(model: Model, name: str) -> FieldSpec:
    """The field of this name. Raises UserError if the model does not read it, or if another option gives it."""
    wanted, read = condition_specs(model), model.task.reads.get(name)
    if read is not None and read.kind in OPTIONS:
        raise UserError(f"'{name}' is given, which is of kind {read.kind}", f"say it with {OPTIONS[read.kind]}")
    if name not in wanted:
        hint = did_you_mean(name, sorted(wanted)) if wanted else "leave it out: this model has no such condition"
        raise UserError(f"'{name}' is given, but {model.path} does not read it", hint)
    return wanted[name]


def from_files(
    model: Model,
    name: str,
    paths: Sequence[Path | MemoryPicture],
    size: tuple[int, int] | None = None,
    flag: str | None = None,
) -> Value:
    """Pictures for a field, cropped and resized to its shape; pictures that a model enlarges keep their size.

    size: (height, width) of the images to draw; None: the model's own, or the size that follows from the pictures. flag: names
    the pictures in errors. Raises UserError if one cannot be read, or is larger than its image.
    """
    spec = spec_of(model, name)
    if spec.kind not in PICTURED:
        raise UserError(
            f"'{name}' is given by {paths[0]}, but is of kind {spec.kind}, which is not read from files",
            "give an array",
        )
    flag, factor, rows = flag or f"'{name}'", enlargement(model, name), []
    for path in paths:
        image = open_picture(flag, path, class_values if spec.kind == "mask" else None)
        if size is not None and factor > 1:
            check_enlarged(f"{flag} {path}", image, size, factor)
        rows.append(torch.from_numpy(_picture(spec, image, _sides(model, image, size, factor))))
        check_values(f"{flag} {path}", spec, rows[-1], ", or black and white" * (spec.class_count == BINARY))
        _note_tones(model, name, f"{flag} {path}", rows[-1])
    alike = len({row.shape for row in rows}) == 1
    return Value(torch.stack(rows) if alike else rows, [described(path) for path in paths])


def _note_tones(model: Model, name: str, what: str, picture: Tensor) -> None:
    """A note where a picture has dark lines on white, as people draw, and the model learned from white ones on black."""
    learned = any(isinstance(each, Edges) and each.field == name for each in model.preset.data.derived)
    white = float((picture >= HALF).float().mean())
    if learned and white > EDGES_AT_MOST:
        warnings.warn(
            f"{what}: {white:.0%} of it is white, but the model learned from white lines on black; for a drawing of dark lines "
            "exchange black and white first, with ImageOps.invert of Pillow or in a painting program",
            Note,
            stacklevel=2,
        )


def from_stage(model: Model, images: Tensor, record: Mapping[str, Any], field: str | None = None) -> dict[str, Value]:
    """The finished images of an earlier model, uint8 (K, C, H, W), as the condition of the next; record: how they were drawn.

    field: the name of the condition; None if the next model has exactly one condition that is a picture.
    Raises UserError if it has none or several.
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


def check_enlarged(what: str, image: Image.Image, size: tuple[int, int], factor: int) -> None:
    """Raises UserError where images of `size` cannot be drawn of a picture, `factor` times enlarged."""
    if image.height > size[0] or image.width > size[1]:
        raise UserError(
            f"{what}: is {image.height}x{image.width} pixels (HxW), larger than the {size[0]}x{size[1]} to be drawn of it",
            f"leave --size out: it is then drawn {factor} times larger",
        )
    if any(side % factor for side in size):
        near = "x".join(str(max(1, round(side / factor)) * factor) for side in size)
        raise UserError(
            f"--size {size[0]}x{size[1]}: the model enlarges pictures {factor} times, which does not divide it",
            f"use --size {near}, or leave --size out",
        )


def _sides(model: Model, image: Image.Image, size: tuple[int, int] | None, factor: int) -> ImageShape:
    """The shape for a picture of unspecified size; unspecified channels are those of the model's images."""
    shape = model.preset.data.shape
    if size is not None:
        return ImageShape(shape.channels, size[0] // factor, size[1] // factor)
    return shape if factor == 1 else ImageShape(shape.channels, image.height, image.width)


def _picture(spec: FieldSpec, image: Image.Image, own: ImageShape) -> np.ndarray:
    """uint8 (C, H, W); own: the shape if the model does not fix it."""
    channels, height, width = (side or other for side, other in zip(spec.shape, own, strict=True))
    resampling = Image.Resampling.NEAREST if spec.kind == "mask" else Image.Resampling.BICUBIC
    levels = fit(image, ImageShape(channels, height, width), resampling)
    binary = spec.kind == "mask" and spec.class_count == BINARY
    return np.where(levels == WHITE, np.uint8(1), levels) if binary else levels


def check_values(what: str, spec: FieldSpec, rows: Tensor, instead: str = "") -> None:
    """Raises UserError where rows of a picture are neither bytes nor numbers in [-1, 1], or those of a mask no classes.

    what: names them. instead: what else a mask may hold, for the hint.
    """
    signed = rows.is_floating_point() and bool((rows.abs() <= 1).all())
    if spec.kind == "image" and rows.dtype != torch.uint8 and not signed:
        kind = "values outside of [-1, 1]" if rows.is_floating_point() else f"numbers of {rows.dtype}"
        raise UserError(f"{what}: a picture of {kind}", "give levels 0 to 255 as uint8, or floats in [-1, 1]")
    if spec.kind != "mask":
        return
    if rows.is_floating_point():
        raise UserError(f"{what}: a mask of {rows.dtype}", "give the numbers of classes as integers")
    lowest, highest, count = int(rows.min()), int(rows.max()), spec.class_count
    if lowest < 0 or (count is not None and highest >= count):
        known = "are from 0 on" if count is None else f"are 0 to {count - 1}"
        raise UserError(
            f"{what}: holds the class {lowest if lowest < 0 else highest}, but the classes that the model knows {known}",
            f"give a mask whose values are class numbers{instead}",
        )
