"""The agreement of a model's masks with those of annotators: overlap, spread, calibration.

The extractor `segmentation` gives of each image `dice` and `iou` of the ensemble's mask, `ged` and `hm_iou` of its single samples
against all annotators, and `calibration`, (BINS + 1, 3). A mask holds class numbers; the first class is the background and counts
in no overlap. Nor does a class that neither of two masks has, else a set of many classes, of which an image has few, would score
well by that alone; two masks that have none at all agree: their overlap is 1.
"""

from collections.abc import Mapping
from math import lcm
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from diffcli.metrics.keepers import mean_of
from diffcli.metrics.metric import Metric, Need, Role, Summaries

EXTRACTOR = "segmentation"
KEY: tuple[Role, str] = ("reference", EXTRACTOR)
CALIBRATION = "calibration"
BINS = 15  # of probability, of one width


class OfMasks(Metric):
    """The mean over the images of a value of the extractor."""

    least: ClassVar[int] = 1

    def compute(self, of: Summaries) -> dict[str, float]:
        """NAME and NAME_std, the standard deviation over the images."""
        found = of[KEY].mean(self.kind)
        return {self.kind: found.mean.item(), f"{self.kind}_std": found.std().item()}

    def lines(self, scores: Mapping[str, float], more: Mapping[str, Any]) -> dict[str, str]:
        """The score and its spread."""
        name = self.kind
        return {name: f"{scores[name]:.6g} +- {scores[f'{name}_std']:.3g} over the images"}


class Dice(OfMasks):
    """2 |A and B| / (|A| + |B|) of the ensemble's mask and the field `mask`, the mean over the foreground classes; 1 is best.

    Of these only those that one of the two masks has. Where an image has several annotators, `mask` is what at least half of
    them marked. Source: Dice 1945.
    """

    kind: Literal["dice"] = "dice"
    needs: ClassVar[tuple[Need, ...]] = (Need(*KEY, mean_of("dice")),)


class Iou(OfMasks):
    """|A and B| / |A or B| of the same two masks, the mean over the same classes; 1 is best. Source: Jaccard 1912."""

    kind: Literal["iou"] = "iou"
    needs: ClassVar[tuple[Need, ...]] = (Need(*KEY, mean_of("iou")),)


class EnergyDistance(OfMasks):
    """The squared generalised energy distance of the samples and the annotators' masks of an image; 0 is best.

    Source: Kohl et al. 2018, section 4 (arXiv 1806.05034).
    """

    kind: Literal["ged"] = "ged"
    needs: ClassVar[tuple[Need, ...]] = (Need(*KEY, mean_of("ged")),)


class MatchedIou(OfMasks):
    """The mean overlap of samples and annotators' masks where each is matched with one, as well as possible; 1 is best.

    Source: Kohl et al. 2019, section 4 (arXiv 1905.13077).
    """

    kind: Literal["hm_iou"] = "hm_iou"
    needs: ClassVar[tuple[Need, ...]] = (Need(*KEY, mean_of("hm_iou")),)


class CalibrationError(Metric):
    """The expected calibration error of the probability of a pixel, over the pixels of all annotators; 0 is best.

    Of two classes the probability of the second is compared with how often it is marked; of more, that of the likeliest class
    with how often it is right. Source: Guo et al. 2017, eq. 5 (arXiv 1706.04599), with BINS bins.
    """

    kind: Literal["ece"] = "ece"
    needs: ClassVar[tuple[Need, ...]] = (Need(*KEY, mean_of(CALIBRATION)),)
    least: ClassVar[int] = 1

    def compute(self, of: Summaries) -> dict[str, float]:
        """`ece`."""
        pixels, expected, marked = of[KEY].mean(CALIBRATION).mean.unbind(1)
        return {"ece": ((expected - marked).abs().sum() / pixels.sum()).item()}

    def more(self, of: Summaries) -> dict[str, Any]:
        """`calibration`: of each bin that has pixels their share, their mean probability, and the share that is marked."""
        pixels, expected, marked = of[KEY].mean(CALIBRATION).mean.unbind(1)
        rows = torch.stack([pixels / pixels.sum(), expected / pixels, marked / pixels], 1)[pixels > 0]
        return {CALIBRATION: rows.tolist()}


def pairwise(masks: Tensor, others: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Dice and IoU of each of the masks (B, S, H, W) with each of others (B, A, H, W): float64 (B, S, A) on the CPU.

    Both are means over the classes but the first that one of the two masks has, and 1 where there are none.
    """
    mine, theirs = (_foreground(each, classes) for each in (masks, others))
    both = (
        torch.einsum("bscp,bacp->bsac", mine, theirs).cpu().double()
    )  # counts: exact in float32 up to 16 million pixels
    sizes = [each.sum(-1).cpu().double() for each in (mine, theirs)]
    total = sizes[0][:, :, None] + sizes[1][:, None]
    present = (total > 0).sum(-1)
    dice, iou = (
        torch.where(total > 0, x / y, 0).sum(-1) / present for x, y in ((2 * both, total), (both, total - both))
    )
    return torch.where(present > 0, dice, 1), torch.where(present > 0, iou, 1)


def energy_distance(samples: Tensor, annotators: Tensor, classes: int) -> Tensor:
    """2 E d(S, Y) - E d(S, S') - E d(Y, Y') with d = 1 - IoU, over all pairs, also of a mask with itself: float64 (B,).

    samples (B, S, H, W), annotators (B, A, H, W): class numbers.
    """
    pairs = ((samples, annotators), (samples, samples), (annotators, annotators))
    across, within, between = (1 - pairwise(*pair, classes)[1].mean((1, 2)) for pair in pairs)
    return 2 * across - within - between


def matched_iou(samples: Tensor, annotators: Tensor, classes: int) -> Tensor:
    """The IoU of the best matching, float64 (B,); both are repeated until they are equally many. Shapes as above."""
    from scipy.optimize import linear_sum_assignment  # slow to import, and most scores do without

    iou = pairwise(samples, annotators, classes)[1]
    many = lcm(*iou.shape[1:])
    whole = iou.repeat(1, many // iou.shape[1], many // iou.shape[2]).numpy()
    return torch.tensor([one[linear_sum_assignment(one, maximize=True)].mean() for one in whole], dtype=torch.float64)


def calibration(probability: Tensor, annotators: Tensor) -> Tensor:
    """For each bin: its pixels, the sum of their probabilities, the number of marked (or right) ones: float32 (B, BINS + 1, 3).

    The sums are means over annotators and pixels. The last bin holds the probability 1 alone. probability: (B, C, H, W).
    """
    classes = probability.shape[1]
    likeliest = probability.argmax(1, keepdim=True) if classes > 2 else torch.ones_like(annotators[:, :1])
    expected = probability.float().gather(1, likeliest)[:, 0].flatten(1)  # (B, P)
    marked = (annotators == likeliest).float().mean(1).flatten(1)
    edges = torch.linspace(0, 1, BINS + 1, device=expected.device)
    where = (torch.bucketize(expected, edges, right=True) - 1).clamp(0, BINS)
    values = torch.stack([torch.ones_like(expected), expected, marked], -1)
    sums = values.new_zeros(len(expected), BINS + 1, 3)
    return sums.scatter_add_(1, where[..., None].expand(-1, -1, 3), values) / expected.shape[1]


def _foreground(masks: Tensor, classes: int) -> Tensor:
    """Class numbers (B, N, H, W) -> 0 or 1 for each class but the first: float32 (B, N, C - 1, H x W)."""
    numbers = torch.arange(1, classes, device=masks.device)
    return (masks.flatten(2)[:, :, None] == numbers[:, None]).float()
