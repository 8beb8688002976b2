"""Enlarged pictures of a one-step network, each in the size that follows from its picture."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from diffcli import __version__
from diffcli.config import UserError, quoted
from diffcli.data.loader import on_device
from diffcli.engine.distributed import Group
from diffcli.engine.draw.conditions import Conditions
from diffcli.engine.draw.given import Value, choose_given
from diffcli.engine.draw.pictured.following import Size, picture_conditions
from diffcli.engine.draw.sampling import SampleOptions, check_one_step
from diffcli.engine.model import Model
from diffcli.fields import to_levels
from diffcli.tasks.super_resolution import SuperResolutionTask


@dataclass(frozen=True)
class EnlargedPictures:
    """An ImageRequest. sizes: that of image i is number i mod K."""

    model: Model
    conditions: Conditions
    n: int
    batch_size: int
    sizes: tuple[Size, ...]
    labels: Tensor | None = None

    @property
    def task(self) -> SuperResolutionTask:
        assert isinstance(self.model.task, SuperResolutionTask)
        return self.model.task

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of image 0: channels, height and width."""
        return self.task.spec.sides[0], *self.sizes[0]

    @property
    def parts(self) -> Iterator[tuple["EnlargedPictures", range]]:
        """Stretches of images of one size; each is drawn by this request."""
        for _, stretch in groupby(range(self.n), lambda i: self.sizes[i % len(self.sizes)]):
            rows = list(stretch)
            yield self, range(rows[0], rows[-1] + 1)

    @torch.no_grad()
    def images(self, rows: range) -> Tensor:
        """The images `rows`, which are of one size: uint8 (B, C, H, W) on the model's device."""
        fields = on_device(self.conditions.fields(rows, list(rows)), self.conditions.specs, self.model.device)
        return to_levels(self.task.enlarged(fields[self.task.low]))

    def agree(self, group: Group) -> None:
        """Nothing is counted."""

    def captions(self) -> list[str]:
        raise UserError(f"--captions: images of {self.model.path} have no prompt or class", "leave --captions out")

    def describe(self) -> dict[str, Any]:
        """The sidecar."""
        conditions = self.conditions.describe(range(self.n), list(range(self.n)))
        return self.model.describe() | {"n": self.n, "nfe": 1, "version": __version__} | conditions


def enlargements(
    model: Model,
    options: SampleOptions,
    given: Mapping[str, Value] | None = None,
) -> EnlargedPictures:
    """The pictures of --image, or those that are given, enlarged. Raises UserError."""
    check_one_step(options, f"{model.path} is a network that enlarges a picture in one step")
    gathered = picture_conditions(model, options, given or {})
    conditions = choose_given(model, gathered.values, None)
    if conditions is None:
        raise UserError(
            f"{model.path}: enlarges pictures, and none is given",
            f"give one: diffcli sample --ckpt {quoted(model.path)} --image FILE",
        )
    count = conditions.images if options.n is None else options.n
    return EnlargedPictures(
        model, conditions, count, options.batch_size, gathered.sizes or (model.preset.data.shape[1:],)
    )
