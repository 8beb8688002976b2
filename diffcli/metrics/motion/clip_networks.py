"""Networks that see a whole clip, for FVD, such as an I3D as TorchScript. Nothing is downloaded.

Preprocessing is part of a score, so `describe` tells it. For an I3D frames are resized to 224x224 (bilinear), with values in
[-1, 1]; the features are the network's output, 400 logits.
Source: Carreira & Zisserman 2017 (arXiv 1705.07750); Unterthiner et al. 2018 (arXiv 1812.01717).

Grey clips are repeated to three channels. FVD depends on the number of frames and on the frame rate: compare like with like.
"""

import hashlib
import io
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffcli.config import UserError
from diffcli.fields import Specs, to_float
from diffcli.metrics.extractor import Extracted
from diffcli.metrics.motion.tracking import CLIPS, check_clips

TRIED = 16  # frames of the clip that tells how wide the features are
AT_ONCE = 16  # clips that a network sees


class ClipNetwork(ABC):
    """An extractor of whole clips: `features` (D,) from uint8 (C, T, H, W)."""

    reads = CLIPS
    limit: int | None = None
    unit = "clips"
    classes: tuple[str, ...] | None = None
    name: str
    layer: str
    protocol: str
    gives: Mapping[str, tuple[int, ...]]

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.notes: list[str] = []

    @abstractmethod
    def values(self, clips: Tensor) -> dict[str, Tensor]:
        """The values of clips float32 (B, C, T, H, W) in [-1, 1]."""

    def check(self, name: str, fields: Specs) -> None:
        check_clips(name, fields, f"--features {self.name}")

    @torch.no_grad()
    def __call__(self, fields: Mapping[str, Any], rows: range) -> Extracted:
        """`features` (B, D), and what else `values` has."""
        parts = [self._tried(to_float(part.to(self.device))) for part in fields["clip"].split(AT_ONCE)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _tried(self, clips: Tensor) -> dict[str, Tensor]:
        try:
            return self.values(clips)
        except (RuntimeError, torch.jit.Error) as error:
            frames, reason = clips.shape[2], (str(error).strip().splitlines() or ["no reason given"])[-1][:160]
            problem = f"--features {self.name}: cannot read clips of {frames} frames ({reason})"
            raise UserError(problem, "score longer clips, or choose a network for shorter ones") from error

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "layer": self.layer, "protocol": self.protocol}


class TorchScriptI3d(ClipNetwork):
    """A TorchScript file whose forward takes clips (B, 3, T, 224, 224) in [-1, 1] and returns (B, D).

    Of the arguments `rescale`, `resize` and `return_features`, which the usual export has, those it knows are given.
    """

    layer = "output"
    protocol = "frames resized to 224x224, bilinear; values in [-1, 1]"

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        super().__init__(device)
        try:
            raw = path.read_bytes()
            with warnings.catch_warnings():
                # the published I3D comes in no other form
                warnings.filterwarnings("ignore", category=DeprecationWarning)
                self.network = torch.jit.load(io.BytesIO(raw), map_location=self.device).eval()
        except (OSError, RuntimeError, ValueError) as error:
            reason = (str(error).splitlines() or ["no reason given"])[0][:120]
            hint = "give a TorchScript file of an I3D for --metrics fvd, or the run of a classifier trained by diffcli"
            raise UserError(f"--features {path} cannot be read as TorchScript ({reason})", hint) from error
        self.name = f"{path.stem}-{hashlib.sha256(raw).hexdigest()[:8]}"
        known = {argument.name for argument in self.network.forward.schema.arguments}
        wanted = {"rescale": False, "resize": False, "return_features": True}
        self.options = {name: value for name, value in wanted.items() if name in known}
        found = self(_probe(224), range(1))["features"]
        if found.ndim != 2:
            problem = f"--features {path} gives {tuple(found.shape)} for one clip, not one row of features"
            raise UserError(problem, "export a network whose output is (B, D)")
        self.gives = {"features": tuple(found.shape[1:])}

    def values(self, clips: Tensor) -> dict[str, Tensor]:
        frames = F.interpolate(coloured(clips).movedim(2, 1).flatten(0, 1), (224, 224), mode="bilinear")
        resized = frames.unflatten(0, (len(clips), -1)).movedim(1, 2)
        return {"features": self.network(resized, **self.options).float()}


def coloured(clips: Tensor) -> Tensor:
    """Clips (B, C, T, H, W) of three channels: grey ones are repeated."""
    return clips if clips.shape[1] == 3 else clips.expand(-1, 3, -1, -1, -1)


def _probe(edge: int) -> dict[str, Tensor]:
    """One black clip."""
    return {"clip": torch.zeros(1, 3, TRIED, edge, edge, dtype=torch.uint8)}
