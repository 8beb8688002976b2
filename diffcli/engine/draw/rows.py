"""Conditions that are rows of a data set: `diffcli fid` gives a text model the captions of its reference.

Image i takes row i, starting again after the last row, and the first of several captions: the protocol of zero-shot
scores of text-to-image models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.data.images import ImageData
from diffcli.engine.draw.conditions import Conditions, condition_specs
from diffcli.engine.draw.translation import Prior
from diffcli.engine.model import Model
from diffcli.fields import Batch, FieldSpec, Specs
from diffcli.tasks.conditioners.frame_rate import FPS
from diffcli.tasks.conditioners.stored import IMAGE, TEXT


class Reference(Protocol):
    """The reference of a score. data: its rows, if they have more than images."""

    @property
    def name(self) -> str: ...

    @property
    def data(self) -> ImageData | None: ...


@dataclass(frozen=True)
class Rows(Conditions):
    """The rows of a data set. given: the fields that they provide. prior: makes embeddings of images from those of texts."""

    name: str
    data: ImageData
    given: Specs
    prior: Prior | None = None

    @property
    def specs(self) -> Specs:
        return self.given

    def fields(self, rows: range, seeds: Sequence[int]) -> Batch:
        found: dict[str, Any] = dict(self.data.read(self._places(rows)))
        if self.prior is not None:
            found[IMAGE] = self.prior(found[TEXT], seeds).cpu()
        return {name: found[name] for name in self.given}

    def labels(self, rows: range, seeds: Sequence[int]) -> Tensor | None:
        return self.data.labels[self._places(rows)] if "label" in self.given and self.data.labels is not None else None

    def describe(self, rows: range, seeds: Sequence[int]) -> dict[str, Any]:
        found = self.labels(rows, seeds)
        return {
            **({} if found is None else {"labels": found.tolist()}),
            "conditions": str(self),
            "prior": None if self.prior is None else self.prior.describe(),
        }

    def notes(self, n: int) -> list[str]:
        few = f"{self.name} has {len(self.data)} rows, so {n} images use each of them more than once"
        return [few] if n > len(self.data) else []

    def __str__(self) -> str:
        """For reports."""
        fields = " and ".join(name for name in self.data.specs if name != "label")
        return f"{fields} of {self.name}, row by row" + (
            ", through the prior" if self.prior and self.prior.model else ""
        )

    def _places(self, rows: range) -> Tensor:
        return torch.arange(rows.start, rows.stop) % len(self.data)


def row_fields(model: Model) -> frozenset[str]:
    """The fields that the rows of a reference must have for the model: its conditions beside classes and a frame rate."""
    return frozenset(model.task.reads) - {model.preset.task.models, "label", FPS}


def choose_rows(model: Model, reference: Reference, prior: Prior | None, labelled: bool) -> Rows:
    """The rows of the reference. Raises UserError where they lack a condition of the model.

    labelled: whether to take their labels too, where they have any.
    """
    wanted = row_fields(model) - ({IMAGE} if prior else frozenset()) | ({TEXT} if prior else frozenset())
    there = [] if reference.data is None else list(reference.data.specs)
    for name in sorted(wanted):
        if name not in there:
            has = f"has only: {', '.join(there)}" if there else "is images alone"
            through = ", or --prior RUN to make it out of its clip_text" if name == IMAGE else ""
            raise UserError(
                f"--ref {reference.name}: {model.path} is conditioned on '{name}' of each row, but the reference {has}",
                f"give a prepared set that holds it, or NAME:SPLIT{through}, or --guidance 0 to draw without",
            )
    data = reference.data
    assert data is not None
    specs = {name: spec for name, spec in condition_specs(model).items() if name in row_fields(model)}
    if labelled and data.labels is not None:
        specs["label"] = FieldSpec("classes", (), data.classes)
    return Rows(reference.name, data.select(wanted).knowing(specs), specs, prior)
