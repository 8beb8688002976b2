"""Samples of a model conditioned on pictures, row by row with those of a reference, and the originals of these rows."""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from diffcli.config import UserError, quoted
from diffcli.data.datasets import Folder
from diffcli.engine.draw.request import Request
from diffcli.engine.draw.rows import row_fields
from diffcli.engine.draw.sample import sampled
from diffcli.engine.model import Model
from diffcli.engine.options.seeds import nth_seed
from diffcli.engine.score.pairs.followed import CONDITION, OTHER, named
from diffcli.engine.score.pairs.pair_scores import ORIGINAL
from diffcli.engine.score.pairs.reconstructed import originals
from diffcli.engine.score.sides import Side, data_side, over
from diffcli.fields import OVER_PIXELS, Batch, FieldSpec
from diffcli.tasks.super_resolution import SuperResolutionConfig


def pictured(model: Model) -> list[str]:
    """The conditions of a model that are pictures of the same scene as its images."""
    task, field = model.preset.task, model.preset.task.models
    if isinstance(task, SuperResolutionConfig):
        return [task.low]
    if task.kind != "diffusion" or field is None or model.task.reads[field].kind != "image":
        return []
    return [name for name in sorted(row_fields(model)) if model.task.reads[name].kind in OVER_PIXELS]


def paired(model: Model, ref: str | None) -> Side:
    """The reference of pairs: --ref, else the split `test` of the model's own data, with the conditions derived of its images.

    Raises UserError if its rows hold no images of the model's size.
    """
    reference = deriving(model, fitted(model, originals(model, ref), ref))
    field = model.preset.task.models
    spec = reference.fields.get(field or "")
    wanted = model.task.reads[field or ""]
    if spec is None or reference.data is None:
        problem = f"--ref {reference.name}: has no rows with the conditions of {model.path} and their originals"
        place = Path(reference.name).expanduser()
        prepared = f"diffcli prep-data folder {quoted(place)} --out DIR --size {min(wanted.sides[-2:])}, then --ref DIR"
        raise UserError(problem, prepared if place.is_dir() else "give a prepared set or NAME:SPLIT of a preset's data")
    if spec.sides != wanted.sides:
        shapes = " and ".join("x".join(map(str, each.sides)) for each in (spec, wanted))
        problem = f"--ref {reference.name}: its images and those of {model.path} differ in shape ({shapes})"
        raise UserError(problem, "give images of the model's own shape, such as the test split of its own data")
    return reference


def fitted(model: Model, reference: Side, ref: str | None) -> Side:
    """The same reference; a plain folder of pictures is read as in training if all conditions are computed from the pictures.

    They get the size and the channels of the model's own data.
    """
    path, own = Path(ref or "").expanduser(), model.preset.data
    if ref is None or reference.data is not None or not path.is_dir() or not own.derived:
        return reference
    return data_side(str(path), Folder(root=path, size=own.size, channels=own.channels), "train")


def deriving(model: Model, reference: Side) -> Side:
    """The same reference, with the fields that the model's own data derive from images, if it lacks them."""
    data = reference.data
    if data is None or "image" not in reference.fields:
        return reference
    image = reference.fields["image"]
    missing = tuple(each for each in model.preset.data.derived if not each.specs(image).keys() <= data.specs.keys())
    return reference if not missing else over(reference, data.deriving(missing))


class Maker(Protocol):
    """Makes images from the rows of a reference."""

    @property
    def reads(self) -> frozenset[str]:
        """Fields of the rows beside the originals."""

    def images(self, rows: range, found: Batch) -> Tensor:
        """uint8 (B, C, H, W) on the model's device. found: the rows of the reference, `reads` among their fields."""


@dataclass(frozen=True)
class DrawnRows:
    """Samples of a request of as many images as the reference has rows.

    mean_of: samples of each row whose mean, rounded to bytes, is the image; sample k of row i has the seed seed + k n + i.
    """

    req: Request
    mean_of: int
    reads: ClassVar[frozenset[str]] = frozenset()

    def images(self, rows: range, found: Batch) -> Tensor:
        return averaged(self.req, rows, self.mean_of)

    def __str__(self) -> str:
        what = f"means of {self.mean_of} samples" if self.mean_of > 1 else "samples"
        return f"{what} of {self.req.model.path}, row by row"


def pairs(make: Maker, model: Model, reference: Side, conditions: Collection[str]) -> Side:
    """Images of the rows of a reference, with their originals and the named conditions.

    `other_condition` is the condition of the row half a set further.
    """
    assert reference.read is not None
    assert reference.data is not None
    field, size, data = model.preset.task.models or "image", reference.size or 0, reference.data
    others = data.select(set(conditions))

    def read(spans: Sequence[range], fields: Collection[str]) -> Iterator[Batch]:
        assert reference.read is not None
        needed = {field, *conditions, *make.reads, *({"label"} & set(fields))}
        for rows, found in zip(spans, reference.read(spans, needed), strict=True):
            made: dict[str, Any] = {"image": make.images(rows, found), ORIGINAL: found[field].to(model.device)}
            made |= {"label": found["label"]} if "label" in needed & found.keys() else {}
            if conditions:
                further = (torch.arange(rows.start, rows.stop) + size // 2) % size
                shuffled = others.read(further)
                for name in conditions:
                    made |= {named(CONDITION, name): found[name], named(OTHER, name): shuffled[name]}
            yield made

    specs: dict[str, FieldSpec] = dict.fromkeys(("image", ORIGINAL), reference.fields[field])
    for name in conditions:
        specs |= dict.fromkeys((named(CONDITION, name), named(OTHER, name)), reference.fields[name])
    specs |= {"label": reference.fields["label"]} if "label" in reference.fields else {}
    return Side(str(make), size, specs, read, reference.classes)


@torch.no_grad()
def averaged(req: Request, rows: range, count: int) -> Tensor:
    """Images `rows` of a request, each the mean of `count` samples: uint8 (B, C, H, W) on the model's device."""
    if count == 1:
        return sampled(req, rows)
    total = sum(sampled(dataclasses.replace(req, seed=nth_seed(req.seed, k * req.n)), rows).int() for k in range(count))
    assert isinstance(total, Tensor)
    return (total / count).round().to(torch.uint8)
