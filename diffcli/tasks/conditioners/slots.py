"""Shared parts of conditioners of embeddings: the projection of features to slots, and the learned null vectors."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffcli.config import UserError
from diffcli.encoders.encoder import Encoder

NO_CAPTIONS = "prepare data that has captions with `diffcli prep-data`, or make captions of class names: data.captions"
SMALL = 0.02  # standard deviation of null vectors at first

Gives = Literal["tokens", "vector", "both"]


def unit_variance(embedding: Tensor) -> Tensor:
    """Embeddings (..., D) scaled to length sqrt(D), so that entries are about 1, which suits networks.

    The information of a CLIP embedding is its direction. Source: Ramesh et al. 2022, section 2.2 (arXiv 2204.06125), whose prior
    takes embeddings of this scale.
    """
    return functional.normalize(embedding.float(), dim=-1) * embedding.shape[-1] ** 0.5


class Slot(nn.Module):
    """A projection to `dim`, or none, into `count` vectors each, and the learned vector of those that have no condition.

    learned: False if rows without a condition get other features, so that `keep` is True for all.
    """

    def __init__(self, width: int, dim: int | None, count: int = 1, learned: bool = True) -> None:
        super().__init__()
        self.width, self.dim, self.count = width, dim or width, count
        projected = dim is not None or count > 1
        self.project = nn.Linear(width, self.dim * count) if projected else nn.Identity()
        self.null = nn.Parameter(SMALL * torch.randn(count, self.dim)) if learned else None

    def forward(self, x: Tensor, keep: Tensor, encoder: Encoder | None = None, key: str = "") -> Tensor:
        """(B, width) -> (B, dim), or (B, L, width) -> (B, L * count, dim)."""
        if encoder is not None:
            check_width(x, self.width, encoder, key)
        projected = self.project(x)
        if x.ndim == 2:
            return projected if self.null is None else torch.where(keep[:, None], projected, self.null[0])
        projected = projected.unflatten(-1, (self.count, self.dim))  # (B, L, count, dim)
        if self.null is not None:
            projected = torch.where(keep[:, None, None, None], projected, self.null)
        return projected.flatten(1, 2)


def readable(mask: Tensor, keep: Tensor) -> Tensor:
    """(B, L): which tokens are read; of rows without a condition the first, which is the learned null."""
    first = torch.arange(mask.shape[1], device=mask.device) == 0
    return torch.where(keep[:, None], mask, first)


def check_width(x: Tensor, width: int, encoder: Encoder, key: str) -> None:
    if x.shape[-1] != width:
        raise UserError(
            f"{encoder.key} is '{encoder.config.model}', whose features are {x.shape[-1]} wide, not {width}",
            f"set {key} of its conditioner to {x.shape[-1]}",
        )
