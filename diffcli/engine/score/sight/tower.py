"""The image tower of a CLIP on disk as an extractor of images, for the similarity of the frames of a clip over time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from diffcli.encoders.encoder import EncoderConfig
from diffcli.fields import Specs, to_float
from diffcli.metrics.extractor import IMAGES, Extracted, check_images


class TowerFeatures:
    """The projected image features of a CLIP. Raises UserError where the folder holds no CLIP."""

    layer = "image projection"
    reads = IMAGES
    limit: int | None = None
    unit = "images"
    classes: tuple[str, ...] | None = None

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        self.encoder, self.device = EncoderConfig(model=str(folder)).build(), torch.device(device)
        self.encoder.key = "--features"
        self.notes: list[str] = []
        found = self({"image": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}, range(1))
        self.gives: Mapping[str, tuple[int, ...]] = {name: tuple(value.shape[1:]) for name, value in found.items()}
        self.name = f"clip-{folder.name}-{self.encoder.digest[:8]}"

    @torch.no_grad()
    def __call__(self, fields: Mapping[str, Any], rows: range) -> Extracted:
        """`features` (B, P)."""
        return {"features": self.encoder.images(to_float(fields["image"].to(self.device)))}

    def check(self, name: str, fields: Specs) -> None:
        check_images(name, fields, f"--features {self.name}")

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "layer": self.layer}
