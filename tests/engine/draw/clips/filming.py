"""Tiny untrained models of clips, for tests of drawing: a network over space and time under any conditions."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffcli.data.dataset import DataConfig
from diffcli.data.images import ImageData, MemoryImages
from diffcli.data.listing import Split
from diffcli.engine.distributed import Group
from diffcli.engine.draw.sample import Request, SampleOptions, draw, request
from diffcli.engine.model import Model
from diffcli.fields import FieldSpec
from diffcli.networks.conditioning import Conditioning, CondShape
from diffcli.networks.network import NetworkConfig
from diffcli.preset import Preset
from diffcli.tasks.diffusion_config import DiffusionConfig
from tests.conftest import changed
from tests.data.making import pixels
from tests.data.test_specs import Clips
from tests.engine.draw.making import random_model
from tests.engine.one_level import SMALL

CPU = torch.device("cpu")
FRAMES, SIZE = 6, (4, 6)


class FilmNet(nn.Module):
    """Two convolutions over space and time; reach: frames to either side that an output depends on."""

    reach = 2

    def __init__(self, channels: int, out_channels: int, cond: CondShape) -> None:
        super().__init__()
        self.stem = nn.Conv3d(channels + 1 + cond.spatial, 6, 3, padding=1)
        self.vector = nn.Linear(cond.vector, 6) if cond.vector else None
        self.head = nn.Conv3d(6, out_channels, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor, cond: Conditioning = Conditioning()) -> Tensor:
        told = (time / 1000).to(x).view(-1, 1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        h = self.stem(torch.cat([x, told, *([] if cond.spatial is None else [cond.spatial])], dim=1))
        if self.vector is not None:
            h = h + self.vector(cond.vector)[:, :, None, None, None]
        return self.head(torch.tanh(h))


class FilmNetConfig(NetworkConfig):
    """Builds it."""

    kind: Literal["film"] = "film"
    axes = 3

    def build(self, shape: tuple[int, ...], out_channels: int, cond: CondShape) -> FilmNet:
        return FilmNet(shape[0], out_channels, cond)


class FilmSet(DataConfig):
    """Five clips, made on the spot."""

    kind: Literal["films"] = "films"
    frames: int | tuple[int, ...] = FRAMES
    fps: float | None = 12.0

    @property
    def specs(self) -> dict[str, FieldSpec]:
        length = self.frames if isinstance(self.frames, int) else None
        clip = FieldSpec("clip", (self.channels, length, *self.shape[1:]))
        return super().specs | {"clip": clip, "fps": FieldSpec("number")}

    def build(self, split: Split) -> ImageData:
        length = self.frames if isinstance(self.frames, int) else max(self.frames)
        clips = torch.from_numpy(pixels(5, length * self.channels, *self.shape[1:])).unflatten(
            1, (self.channels, length)
        )
        rates = torch.full((5,), self.fps or 0.0)
        return MemoryImages(clips[:, :, 1], columns={"clip": Clips(clips), "fps": Clips(rates)})


class FilmTask(DiffusionConfig):
    network: FilmNetConfig = FilmNetConfig()  # type: ignore[assignment]


class FilmPreset(Preset):
    """A preset of such clips."""

    data: FilmSet  # type: ignore[assignment]
    task: FilmTask  # type: ignore[assignment]


def film_preset(**keys: Any) -> FilmPreset:
    """The tiny preset for clips of 1 channel, 6 frames of 4x6, under no conditions."""
    alone = {"task__conditioners": [], "task__drop_condition": 0, "guidance": 1, "train__steps": 2}
    tree = changed({**SMALL, "task": {}, "data": {}}, **(alone | keys))
    tree["data"] = {"kind": "films", "size": list(SIZE), "channels": 1} | tree["data"]
    task = {"kind": "diffusion", "field": "clip", "target": "v", "network": {"kind": "film"}}
    return FilmPreset.model_validate({**tree, "task": task | tree["task"]})


def film_model(**keys: Any) -> Model:
    """What it builds, its weights random."""
    return random_model(film_preset(**keys), "films")


def frames_of(given: dict[str, float], **keys: Any) -> dict[str, Any]:
    """The conditioner of given frames of such clips."""
    return {"kind": "frames", "channels": 1, "given": given, **keys}


def asked(model: Model, **options: Any) -> Request:
    """A request for two clips, of two steps."""
    return request(model, SampleOptions(**({"n": 2, "steps": 2} | options)))


def drawn(model: Model, **options: Any) -> Tensor:
    """Its clips, uint8 (n, C, T, H, W)."""
    return torch.cat([each.images for each in draw(asked(model, **options), Group(0, 1, CPU))])
