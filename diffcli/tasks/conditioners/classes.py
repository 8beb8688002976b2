"""Class labels as a condition."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from diffcli.config import UserError
from diffcli.fields import Batch
from diffcli.networks.conditioning import Conditioning, CondShape
from diffcli.noise import Noise
from diffcli.tasks.conditioners.conditioner import UNSEEDED, Conditioner, ConditionerConfig
from diffcli.transfer import moved


class ClassConditioner(Conditioner):
    """An embedding row for each class and one more, the last, for "no class"; a vector, or as many tokens as are asked for."""

    fields = ("label",)

    def __init__(self, num_classes: int, dim: int, tokens: int | None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.dim = dim
        self.tokens = tokens
        self.shape = CondShape(vector=dim) if tokens is None else CondShape(tokens=dim)
        self.embedding = nn.Embedding(num_classes + 1, dim * (tokens or 1))

    def check(self, batch: Batch) -> None:
        """A label outside 0..num_classes-1 is the user's mistake; asking a GPU tensor would stall, so look before."""
        if "label" not in batch:
            raise UserError(
                f"a class conditioner reads the field 'label', but the data has only: {', '.join(sorted(batch))}",
                "choose data with class labels, or take the class conditioner out: --set task.conditioners=[]",
            )
        label = batch["label"]
        if label.device.type != "cpu" or not label.numel():
            return
        low, high = int(label.min()), int(label.max())
        if low < 0 or high >= self.num_classes:
            raise UserError(
                f"class label {low if low < 0 else high} is outside 0..{self.num_classes - 1} "
                f"(task.conditioners: class, num_classes {self.num_classes})",
                f"use a label from 0 to {self.num_classes - 1}, or set num_classes to at least {high + 1}",
            )

    def forward(self, batch: Batch, keep: Tensor, like: Tensor, noise: Noise = UNSEEDED) -> Conditioning:
        """A vector (B, dim), or tokens (B, tokens, dim). batch["label"]: (B,) int64 in 0..num_classes-1."""
        self.check(batch)
        label = moved(batch["label"], keep.device)
        rows = self.embedding(torch.where(keep, label, self.num_classes))
        if self.tokens is None:
            return Conditioning(vector=rows)
        return Conditioning(tokens=rows.unflatten(1, (self.tokens, self.dim)))


class ClassConditionerConfig(ConditionerConfig):
    """Class labels, joined to the time embedding or told in tokens; rows dropped in training teach the null class."""

    kind: Literal["class"] = "class"
    num_classes: int = Field(1000, ge=1)
    dim: int = Field(256, ge=1)
    tokens: int | None = Field(None, ge=1, description="tokens a class, for blocks that attend to them; null: a vector")

    def build(self) -> ClassConditioner:
        return ClassConditioner(self.num_classes, self.dim, self.tokens)
