"""The fields of a sample, each declared by a `FieldSpec`, and all that follows from the kind of a field alone.

Data sets say which fields they have, tasks and conditioners which they read; `check_fields` compares the two before any step.

    kind     shape of one sample   on its way from the data to a batch      mirrored
    image    (C, H, W)             uint8 -> float32 in [-1, 1]              yes
    clip     (C, T, H, W)          uint8 -> float32 in [-1, 1]              yes
    mask     (1, H, W)             class numbers -> int64                   yes
    classes  ()                    as they are: int64                       no
    vector   (D,)                  as they are: float32                     no
    tokens   (L, D)                as they are: float32, 0 where padded     no
    text     ()                    as they are: strings                     no
    number   ()                    as they are                              no
    latent   (C, h, w)             as they are: float16 or float32          no
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from pydantic import TypeAdapter
from torch import Tensor

from diffcli.config import UserError

FieldKind = Literal["image", "clip", "mask", "classes", "vector", "tokens", "text", "number", "latent"]

PICTURES: frozenset[FieldKind] = frozenset({"image", "clip"})  # fields of levels, uint8 at files
OVER_PIXELS: frozenset[FieldKind] = PICTURES | {"mask"}  # fields whose last axis runs from left to right
WHOLE: frozenset[FieldKind] = frozenset({"mask", "classes"})  # fields of int64 numbers
LATENT = "latent"  # the field that holds what a first stage makes of the image
SEQUENCE = 77  # tokens where only their width is known: those of CLIP
MIDDLE = 127.5  # the level between black and white

Batch = Mapping[str, Any]
"""Fields by name, tensors (B, ...) or lists of B strings; in training also index, position and stream, each (B,) int64."""

V = TypeVar("V")


class FieldSpec(NamedTuple):
    """One field. shape: of one sample, None where samples or sets differ. classes: of classes and masks, None: not known."""

    kind: FieldKind
    shape: tuple[int | None, ...] = ()
    classes: tuple[str, ...] | int | None = None

    @property
    def sides(self) -> tuple[int, ...]:
        """The shape with 1 for each axis that is not known."""
        return tuple(1 if side is None else side for side in self.shape)

    @property
    def fixed(self) -> bool:
        """Whether there is one length for every axis alone."""
        return None not in self.shape

    @property
    def class_count(self) -> int | None:
        """The number of classes, if known."""
        return len(self.classes) if isinstance(self.classes, tuple) else self.classes


Specs = Mapping[str, FieldSpec]
"""Fields by name."""


class Remedies(NamedTuple):
    """What to type if a field does not fit, for each way of not fitting. `{found}` stands for the value in the data, in `shape`
    `{channels}` for the channels of pictures."""

    lacking: str = "choose data that have it, or leave out what reads it"
    kind: str = "choose data whose field is of that kind, or leave out what reads it"
    shape: str = "choose data whose field has that shape"
    classes: str = "choose data with that many classes at most"


def to_float(levels: Tensor) -> Tensor:
    """uint8 0..255 -> float32 -1..1."""
    return levels.float().div_(MIDDLE).sub_(1)


def to_levels(values: Tensor) -> Tensor:
    """Float in [-1, 1] -> uint8, rounded to the nearest level, clamped outside; the exact inverse of `to_float`."""
    return ((values.float() + 1) * MIDDLE).round().clamp(0, 255).to(torch.uint8)


def converted(value: V, spec: FieldSpec) -> V | Tensor:
    """A field as it is read, in the form that a batch has; see the module. Pictures that are no bytes stay as they are."""
    if not isinstance(value, Tensor):
        return value
    if spec.kind in PICTURES and value.dtype == torch.uint8:
        return to_float(value)
    return value.long() if spec.kind in WHOLE else value


def mirrored(value: V, spec: FieldSpec, coin: Tensor) -> V | Tensor:
    """The field with left and right exchanged in the rows whose coin, (B,) bool on any device, is True, where it has sides."""
    if spec.kind not in OVER_PIXELS or not isinstance(value, Tensor):
        return value
    rows = coin.to(value.device, non_blocking=True).view(-1, *[1] * (value.ndim - 1))
    return torch.where(rows, value.flip(-1), value)


def whole(spec: FieldSpec, size: tuple[int, ...]) -> FieldSpec:
    """The field with a length for every axis. size: (H, W) of the images that it may lie over; tokens: CLIP's 77."""
    shape = spec.shape
    if spec.kind in OVER_PIXELS:
        tail = zip(shape[-len(size) :], size, strict=True)
        shape = *shape[: -len(size)], *(given if side is None else side for side, given in tail)
    fallback = SEQUENCE if spec.kind == "tokens" else 1
    return spec._replace(shape=tuple(fallback if side is None else side for side in shape))


