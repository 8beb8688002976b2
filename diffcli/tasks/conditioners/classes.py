"""Class labels as a condition."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from diffcli.config import UserError
from diffcli.fields import Batch, FieldSpec, Remedies
from diffcli.networks.conditioning import Conditioning, CondShape
from diffcli.noise import Noise
from diffcli.tasks.conditioners.conditioner import UNSEEDED, Conditioner, ConditionerConfig
from diffcli.transfer import moved


class ClassConditioner(Conditioner):
    """An embedding row for each class and a last one for "no class"; gives a vector, or a number of tokens."""

    kind = "class"

    def __init__(self, num_classes: int, dim: int, tokens: int | None) -> None:
        super().__init__()
        self.reads = {"label": FieldSpec("classes", (), num_classes)}
        self.num_classes = num_classes
        self.dim = dim
        self.tokens = tokens
        self.shape = CondShape(vector=dim) if tokens is None else CondShape(tokens=dim)
        self.embedding = nn.Embedding(num_classes + 1, dim * (tokens or 1))

    def remedies(self, key: str) -> Remedies:
        return Remedies(
            lacking="choose data with class labels, or take the class conditioner out: "
            "--set task.conditioners=[] --set task.drop_condition=0 --set guidance=1",
            classes=f"use --set {key}.num_classes={{found}}, or choose data with {self.num_classes} classes at most",
        )

    def forward(self, batch: Batch, keep: Tensor, like: Tensor, noise: Noise = UNSEEDED) -> Conditioning:
        """A vector (B, dim), or tokens (B, tokens, dim). batch["label"]: (B,) int64 in 0..num_classes-1."""
        label = moved(batch["label"], keep.device)
        rows = self.embedding(torch.where(keep, label, self.num_classes))
        if self.tokens is None:
            return Conditioning(vector=rows)
        return Conditioning(tokens=rows.unflatten(1, (self.tokens, self.dim)))


class ClassConditionerConfig(ConditionerConfig):
    """Class labels, added to the time embedding or as tokens; labels that are dropped in training teach the null class."""

    kind: Literal["class"] = "class"
    num_classes: int | None = Field(
        None, ge=1, description="number of classes, labels 0 to this - 1; null: as many as the data have"
    )
    dim: int = Field(256, ge=1, description="width of the vector or tokens of a class")
    tokens: int | None = Field(None, ge=1, description="tokens for each class, for cross-attention; null: a vector")

    def of_classes(self, count: int) -> "ClassConditionerConfig":
        """The same config with this number of classes, if it leaves the number out."""
        return self if self.num_classes else self.model_copy(update={"num_classes": count})

    def build(self) -> ClassConditioner:
        if self.num_classes is None:
            raise UserError(
                "num_classes of the conditioner class is left out, and there are no data with classes to count",
                "use --set task.conditioners.0.num_classes=10, or data with a folder for each class",
            )
        return ClassConditioner(self.num_classes, self.dim, self.tokens)
