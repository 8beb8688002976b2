"""The extractor `reconstruction`: the similarity of each image to its original, the uint8 fields `image` and `original`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.fields import FieldSpec, Specs, check_fields, to_float
from diffcli.metrics.extractor import Extracted
from diffcli.metrics.metric import Metric
from diffcli.metrics.nearness import SIGMA, WINDOW, PerceptualDistance, psnr_of_bytes, ssim_of_bytes
from diffcli.networks.lpips import SMALLEST, Lpips, find_files

ORIGINAL = "original"
PAIR: Specs = {name: FieldSpec("image", (None, None, None)) for name in ("image", ORIGINAL)}


class PairScores:
    """`psnr`, `ssim` and `lpips` of each pair of images, as the metrics need. Raises UserError without the weights."""

    unit = "images"
    reads = PAIR
    limit: int | None = None
    classes: tuple[str, ...] | None = None

    def __init__(self, metrics: Sequence[Metric], device: torch.device) -> None:
        wanted = [metric for metric in metrics if any(need.extractor == "reconstruction" for need in metric.needs)]
        self.gives: Mapping[str, tuple[int, ...]] = {metric.kind: () for metric in wanted}
        self.notes: list[str] = []
        self.lpips = next((judge(m, device) for m in wanted if isinstance(m, PerceptualDistance)), None)

    def check(self, name: str, fields: Specs) -> None:
        """Raises UserError for images that are too small for a metric, or of channels that it cannot take."""
        check_fields(self.reads, fields, f"--ref {name}: --metrics {','.join(self.gives)}")
        channels, *size = fields["image"].shape
        for kind, least in (("ssim", WINDOW), ("lpips", SMALLEST)):
            small = [side for side in size if side is not None and side < least]
            if kind in self.gives and small:
                problem = f"--metrics {kind}: {name} has images of {small[0]} pixels, fewer than {least}"
                raise UserError(problem, f"leave {kind} out, or score larger images")
        if self.lpips is not None and channels not in (None, 1, 3):
            problem = f"--metrics lpips: takes images of 1 or 3 channels, those of {name} have {channels}"
            raise UserError(problem, "leave lpips out")

    def __call__(self, fields: Mapping[str, Any], rows: range) -> Extracted:
        """Each (B,) float32."""
        made, original = fields["image"], fields[ORIGINAL]
        found: dict[str, Tensor] = {}
        if "psnr" in self.gives:
            found["psnr"] = psnr_of_bytes(made, original)
        if "ssim" in self.gives:
            found["ssim"] = ssim_of_bytes(made, original)
        if self.lpips is not None:
            a, b = (to_float(levels).expand(-1, 3, -1, -1) for levels in (made, original))
            found["lpips"] = self.lpips(a, b)
        return found

    def describe(self) -> dict[str, Any]:
        """The protocol of each score."""
        protocols = {
            "psnr": "of bytes as files hold them, pixels in [0, 1], without cropping a border, mean over images",
            "ssim": f"Gaussian windows {WINDOW}x{WINDOW}, sigma {SIGMA}, inside the image; pixels in [0, 1]",
            "lpips": "VGG-16, version 0.1",
        }
        return {f"{kind}_protocol": protocols[kind] for kind in self.gives}


def judge(metric: PerceptualDistance, device: torch.device) -> Lpips:
    """The network of LPIPS with its weights. Raises UserError if they are not on this machine."""
    instead = "name the file by --set metrics.lpips.weights=FILE, or leave lpips out of --metrics"
    files = find_files(metric.weights, "--metrics holds lpips", instead)
    network = Lpips().requires_grad_(False)
    network.load(files)
    return network.to(device)
