"""`--class ID|NAME|all|random`: class labels as conditions."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from diffcli.config import Note, UserError
from diffcli.engine.draw.conditions import Conditions
from diffcli.engine.draw.guides import class_count
from diffcli.engine.model import Model
from diffcli.engine.options.record_checks import class_id
from diffcli.fields import Batch, FieldSpec, Specs
from diffcli.noise import Domain, Noise


@dataclass(frozen=True)
class Labels(Conditions):
    """Some classes in turn, or a random one for each image, from its seed. each: one image of each class was requested."""

    which: tuple[int, ...] | Literal["random"]
    count: int  # of all classes
    names: tuple[str, ...] | None = None
    each: bool = False
    among: tuple[int, ...] = ()  # classes to draw random ones from; none: all

    @property
    def specs(self) -> Specs:
        return {"label": FieldSpec("classes", (), self.names or self.count)}

    @property
    def images(self) -> int | None:
        return len(self.which) if self.each else None

    def labels(self, rows: range, seeds: Sequence[int]) -> Tensor:
        if self.which == "random":
            among = torch.tensor(self.among or range(self.count))
            return among[(Noise(seeds, torch.device("cpu"), Domain.LABEL).uniform() * len(among)).long()]
        return torch.tensor([self.which[i % len(self.which)] for i in rows], dtype=torch.int64)

    def fields(self, rows: range, seeds: Sequence[int]) -> Batch:
        return {"label": self.labels(rows, seeds)}

    def captions(self, rows: range, seeds: Sequence[int]) -> list[str]:
        names = dict(enumerate(self.names or ()))
        return [names.get(i, f"class {i}") for i in self.labels(rows, seeds).tolist()]

    def describe(self, rows: range, seeds: Sequence[int]) -> dict[str, Any]:
        return {"labels": self.labels(rows, seeds).tolist()}


def choose_labels(
    model: Model, which: int | str | tuple[int | str, ...] | None, interpolate: int | None, models: Mapping[str, Model]
) -> Labels | None:
    """The labels of --class, or of several classes in turn; None where neither the model nor a classifier that guides it has any.

    models: those that guide. Raises UserError for a class that there is not, or one that would change on a way between images.
    """
    knowing = model if class_count(model.preset.task) else models.get("classifier", model)
    count, names = class_count(knowing.preset.task), knowing.classes
    if count is None:
        if which is not None:
            raise UserError(f"--class {which}: {model.path} is not class-conditional", "leave --class out")
        return None
    if interpolate is not None and (which in (None, "all", "random") or (isinstance(which, tuple) and len(which) > 1)):
        raise UserError(
            f"--interpolate {interpolate} with --class {which or 'all'}: the class must not change on the way",
            "name one, for example --class 0",
        )
    named = min(count, len(names or range(count)))  # of a model with room for more classes than its data had
    trained = tuple(number for number in range(named) if number not in knowing.untrained)
    if which is None or which == "all":
        return Labels(trained, named, names, each=which == "all")
    if which == "random":
        return Labels("random", named, names, among=trained)
    if isinstance(which, tuple):
        known = [name.lower() for name in names or ()]
        for each in which:
            if each in ("all", "random") and each not in known:
                raise UserError(
                    f"--class {each} among several: it stands for itself", f"give {each} alone, not in a list"
                )
        return Labels(_chosen(which, names, count, knowing), count, names, each=True)
    return Labels(_chosen((which,), names, count, knowing), count, names)


def _chosen(which: Sequence[int | str], names: tuple[str, ...] | None, count: int, model: Model) -> tuple[int, ...]:
    """The numbers of classes; notes those without an image in the training data."""
    found = tuple(class_id(each, names, count) for each in which)
    for each, number in zip(which, found, strict=True):
        if number in model.untrained:
            warnings.warn(f"--class {each}: {model.path} was trained on no image of that class", Note, stacklevel=2)
    return found
