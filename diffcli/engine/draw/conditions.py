"""The interface of conditions: the fields under which images are drawn.

Labels, prompts, rows of a data set, files and images of an earlier stage implement it; a request treats them alike.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffcli.config import UserError
from diffcli.engine.model import Model
from diffcli.fields import OVER_PIXELS, Batch, Specs, stub, whole
from diffcli.tasks.conditioners.conditioner import Conditioner
from diffcli.tasks.control.controlled_task import ControlledTask


class Conditions(ABC):
    """Endless rows of fields: row i is what image i of a request is drawn under.

    A row depends on its number and on the seed of its image alone, so neither batches nor processes change it.
    """

    @property
    @abstractmethod
    def specs(self) -> Specs:
        """The fields that it provides."""

    @property
    def images(self) -> int | None:
        """The number of images that show each requested row once; None if no single rows were requested."""
        return None

    @abstractmethod
    def fields(self, rows: range, seeds: Sequence[int]) -> Batch:
        """The fields of `rows` on the CPU, in the form of data sets: pictures as uint8. seeds: of these images."""

    def labels(self, rows: range, seeds: Sequence[int]) -> Tensor | None:
        """The field label of `rows`, int64, without the cost of the others; None where it is not provided."""
        return None

    def captions(self, rows: range, seeds: Sequence[int]) -> list[str] | None:
        """Captions of `rows`; None if there are no words for them."""
        return None

    def describe(self, rows: range, seeds: Sequence[int]) -> dict[str, Any]:
        """Entries for the sidecar, from which `rows` can be made again; JSON values."""
        return {}

    def kept(self, made: Tensor, rows: range) -> Tensor:
        """Finished images `rows`, uint8 (B, C, *S), with the parts that the conditions give as they were given."""
        return made

    def notes(self, n: int) -> list[str]:
        """Warnings about n images under these conditions."""
        return []


@dataclass(frozen=True)
class Blank(Conditions):
    """Rows without content, for networks that evaluate only their unconditional branch."""

    blank: Specs

    @property
    def specs(self) -> Specs:
        return self.blank

    def fields(self, rows: range, seeds: Sequence[int]) -> Batch:
        return {name: stub(spec, len(rows), "cpu") for name, spec in self.blank.items()}


def blanks(model: Model, found: Sequence[Conditions], null_alone: bool) -> list[Conditions]:
    """Blank rows for the fields that the model reads and `found` lacks, which only the unconditional branch may read.

    null_alone: whether only the unconditional branch runs. Raises UserError if another branch needs a field.
    """
    provided = {name for condition in found for name in condition.specs}
    missing = {name: spec for name, spec in condition_specs(model).items() if name not in provided}
    needed = (always_told(model) & missing.keys() if null_alone else missing.keys()) - unheeded(model)
    if needed:
        name = next(name for name in missing if name in needed)
        instead = "" if name in always_told(model) else ", or draw without any condition: --guidance 0"
        raise UserError(
            f"{model.path}: draws what the condition '{name}' says, and there is none",
            f"{how_to_give(model, name)}{instead}",
        )
    size = model.preset.data.shape[1:]
    return [Blank({name: whole(spec, size) for name, spec in missing.items()})] if missing else []


def how_to_give(model: Model, name: str) -> str:
    """What to type to give a condition, for hints."""
    specs = condition_specs(model)
    if specs[name].kind not in OVER_PIXELS:
        return f"give '{name}'"
    alone = sum(spec.kind in OVER_PIXELS for spec in specs.values()) == 1
    return f"give the picture: --field {name}=FILE" + (", or alone --image FILE" if alone else "")


def condition_specs(model: Model) -> Specs:
    """The fields that a model is conditioned on, beside classes."""
    apart = (model.preset.task.models, "label")
    return {name: spec for name, spec in model.task.reads.items() if name not in apart}


def enlargement(model: Model, name: str) -> int:
    """The factor by which a model enlarges the picture of a field, from the sizes in training.

    1 if both have the same size, if the factor is not whole, or if the field has one fixed size.
    """
    wanted, made = model.task.reads.get(name), model.preset.task.models
    if wanted is None or wanted.kind != "image" or wanted.fixed or made is None:
        return 1
    for specs in (
        model.trained_on,
        model.preset.specs,
    ):  # a set of several sizes has no size, but its preset may have one
        if made in specs and name in specs and specs[made].fixed and specs[name].fixed:
            pairs = list(zip(specs[made].sides[-2:], specs[name].sides[-2:], strict=True))
            factors = {large // small for large, small in pairs if large % small == 0}
            exact = all(large % small == 0 for large, small in pairs)
            return factors.pop() if exact and len(factors) == 1 else 1
    return 1


def always_told(model: Model) -> frozenset[str]:
    """The fields that both branches of guidance read, such as the picture that an upscaler enlarges."""
    conditioners = [each for each in model.task.modules() if isinstance(each, Conditioner) and not each.droppable]
    return frozenset(name for each in conditioners for name in each.reads)


def unheeded(model: Model) -> frozenset[str]:
    """The fields that a model reads and nothing looks at: pictures that count 0."""
    return model.task.idle if isinstance(model.task, ControlledTask) else frozenset()


def check_distinct(conditions: Iterable[Conditions]) -> None:
    """Raises UserError where two conditions provide one field."""
    seen: set[str] = set()
    for condition in conditions:
        for name in sorted(seen & condition.specs.keys()):
            raise UserError(f"the condition '{name}' is given twice", "give it once")
        seen |= condition.specs.keys()
