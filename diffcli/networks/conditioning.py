"""What a network is told beside x and the time: three slots, and the conditioners that fill them from a batch.

Contract: a conditioner reads named fields of the batch and returns one tensor for its slot. Rows whose `keep` is False
become the learned null row; that one mask serves condition dropout in training and the null branch of guidance.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from diffcli.config import Config, UserError

Slot = Literal["vector", "tokens", "spatial"]


class Conditioning(NamedTuple):
    """All that a network ever receives beside x and the time; an absent slot is None."""

    vector: Tensor | None = None  # (B, D)        joins the time embedding
    tokens: Tensor | None = None  # (B, L, D)     cross-attention
    spatial: Tensor | None = None  # (B, C, *S)   concatenated to the input channels
    seeds: Tensor | None = None  # (B,) int64     one stream of dropout a sample; needed only where dropout trains


class CondShape(NamedTuple):
    """Width of each slot that a network will receive; 0 is absent."""

    vector: int = 0
    tokens: int = 0
    spatial: int = 0


class Conditioner(nn.Module, ABC):
    """One condition: `slot` says where it enters the network, `dim` how wide it is there."""

    slot: Slot
    dim: int

    def check(self, batch: Mapping[str, Any]) -> None:
        """Raise `UserError` where the batch holds a value that this conditioner cannot take; reads CPU tensors only."""

    @abstractmethod
    def forward(self, batch: Mapping[str, Any], keep: Tensor, like: Tensor) -> Tensor:
        """The slot's tensor for B samples; rows with keep (B,) bool False are the null. `like`: x, for its size."""


class ClassConditioner(Conditioner):
    """An embedding row for each class and one more, the last, for "no class"; a vector, or as many tokens as are asked for."""

    def __init__(self, num_classes: int, dim: int, tokens: int | None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.dim = dim
        self.tokens = tokens
        self.slot = "vector" if tokens is None else "tokens"
        self.embedding = nn.Embedding(num_classes + 1, dim * (tokens or 1))

    def check(self, batch: Mapping[str, Any]) -> None:
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

    def forward(self, batch: Mapping[str, Any], keep: Tensor, like: Tensor) -> Tensor:
        """(B, dim), or (B, tokens, dim). batch["label"]: (B,) int64 in 0..num_classes-1."""
        self.check(batch)
        label = batch["label"].to(keep.device)
        rows = self.embedding(torch.where(keep, label, self.num_classes))
        return rows if self.tokens is None else rows.unflatten(1, (self.tokens, self.dim))


class ClassConditionerConfig(Config):
    """Class labels, joined to the time embedding or told in tokens; rows dropped in training teach the null class."""

    kind: Literal["class"] = "class"
    num_classes: int = Field(1000, ge=1)
    dim: int = Field(256, ge=1)
    tokens: int | None = Field(None, ge=1, description="tokens a class, for blocks that attend to them; null: a vector")

    def build(self) -> ClassConditioner:
        return ClassConditioner(self.num_classes, self.dim, self.tokens)


AnyConditioner = ClassConditionerConfig


def cond_shape(conditioners: Iterable[Conditioner]) -> CondShape:
    """The widths that `condition` will produce: those of one slot add up."""
    width = dict.fromkeys(CondShape._fields, 0)
    for conditioner in conditioners:
        width[conditioner.slot] += conditioner.dim
    return CondShape(**width)


def condition(
    conditioners: Iterable[Conditioner],
    batch: Mapping[str, Any],
    keep: Tensor,
    like: Tensor,
    seeds: Tensor | None = None,
) -> Conditioning:
    """Run every conditioner; several of one slot are concatenated in order (tokens too: along the width).

    keep: (B,) bool. like: x (B, C, *S). seeds: (B,) int64, the streams of this step's dropout, if any.
    """
    found: dict[Slot, list[Tensor]] = {}
    for conditioner in conditioners:
        found.setdefault(conditioner.slot, []).append(conditioner(batch, keep, like))
    axis: dict[Slot, int] = {"vector": 1, "tokens": 2, "spatial": 1}
    slots = {slot: parts[0] if len(parts) == 1 else torch.cat(parts, axis[slot]) for slot, parts in found.items()}
    return Conditioning(**slots, seeds=seeds)
