"""What a network is told beside x and the time: three slots, and the conditioners that fill them from a batch.

Contract: a conditioner reads named fields of the batch and fills one slot or several. Rows whose `keep` is False become
the learned null; that one mask serves condition dropout in training and the null branch of guidance.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from diffcli.config import Config, UserError
from diffcli.networks.pretrained import Encoder


class Conditioning(NamedTuple):
    """All that a network ever receives beside x and the time; an absent slot is None."""

    vector: Tensor | None = None  # (B, D)        joins the time embedding
    tokens: Tensor | None = None  # (B, L, D)     cross-attention
    spatial: Tensor | None = None  # (B, C, *S)   concatenated to the input channels
    seeds: Tensor | None = None  # (B,) int64     one stream of dropout a sample; needed only where dropout trains
    mask: Tensor | None = None  # (B, L) bool     which tokens are there to be read; None: all


class CondShape(NamedTuple):
    """Width of each slot that a network will receive; 0 is absent."""

    vector: int = 0
    tokens: int = 0
    spatial: int = 0


class Conditioner(nn.Module, ABC):
    """One condition. shape: where it enters the network and how wide it is there. fields: what it reads of a batch.

    encoder: the pretrained one that reads its texts, or that made its embeddings, where there is one.
    """

    shape: CondShape
    fields: tuple[str, ...]
    encoder: Encoder | None = None

    def check(self, batch: Mapping[str, Any]) -> None:
        """Raise `UserError` where the batch holds a value that this conditioner cannot take; reads CPU tensors only."""

    @abstractmethod
    def forward(self, batch: Mapping[str, Any], keep: Tensor, like: Tensor) -> Conditioning:
        """Its slots for B samples; rows with keep (B,) bool False are the null. `like`: x, for its size."""


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

    def forward(self, batch: Mapping[str, Any], keep: Tensor, like: Tensor) -> Conditioning:
        """A vector (B, dim), or tokens (B, tokens, dim). batch["label"]: (B,) int64 in 0..num_classes-1."""
        self.check(batch)
        label = batch["label"].to(keep.device)
        rows = self.embedding(torch.where(keep, label, self.num_classes))
        if self.tokens is None:
            return Conditioning(vector=rows)
        return Conditioning(tokens=rows.unflatten(1, (self.tokens, self.dim)))


class ClassConditionerConfig(Config):
    """Class labels, joined to the time embedding or told in tokens; rows dropped in training teach the null class."""

    kind: Literal["class"] = "class"
    num_classes: int = Field(1000, ge=1)
    dim: int = Field(256, ge=1)
    tokens: int | None = Field(None, ge=1, description="tokens a class, for blocks that attend to them; null: a vector")

    def build(self) -> ClassConditioner:
        return ClassConditioner(self.num_classes, self.dim, self.tokens)


def cond_shape(conditioners: Iterable[Conditioner]) -> CondShape:
    """The widths that `condition` will produce: those of vectors and of maps add up, those of tokens must agree.

    Raises UserError where they do not: tokens of several conditioners follow each other.
    """
    shapes = [conditioner.shape for conditioner in conditioners]
    tokens = {shape.tokens for shape in shapes if shape.tokens}
    if len(tokens) > 1:
        widths = " and ".join(map(str, sorted(tokens)))
        raise UserError(
            f"task.conditioners give tokens {widths} wide, which cannot follow each other", "give them one width (dim)"
        )
    return CondShape(
        sum(shape.vector for shape in shapes), max(tokens, default=0), sum(shape.spatial for shape in shapes)
    )


def condition(
    conditioners: Iterable[Conditioner],
    batch: Mapping[str, Any],
    keep: Tensor,
    like: Tensor,
    seeds: Tensor | None = None,
) -> Conditioning:
    """Runs every conditioner and joins what fills one slot, in order: vectors and maps by width, tokens one after the other.

    keep: (B,) bool. like: x (B, C, *S). seeds: (B,) int64, the streams of this step's dropout, if any.
    """
    parts = [conditioner(batch, keep, like) for conditioner in conditioners]
    return Conditioning(
        vector=_joined([part.vector for part in parts]),
        tokens=_joined([part.tokens for part in parts]),
        spatial=_joined([part.spatial for part in parts]),
        seeds=seeds,
        mask=_mask(parts),
    )


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.cat(there, dim=1) if len(there) > 1 else next(iter(there), None)


def _mask(parts: list[Conditioning]) -> Tensor | None:
    """(B, L) over the tokens of all parts; None where none of them masks any."""
    told = [part for part in parts if part.tokens is not None]
    if all(part.mask is None for part in told):
        return None
    masks = [
        part.tokens.new_ones(part.tokens.shape[:2], dtype=torch.bool) if part.mask is None else part.mask
        for part in told
        if part.tokens is not None
    ]
    return torch.cat(masks, dim=1)