def stub(spec: FieldSpec, n: int, device: torch.device | str) -> Tensor | list[str]:
    """n rows of a field that say nothing: zeros or empty texts, in the form that a batch has. Unknown axes have length 1."""
    if spec.kind == "text":
        return [""] * n
    dtype = torch.int64 if spec.kind in WHOLE else torch.float32
    return torch.zeros(n, *spec.sides, dtype=dtype, device=device)


def joined(batches: Sequence[Batch]) -> dict[str, Any]:
    """Batches of the same fields as one, one after the other."""
    whole: dict[str, Any] = {}
    for name, first in batches[0].items():
        values: list[Any] = [batch[name] for batch in batches]
        whole[name] = torch.cat(values) if isinstance(first, Tensor) else [text for value in values for text in value]
    return whole


def check_classes(numbers: Tensor, spec: FieldSpec, who: str) -> None:
    """Raises UserError where numbers on the CPU are none of the classes of a field. who: the key or flag that gave them."""
    count = spec.class_count
    if count is None or not numbers.numel():
        return
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or high >= count:
        problem = f"{who} holds the class {low if low < 0 else high}, outside of 0 to {count - 1}"
        raise UserError(problem, f"use classes from 0 to {count - 1}")


def check_fields(reads: Specs, has: Specs, who: str, remedies: Mapping[str, Remedies] | None = None) -> None:
    """Raises UserError where a field that is read is lacking, or of another kind or shape, or of too many classes.

    who: the key of a preset that reads them, as `task.conditioners.0 (class)`. remedies: the hints, by field.
    """
    for name, wanted in reads.items():
        hints = (remedies or {}).get(name, Remedies())
        if name not in has:
            only = ", ".join(sorted(has)) or "no field at all"
            raise UserError(f"{who} reads the field '{name}', but the data has only: {only}", hints.lacking)
        found = has[name]
        if found.kind != wanted.kind:
            problem = f"{who} reads the field '{name}' as {wanted.kind}, but the data's is of kind {found.kind}"
            raise UserError(problem, hints.kind.format(found=found.kind))
        if not fits(wanted.shape, found.shape):
            if wanted.kind in ("vector", "tokens"):
                problem = f"{who} reads '{name}' {wanted.shape[-1]} wide, but the data's is {found.shape[-1]} wide"
                raise UserError(problem, hints.shape.format(found=found.shape[-1]))
            problem = f"{who} reads '{name}' of shape {listed(wanted.shape)}, but the data's is {listed(found.shape)}"
            raise UserError(problem, hints.shape.format(found=listed(found.shape), channels=found.shape[0]))
        known, there = wanted.class_count, found.class_count
        if known is not None and there is not None and there > known:
            problem = f"{who} knows {known} classes of '{name}', but the data has {there}"
            raise UserError(problem, hints.classes.format(found=there))


def fits(wanted: tuple[int | None, ...], found: tuple[int | None, ...]) -> bool:
    """Whether two shapes can be one: as many axes, equally long where both are known. No axes at all: nothing is known."""
    if not wanted or not found:
        return True
    return len(wanted) == len(found) and all(a == b or None in (a, b) for a, b in zip(wanted, found, strict=True))


Fault = tuple[str, tuple[int, int]]
"""The problem with images of a size, and the nearest (height, width) that fits."""


def misfit(size: Sequence[int], factor: int, what: str) -> Fault | None:
    """The problem with images of this height and width if `factor` pixels along an edge become one position; None: there is none.

    And the nearest size that fits, (height, width). what: the factor's name, in `30x32 pixels (HxW), which WHAT does not divide`.
    """
    if all(side and side % factor == 0 for side in size):
        return None
    height, width = (max(1, round(side / factor)) * factor for side in size)
    return f"{size[0]}x{size[1]} pixels (HxW), which {what} does not divide", (height, width)


def typed(size: tuple[int, int]) -> str:
    """A height and width as a preset has them: 32 for a square, else [24, 32]."""
    return str(size[0] if size[0] == size[1] else list(size))


def check_buckets(sizes: Sequence[tuple[int, int]], fault_of: Callable[[Sequence[int]], Fault | None]) -> None:
    """Raises ValueError where one of data.buckets, (height, width) each, does not fit; fault_of: see `misfit`."""
    for size in sizes:
        if fault := fault_of(size):
            raise ValueError(f"data.buckets holds {fault[0]}; put {list(fault[1])} in its place in data.buckets")


def listed(shape: tuple[int | None, ...]) -> str:
    """A shape as errors name it: 3x32x32, ? where it is not known."""
    return "x".join("?" if side is None else str(side) for side in shape)


def to_record(specs: Specs) -> dict[str, Any]:
    """Specs as values of JSON."""
    return {name: spec._asdict() for name, spec in specs.items()}


def from_record(record: Mapping[str, Any]) -> dict[str, FieldSpec]:
    """The inverse of `to_record`, for what JSON gives back. Raises ValueError where it is no record of fields."""
    return RECORD.validate_python(record)


RECORD = TypeAdapter(dict[str, FieldSpec])
