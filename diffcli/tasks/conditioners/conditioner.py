"""The contract of conditioners, which read named fields of a batch and fill one slot of a network or several.

Rows whose `keep` is False become the learned null; that one mask serves condition dropout in training and the null branch of
guidance.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from diffcli.config import Config, UserError
from diffcli.encoders.encoder import Encoder
from diffcli.fields import Batch, Remedies, Specs, check_fields
from diffcli.networks.conditioning import Conditioning, CondShape
from diffcli.noise import Domain, Noise
from diffcli.transfer import moved


class Unseeded(Noise):
    """In place of the streams of samples without seeds; a conditioner that draws from it is a bug."""

    def __init__(self) -> None:
        super().__init__((), torch.device("cpu"), Domain.CONDITION)

    def words(self, blocks: int) -> Tensor:
        raise RuntimeError(
            "a conditioner draws noise, but the batch has no field 'stream' with the seeds of its samples"
        )


UNSEEDED = Unseeded()


class Conditioner(nn.Module, ABC):
    """One condition. kind: its name in a preset. shape: where it enters the network and how wide it is there.

    reads: the fields that it takes of a batch, with the shapes and classes that it was built for. encoder: the pretrained one
    that reads its texts, or that made its embeddings, where there is one.
    """

    kind: ClassVar[str]
    shape: CondShape
    reads: Specs
    encoder: Encoder | None = None

    @property
    def droppable(self) -> bool:
        """Whether rows with keep False become the null; otherwise both branches of guidance receive the condition."""
        return True

    def remedies(self, key: str) -> Remedies:
        """What to type if the data lack a field that it reads; key: its place in the preset."""
        return Remedies()

    def check(self, has: Specs, key: str) -> None:
        """Raises UserError if data with these fields lack one that it reads."""
        check_fields(self.reads, has, f"{key} ({self.kind})", dict.fromkeys(self.reads, self.remedies(key)))

    @abstractmethod
    def forward(self, batch: Batch, keep: Tensor, like: Tensor, noise: Noise = UNSEEDED) -> Conditioning:
        """Its slots for B samples; rows with keep (B,) bool False are the null. `like`: x, for its size.

        noise: streams of these samples for this conditioner alone, the same in training and in sampling.
        """


class ConditionerConfig(Config):
    """Builds a conditioner."""

    @property
    def droppable(self) -> bool:
        """The same as of the conditioner."""
        return True

    @abstractmethod
    def build(self) -> Conditioner:
        """The conditioner, its weights from torch's current generator."""

    def resolved(self) -> Self:
        """The same config with absolute paths of local folders."""
        return self

    def for_drawing(self) -> Self:
        """The same config for a trained model, which is told what training had stored beside its images."""
        return self


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
    batch: Batch,
    keep: Tensor,
    like: Tensor,
    seeds: Tensor | None = None,
    always_given: Collection[str] = (),
) -> Conditioning:
    """Runs every conditioner and joins what fills one slot, in order: vectors and maps by width, tokens one after the other.

    keep: (B,) bool. like: x (B, C, *S). seeds: (B,) int64, the streams of this step's dropout, if any. The field `stream` of the
    batch seeds what conditioners draw: conditioner i from lane i, whatever batch its sample is in. always_given: fields that no
    row goes without; conditioners that read no other have no null here.
    """
    conditioners = list(conditioners)
    streams = moved(batch["stream"], keep.device) if "stream" in batch else None
    everywhere = [bool(c.reads) and c.reads.keys() <= set(always_given) for c in conditioners]
    parts = [
        conditioner(batch, torch.ones_like(keep) if always else keep, like, _lane(streams, i))
        for i, (conditioner, always) in enumerate(zip(conditioners, everywhere, strict=True))
    ]
    return Conditioning(
        vector=_joined([part.vector for part in parts]),
        tokens=_joined([part.tokens for part in parts]),
        spatial=_joined([part.spatial for part in parts]),
        seeds=seeds,
        mask=_mask(parts),
    )


def _lane(streams: Tensor | None, lane: int) -> Noise:
    return UNSEEDED if streams is None else Noise(streams, streams.device, Domain.CONDITION, lane)


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.cat(there, dim=1) if len(there) > 1 else next(iter(there), None)


def _mask(parts: list[Conditioning]) -> Tensor | None:
    """(B, L) over the tokens of all parts; None where none of them masks any."""
    sequences = [part for part in parts if part.tokens is not None]
    if all(part.mask is None for part in sequences):
        return None
    masks = [
        part.tokens.new_ones(part.tokens.shape[:2], dtype=torch.bool) if part.mask is None else part.mask
        for part in sequences
        if part.tokens is not None
    ]
    return torch.cat(masks, dim=1)
