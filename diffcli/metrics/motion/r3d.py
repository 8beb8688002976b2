"""torchvision's r3d_18 as a network of clips, for FVD. Nothing is downloaded.

Clips are prepared as torchvision's own transform of these weights does: frames resized to 128x171 (bilinear, without
antialiasing) and rounded to 256 levels, cropped to the middle 112x112, standardised. The features are the 512 before the last
layer. Source: Tran et al. 2018 (arXiv 1711.11248), torchvision's weights for Kinetics-400.
"""

import hashlib
import io
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diffcli.torchvision_compat  # noqa: F401 - before torchvision
from diffcli.config import UserError
from diffcli.metrics.motion.clip_networks import ClipNetwork, coloured

R3D = "r3d_18"
R3D_FILE = "r3d_18-b3b3357e.pth"  # the hex digits begin its SHA-256
R3D_URL = f"https://download.pytorch.org/models/{R3D_FILE}"
R3D_MEAN, R3D_STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)


class R3d18(ClipNetwork):
    """torchvision's r3d_18 with the weights of a file, or those in torch hub's cache."""

    layer = "avgpool (512), prepared as by torchvision"
    protocol = "resized to 128x171, bilinear without antialiasing, in 256 levels; middle 112x112; standardised"
    gives: Mapping[str, tuple[int, ...]] = {"features": (512,), "logits": (400,)}

    def __init__(self, weights: Path | None = None, device: torch.device | str = "cpu") -> None:
        super().__init__(device)
        path = weights or Path(torch.hub.get_dir()) / "checkpoints" / R3D_FILE
        hint = f"download {R3D_URL} and put it at {path}" if weights is None else f"take {R3D_URL}"
        if not path.is_file():
            raise UserError(f"{path} is not there: the weights of --features {R3D} are missing", hint)
        from torchvision.models.video import r3d_18

        try:
            raw = path.read_bytes()
            self.network = r3d_18(weights=None)
            self.network.load_state_dict(torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True))
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"{path} does not hold the weights of {R3D} ({reason})", hint) from error
        digest = hashlib.sha256(raw).hexdigest()[:8]
        self.name = f"{R3D}-{digest}"
        if digest not in R3D_FILE:
            self.notes.append(f"{path} is not {R3D_FILE}: the scores do not compare with those of others")
        self.head: nn.Module = self.network.fc
        self.network.fc = nn.Identity()
        self.network.eval().to(self.device)
        self.head.to(self.device)

    def values(self, clips: Tensor) -> dict[str, Tensor]:
        frames = coloured(clips).movedim(2, 1).flatten(0, 1)
        resized = F.interpolate((frames + 1) * 127.5, (128, 171), mode="bilinear").round() / 255
        top, left = (128 - 112) // 2, round((171 - 112) / 2)
        cut = resized[..., top : top + 112, left : left + 112]
        mean, std = (cut.new_tensor(values)[:, None, None] for values in (R3D_MEAN, R3D_STD))
        features = self.network(((cut - mean) / std).unflatten(0, (len(clips), -1)).movedim(1, 2)).float()
        return {"features": features, "logits": self.head(features).float()}
