"""Features of single frames: an extractor of images, such as Inception, at every frame of a clip.

So `fid`, `kid`, `is`, `precision`, `recall` and `accuracy` of clips are those of their frames taken as images, blind to order.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffcli.fields import Specs
from diffcli.metrics.extractor import Extracted, Extractor
from diffcli.metrics.motion.tracking import CLIPS, check_clips

AT_ONCE = 64  # images that the inner extractor sees


class OverFrames:
    """What `inner`, an extractor of images, gives of every frame, (T, ...), and the cosine of neighbours, (T - 1,).

    features (T, D), logits (T, K) where it is a classifier, similarity (T - 1,) of the features of frames k and k + 1.
    """

    reads = CLIPS
    limit: int | None = None
    unit = "clips"

    def __init__(self, inner: Extractor, frames: int = 1) -> None:
        self.inner, self.frames = inner, frames
        self.classes, self.notes = inner.classes, inner.notes
        self.gives: Mapping[str, tuple[int, ...]] = {
            **{name: (frames, *shape) for name, shape in inner.gives.items()},
            "similarity": (frames - 1,),
        }

    def sized(self, frames: int) -> "OverFrames":
        """The same for clips of so many frames."""
        return OverFrames(self.inner, frames)

    def check(self, name: str, fields: Specs) -> None:
        check_clips(name, fields, f"--features {self.inner.describe()['name']}")

    def __call__(self, fields: Mapping[str, Any], rows: range) -> Extracted:
        clips: Tensor = fields["clip"]  # (B, C, T, H, W)
        images = clips.movedim(2, 1).flatten(0, 1)
        parts = [self.inner({"image": part}, range(len(part))) for part in images.split(AT_ONCE)]
        found = {name: torch.cat([part[name] for part in parts]).unflatten(0, (len(clips), -1)) for name in parts[0]}
        features = found["features"].float()
        return {**found, "similarity": F.cosine_similarity(features[:, 1:], features[:, :-1], dim=-1)}

    def describe(self) -> dict[str, Any]:
        described = self.inner.describe()
        return {**described, "layer": f"{described['layer']} of each frame"}
