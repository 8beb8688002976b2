"""LPIPS: a perceptual distance of two images, from activations of VGG-16 with a learned weight for every channel.

Source: Zhang et al. 2018, eq. 1 (arXiv 1801.03924), version 0.1; VGG-16: Simonyan & Zisserman 2014 (arXiv 1409.1556), with
torchvision's weights. Neither file is downloaded; see `find_files` for their places.
"""

import pickle
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffcli.config import UserError

BACKBONE_FILE = "vgg16-397923af.pth"
BACKBONE_URL = f"https://download.pytorch.org/models/{BACKBONE_FILE}"
CHANNEL_FILES = {"torchmetrics": "functional/image/lpips_models/vgg.pth", "lpips": "weights/v0.1/vgg.pth"}
WIDTHS = (
    (64, 64),
    (128, 128),
    (256, 256, 256),
    (512, 512, 512),
    (512, 512, 512),
)  # of the convolutions between two poolings
SMALLEST = 16  # pixels in the edge of an image, of which the fifth group sees one
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of images in [-1, 1]: ImageNet's mean and deviation
EPSILON = 1e-8


class LpipsFiles(NamedTuple):
    """The files of the weights."""

    backbone: Path  # of VGG-16
    channels: Path  # of each channel


class Lpips(nn.Module):
    """forward(x, y), each (B, 3, H, W) in [-1, 1] with H, W >= 16, -> distances (B,), 0 for equal images."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*vgg_layers())
        self.channels = nn.ParameterList(torch.ones(group[-1]) for group in WIDTHS)
        self.register_buffer("shift", torch.tensor(SHIFT).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        found = [
            weight @ (a - b).square().flatten(2).mean(dim=2).mT  # (B,)
            for weight, a, b in zip(self.channels, self.stages(x), self.stages(y), strict=True)
        ]
        return torch.stack(found).sum(dim=0)

    def stages(self, x: Tensor) -> list[Tensor]:
        """The activations before each pooling and at the end, (B, C, h, w) float32 each, of length 1 at every position."""
        h, found = (x - self.shift) / self.scale, []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                found.append(directions(h))
            h = layer(h)
        return [*found, directions(h)]

    def load(self, files: LpipsFiles) -> None:
        """Loads the weights of the files. Raises UserError if they hold others."""
        hints = (f"take {BACKBONE_URL}", installed_again(files.channels))
        backbone, channels = (read_state(path, hint) for path, hint in zip(files, hints, strict=True))
        own = {key: backbone.get(key) for key in (f"features.{name}" for name in self.features.state_dict())}
        own |= {f"channels.{i}": channels.get(f"lin{i}.model.1.weight") for i in range(len(WIDTHS))}
        mine = self.state_dict()
        for key, value in own.items():
            if value is None or value.numel() != mine[key].numel():
                at = 1 if key.startswith("channels") else 0
                raise UserError(f"{files[at]} does not hold the weights of LPIPS ({key})", hints[at])
            mine[key].copy_(value.view_as(mine[key]))


def directions(h: Tensor) -> Tensor:
    """(B, C, H, W) divided by its length at every position."""
    h = h.float()
    return h / (h.square().sum(dim=1, keepdim=True) + EPSILON).sqrt()


def vgg_layers() -> list[nn.Module]:
    """The convolutional part of VGG-16 up to its last ReLU, in the order and so with the keys of torchvision's."""
    layers: list[nn.Module] = []
    for i, group in enumerate(WIDTHS):
        layers += [nn.MaxPool2d(2)] if i else []
        before = WIDTHS[i - 1][-1] if i else 3
        for a, b in pairwise((before, *group)):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU()]
    return layers


def find_files(
    backbone: Path | None = None,
    who: str = "task.perceptual is 'lpips'",
    instead: str = "use --set task.perceptual=null",
) -> LpipsFiles:
    """The files on this machine; backbone: that of VGG-16, if it is not in torch hub's cache.

    Raises UserError if there are none. who: the option that needs them; instead: the alternative.
    """
    path = (backbone or Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE_FILE).expanduser()
    hint = f"download {BACKBONE_URL} to there, or {instead}"
    if not path.is_file():
        raise UserError(f"{who}, but {path} is not there: the weights of VGG-16", hint)
    for package, place in CHANNEL_FILES.items():
        found = find_spec(package)
        if found is not None and found.origin is not None and (Path(found.origin).parent / place).is_file():
            return LpipsFiles(path, Path(found.origin).parent / place)
    names = " nor ".join(CHANNEL_FILES)
    raise UserError(f"{who}, but neither {names} brings its weights", "pip install 'torchmetrics>=1.6'")


def installed_again(channels: Path) -> str:
    """What to type if the file of the channels' weights, which comes with a package, is damaged."""
    brings = [name for name, place in CHANNEL_FILES.items() if channels.as_posix().endswith(f"/{name}/{place}")]
    return f"install its package again: pip install --force-reinstall --no-deps {(brings or [*CHANNEL_FILES])[0]}"


def read_state(path: Path, hint: str) -> dict[str, Tensor]:
    """The tensors of a .pth file, read without running any code in it. Raises UserError."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0][:120]
        raise UserError(f"{path} cannot be read as weights ({reason})", hint) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds no state dict", hint)
    return state
