"""Which codes of a codebook are in use, counted over about an epoch and over all processes.

Contract: counts are of whole windows of images, so they do not depend on batches, micro-batches or processes; they are buffers,
so a resumed run goes on counting where it stopped.
"""

import torch
from torch import Tensor, nn


class CodeUsage(nn.Module):
    """Counts of `codes` codes in windows of at least `window` images."""

    counts: Tensor  # (K,) int64   of the window that is under way
    whole: Tensor  # (K,) int64   of the last whole window; all 0 before there is one
    images: Tensor  # () int64   in the window that is under way

    def __init__(self, codes: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.register_buffer("counts", torch.zeros(codes, dtype=torch.int64))
        self.register_buffer("whole", torch.zeros(codes, dtype=torch.int64))
        self.register_buffer("images", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def add(self, counts: Tensor, images: int) -> None:
        """Takes in the counts (K,) int64 of one update, which saw so many images."""
        self.counts += counts
        self.images += images
        full = self.images >= self.window
        self.whole.copy_(torch.where(full, self.counts, self.whole))
        self.counts.copy_(torch.where(full, 0, self.counts))
        self.images.copy_(torch.where(full, 0, self.images))

    def terms(self, n: int) -> dict[str, Tensor]:
        """Of the last whole window, or the one under way before there is one, n times each, for the log.

        usage: the share of codes that occurred. perplexity: exp of the entropy of codes, 1..K.
        """
        counts = torch.where(self.whole.any(), self.whole, self.counts)
        share = counts / counts.sum().clamp(min=1)
        entropy = -torch.special.xlogy(share, share).sum()
        usage = (counts > 0).float().mean()
        return {"usage": usage.expand(n), "perplexity": entropy.exp().expand(n)}
