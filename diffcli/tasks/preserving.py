"""Prior preservation: beside its own pictures a model goes on learning pictures of their class, as it drew them before.

loss = loss(own pictures) + weight * loss(pictures of the class)
Source: Ruiz et al. 2022, eq. 2 (arXiv 2208.12242).
"""

from typing import Any

from torch import Tensor

from diffcli.data.personal import PRESERVED, PRESERVED_TEXT
from diffcli.fields import Batch, FieldSpec, Specs
from diffcli.noise import Domain, derive

OF_CLASS = 1  # in place of a seed: streams of the pictures of the class


def preserving_fields(reads: Specs, field: str, spec: FieldSpec) -> dict[str, FieldSpec]:
    """The fields of pictures of the class that a model of `field` learns from, which has this spec."""
    return {PRESERVED: spec, **({PRESERVED_TEXT: FieldSpec("text")} if "text" in reads else {})}


def of_class(batch: Batch, field: str) -> dict[str, Any]:
    """The pictures of the class in a batch as a batch of their own, with independent streams. field: what is modelled."""
    texts = {"text": batch[PRESERVED_TEXT]} if PRESERVED_TEXT in batch else {}
    return {**batch, field: batch[PRESERVED], **texts, "stream": derive(OF_CLASS, Domain.TRAIN, batch["stream"])}


def preserving(own: dict[str, Tensor], other: dict[str, Tensor], weight: float) -> dict[str, Tensor]:
    """The terms of a step: those of its own pictures, and `preserved`, the loss on pictures of the class, each ()."""
    return {**own, "loss": own["loss"] + weight * other["loss"], "own": own["loss"], PRESERVED: other["loss"]}
