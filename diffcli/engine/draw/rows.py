"""Conditions that are rows of a data set: `diffcli fid` draws of a text model what the captions of its reference say.

Image i is told what row i tells, from the first row again where the rows run out; of several captions always the first. So
zero-shot scores of text-to-image models are told.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.data.images import ImageData
from diffcli.data.loader import on_device
from diffcli.engine.draw.translation import Prior
from diffcli.engine.model import Model
from diffcli.engine.score.sides import Side
from diffcli.tasks.conditioners.stored import IMAGE, TEXT


@dataclass(frozen=True)
class Rows:
    """The rows of a reference as conditions. prior: makes embeddings of images out of those of its texts."""

    name: str
    data: ImageData
    prior: Prior | None

    def fields(self, rows: range, seeds: Sequence[int], device: torch.device) -> dict[str, Any]:
        """What images `rows` are told, on a device; seeds: theirs, for the prior."""
        fields = on_device(self.data.read(self._places(rows)), self.data.specs, device)
        if self.prior is not None:
            fields[IMAGE] = self.prior(fields[TEXT], seeds)
        return fields

    def labels(self, otherwise: Tensor) -> Tensor:
        """The classes of the first n of them, int64 (n,); `otherwise` where they have none."""
        return otherwise if self.data.labels is None else self.data.labels[self._places(range(len(otherwise)))]

    def describe(self) -> str:
        """For reports."""
        told = " and ".join(name for name in self.data.specs if name != "label")
        return f"{told} of {self.name}, row by row" + (", through the prior" if self.prior and self.prior.model else "")

    def notes(self, n: int) -> list[str]:
        """What is worth saying where n images are drawn."""
        few = f"{self.name} has {len(self.data)} rows, so that {n} images are drawn of each of them more than once"
        return [few] if n > len(self.data) else []

    def _places(self, rows: range) -> Tensor:
        return torch.arange(rows.start, rows.stop) % len(self.data)


def told_fields(model: Model) -> frozenset[str]:
    """What the model must be told beside classes."""
    return model.task.reads - {"image", "label"}


def choose_rows(model: Model, source: Side, prior: Prior | None) -> Rows:
    """The rows of the reference `source`. Raises UserError where they do not hold what the model is told."""
    wanted = told_fields(model) - ({IMAGE} if prior else frozenset()) | ({TEXT} if prior else frozenset())
    there = [] if source.data is None else list(source.data.specs)
    for name in sorted(wanted):
        if source.data is None or name not in there:
            has = f"has only: {', '.join(there)}" if there else "is images alone"
            through = ", or --prior RUN to make it out of its clip_text" if name == IMAGE else ""
            raise UserError(
                f"--ref {source.name}: {model.path} draws what '{name}' of each row says, but the reference {has}",
                f"give a prepared set that holds it, or NAME:SPLIT{through}, or --guidance 0 to draw without",
            )
    assert source.data is not None
    return Rows(source.name, source.data.select(wanted), prior)
