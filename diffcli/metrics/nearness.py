"""The similarity of images and their originals, pair by pair: PSNR, SSIM and LPIPS of uint8 images.

The extractor `reconstruction` computes `psnr` in dB, `ssim` and `lpips` for each pair. A score is the mean over the images; the
report also has the standard deviation over the images.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from diffcli.metrics.keepers import mean_of
from diffcli.metrics.metric import Metric, Need, Role, Summaries

KEY: tuple[Role, str] = ("samples", "reconstruction")
PEAK = 255  # the largest level
MOST = 100.0  # dB that equal images count as
WINDOW, SIGMA = 11, 1.5  # pixels across the Gaussian window of SSIM, and its deviation
K = 0.01, 0.03  # of SSIM, times the range of [0, 1]


class OfPairs(Metric):
    """The mean over the images of a value that the extractor gives of each pair."""

    key: ClassVar[tuple[Role, str]] = KEY
    least: ClassVar[int] = 1
    unit: ClassVar[str] = ""

    def compute(self, of: Summaries) -> dict[str, float]:
        """NAME and NAME_std, the standard deviation over the images."""
        found = of[self.key].mean(self.kind)
        return {self.kind: found.mean.item(), f"{self.kind}_std": found.std().item()}

    def lines(self, scores: Mapping[str, float], more: Mapping[str, Any]) -> dict[str, str]:
        """The score with its unit and its spread, and its floor, if known."""
        name = self.kind
        found = {name: f"{scores[name]:.6g}{self.unit} +- {scores[f'{name}_std']:.3g} over the images"}
        for floor in more.get("floors", ()):
            if name in floor:
                label = floor["name"] if name == "psnr" else f"{name} {floor['name']}"
                found[label] = f"{floor[name]:.6g}{self.unit} by {floor['what']}"
        return found


class Psnr(OfPairs):
    """Peak signal-to-noise ratio; higher is better. Of images with equal bytes it is 100 dB."""

    kind: Literal["psnr"] = "psnr"
    needs: ClassVar[tuple[Need, ...]] = (Need(*KEY, mean_of("psnr")),)
    unit: ClassVar[str] = " dB"


class Ssim(OfPairs):
    """Structural similarity within Gaussian windows, mean over channels and all windows that lie inside; 1 is best.

    Source: Wang et al. 2004, eq. 13 with K1 = .01 and K2 = .03.
    """

    kind: Literal["ssim"] = "ssim"
    needs: ClassVar[tuple[Need, ...]] = (Need(*KEY, mean_of("ssim")),)


class PerceptualDistance(OfPairs):
    """LPIPS, the distance of two images for a trained network; 0 is best. weights: file of its VGG-16, if not torch hub's."""

    kind: Literal["lpips"] = "lpips"
    needs: ClassVar[tuple[Need, ...]] = (Need(*KEY, mean_of("lpips")),)
    weights: Path | None = None


def psnr_of_bytes(image: Tensor, other: Tensor) -> Tensor:
    """PSNR of each pair of uint8 (B, C, H, W), in dB, at most 100: float32 (B,) on the CPU. The errors are summed exactly."""
    errors = (image.int() - other.int()).square().flatten(1).sum(dim=1, dtype=torch.int64).cpu().double()
    ratio = PEAK**2 * image[0].numel() / errors.clamp(min=1e-9)
    return (10 * ratio.log10()).clamp(max=MOST).float()


def ssim_of_bytes(image: Tensor, other: Tensor) -> Tensor:
    """SSIM of each pair of uint8 (B, C, H, W), `WINDOW` pixels or more in both edges: float32 (B,).

    Windows at the border do not count, as in scikit-image with Gaussian weights and without its sample covariance. Computed in
    float64: a variance is a difference of squares, of which float32 leaves little, and TF32 nothing, where an image is flat.
    """
    wide = torch.float32 if image.device.type == "mps" else torch.float64  # which that device lacks
    x, y = (levels.to(wide) / PEAK for levels in (image, other))
    line = torch.arange(WINDOW, dtype=wide, device=x.device) - WINDOW // 2
    weights = torch.exp(-(line / SIGMA).square() / 2)
    window = torch.outer(weights, weights) / weights.sum() ** 2
    maps = torch.stack([x, y, x * x, y * y, x * y]).flatten(0, 2)[:, None]  # (5 x B x C, 1, H, W)
    means = F.conv2d(maps, window[None, None]).view(5, *x.shape[:2], -1)  # (5, B, C, windows)
    a, b, aa, bb, ab = means.unbind()
    alike = (2 * a * b + K[0] ** 2) * (2 * (ab - a * b) + K[1] ** 2)
    apart = (a * a + b * b + K[0] ** 2) * (aa - a * a + bb - b * b + K[1] ** 2)
    return (alike / apart).flatten(1).mean(dim=1).float()
