"""How well images follow the pictures that condition them: their own low resolution, edges or colours against the given ones.

The extractor `condition` computes the condition from each image and returns its similarity to the given one.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from diffcli.metrics.keepers import mean_of
from diffcli.metrics.metric import Need, Role, Summaries
from diffcli.metrics.nearness import OfPairs

KEY: tuple[Role, str] = ("samples", "condition")
TOLERANCE = 1  # pixels, across, down or both, by which an edge may lie elsewhere


class Consistency(OfPairs):
    """PSNR of the image made smaller, by the kernel that made its condition, against that condition: 100 dB where bytes agree."""

    kind: Literal["consistency"] = "consistency"
    key: ClassVar[tuple[Role, str]] = KEY
    needs: ClassVar[tuple[Need, ...]] = (Need(*KEY, mean_of("consistency")),)
    unit: ClassVar[str] = " dB"


class Follows(OfPairs):
    """The similarity of the image's edges, sketch, colours or grey to the given ones, and to those of another image.

    F1 with a tolerance of one pixel for edges, PSNR in dB for the others. A model that ignores its condition reaches
    `follows_shuffled`, the score against the condition of another image.
    """

    kind: Literal["follows"] = "follows"
    key: ClassVar[tuple[Role, str]] = KEY
    needs: ClassVar[tuple[Need, ...]] = (Need(*KEY, mean_of("follows")), Need(*KEY, mean_of("shuffled")))

    def compute(self, of: Summaries) -> dict[str, float]:
        """follows, follows_std and follows_shuffled."""
        return super().compute(of) | {"follows_shuffled": of[KEY].mean("shuffled").mean.item()}

    def lines(self, scores: Mapping[str, float], more: Mapping[str, Any]) -> dict[str, str]:
        """The score, and beside it that against conditions of other images."""
        other = f"{scores['follows_shuffled']:.6g} against the condition of another image"
        return super().lines(scores, more) | {"shuffled": other}


def edges_f1(edges: Tensor, other: Tensor) -> Tensor:
    """F1 of each pair of masks, bool (B, 1, H, W): float32 (B,) in [0, 1]; 1 if both are empty, 0 if one is.

    2 P R / (P + R): precision P is the share of `edges` with a pixel of `other` within `TOLERANCE` in both directions, recall R
    that of `other` with one of `edges`.
    Source: Martin et al. 2004 (doi 10.1109/TPAMI.2004.1273918), with a tolerance instead of a matching.
    """
    one, two = edges.float(), other.float()
    near_one, near_two = (F.max_pool2d(x, 2 * TOLERANCE + 1, 1, TOLERANCE) for x in (one, two))
    count_one, count_two = (x.flatten(1).sum(1) for x in (one, two))
    precision = (one * near_two).flatten(1).sum(1) / count_one.clamp(min=1)
    recall = (two * near_one).flatten(1).sum(1) / count_two.clamp(min=1)
    f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    return torch.where((count_one == 0) & (count_two == 0), 1.0, f1)
