"""The use of the codes of a codebook, counted over an epoch if its length is known, and over all processes.

Counts are those of whole windows of images, so they do not depend on batches, micro-batches or processes. They are buffers, so a
resumed run continues counting.
"""

from typing import Self

import torch
from pydantic import Field
from torch import Tensor, nn

from diffcli.networks.bottleneck import BottleneckConfig

WINDOW = 50_000  # images, where the training data have no length


class CodeUsage(nn.Module):
    """Counts of `codes` codes in windows of at least `window` images; None: `WINDOW`."""

    counts: Tensor  # (K,) int64   of the window that is under way
    whole: Tensor  # (K,) int64   of the last whole window; all 0 before there is one
    images: Tensor  # () int64   in the window that is under way

    def __init__(self, codes: int, window: int | None) -> None:
        super().__init__()
        self.window = window or WINDOW
        self.register_buffer("counts", torch.zeros(codes, dtype=torch.int64))
        self.register_buffer("whole", torch.zeros(codes, dtype=torch.int64))
        self.register_buffer("images", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def add(self, counts: Tensor, images: int) -> None:
        """Adds the counts (K,) int64 of one update with this number of images."""
        self.counts += counts
        self.images += images
        full = self.images >= self.window
        self.whole.copy_(torch.where(full, self.counts, self.whole))
        self.counts.copy_(torch.where(full, 0, self.counts))
        self.images.copy_(torch.where(full, 0, self.images))

    def terms(self, n: int) -> dict[str, Tensor]:
        """Values of the last whole window, or of the current one before that, n times each, for the log.

        usage: the share of codes that occurred. perplexity: exp of the entropy of codes, 1..K.
        """
        counts = torch.where(self.whole.any(), self.whole, self.counts)
        share = counts / counts.sum().clamp(min=1)
        entropy = -torch.special.xlogy(share, share).sum()
        usage = (counts > 0).float().mean()
        return {"usage": usage.expand(n), "perplexity": entropy.exp().expand(n)}


class CountedConfig(BottleneckConfig):
    """A bottleneck with codes, whose usage is counted."""

    window: int | None = Field(
        None,
        ge=1,
        description="images over which usage and perplexity are counted; null: an epoch, filled in when training begins",
    )

    def trained_on(self, images: int) -> Self:
        return self if self.window is not None else self.model_copy(update={"window": images})
