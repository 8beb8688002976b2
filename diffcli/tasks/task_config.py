"""The contract of configs for `task` of a preset: they build the task and check the rest of the preset."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Self

from diffcli.config import Config, UserError
from diffcli.fields import FieldKind, FieldSpec, Specs
from diffcli.tasks.guide import Drawing
from diffcli.tasks.task import Task


class TaskConfig(Config):
    """Builds a task. The defaults are those of a task that draws no images."""

    kind: str

    @property
    def noun(self) -> str:
        """The name of its checkpoints in messages: a diffusion model, an autoencoder."""
        return with_article(self.kind)

    @property
    def models(self) -> str | None:
        """The field of the data that the task models or classifies, whose shape it has; None if there is none."""
        return None

    @property
    def led_by(self) -> tuple[str, ...]:
        """The fields of the data that lie over what it models and lead it."""
        return ()

    @abstractmethod
    def build(self, specs: Specs) -> Task:
        """The task for data of these fields, its weights from torch's current generator.

        Raises UserError if the modelled field is missing, or of an unsupported kind or shape.
        """

    def check_drawing(self, drawing: Drawing) -> Iterator[str]:
        """Yields "what is wrong; what to do" for each setting of sampling that does not fit this task."""
        yield from drawing.check_unguided(self.kind)
        yield from drawing.check_no_guide(self.kind)
        yield from drawing.check_no_prior()
        yield from drawing.check_variance(learned=False)

    def check_buckets(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Raises ValueError where the network cannot take images of one of these sizes (height, width) of data.buckets."""

    def advice(self) -> list[str]:
        """What is allowed but probably not meant, one sentence each."""
        return []

    def resolved(self) -> Self:
        """The same config with absolute paths of local folders."""
        return self

    def for_drawing(self) -> Self:
        """The same config for a trained model, which is told what training had stored beside its images."""
        return self

    def trained_on(self, images: int) -> Self:
        """The same config with the values that follow from the length of the training set, when a run begins."""
        return self

    @property
    def leaves_classes_out(self) -> bool:
        """Whether the number of its classes is taken from the data."""
        return False

    def of_classes(self, count: int) -> Self:
        """The same config with this number of classes, if it leaves the number out."""
        return self

    def valueless(self) -> Self:
        """The same config without operations on values, for a plan, whose tensors are on the meta device."""
        return self


def with_article(kind: str) -> str:
    """The kind of a task as a noun: a diffusion, an autoencoder."""
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def modelled(
    specs: Specs, field: str, kinds: Sequence[FieldKind], beside: Callable[[FieldSpec], str] = lambda spec: ""
) -> FieldSpec:
    """The field of the data that the key `task.field` names. Raises UserError if it is missing or of another kind than these.

    beside: what a hint with another field must add.
    """
    fitting = sorted((n for n, spec in specs.items() if spec.kind in kinds), key=lambda n: beside(specs[n]) != "")
    hint = (
        f"use --set task.field={fitting[0]}{beside(specs[fitting[0]])}"
        if fitting
        else f"choose data with a field of kind {' or '.join(kinds)}"
    )
    if field not in specs:
        raise UserError(
            f"task.field is '{field}', but the data has only: {', '.join(sorted(specs)) or 'no field'}", hint
        )
    if specs[field].kind not in kinds:
        raise UserError(f"task.field is '{field}', which is of kind {specs[field].kind}", hint)
    return specs[field]
