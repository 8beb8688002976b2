"""Models without a run behind them, for tests of drawing: tiny, untrained, under conditions that no preset names yet."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from diffcli import preset as presets
from diffcli.engine.model import Model
from diffcli.fields import Batch, FieldSpec
from diffcli.networks.conditioning import Conditioning, CondShape
from diffcli.noise import Noise
from diffcli.tasks.conditioners.conditioner import UNSEEDED, Conditioner, cond_shape
from diffcli.tasks.diffusion import DiffusionTask
from diffcli.tasks.diffusion_config import DiffusionConfig
from tests.conftest import changed
from tests.engine.one_level import SMALL
from tests.networks.waking import wake

FREE = {"task__conditioners": [], "task__drop_condition": 0, "guidance": 1}


class Pictured(Conditioner):
    """A picture beside x in the network's input, enlarged to its size; 0 where there is no condition."""

    kind = "pictured"

    def __init__(self, field: str, spec: FieldSpec) -> None:
        super().__init__()
        self.field, self.reads = field, {field: spec}
        self.shape = CondShape(spatial=int(spec.shape[0] or 1))
        self.seen: list[Tensor] = []

    def forward(self, batch: Batch, keep: Tensor, like: Tensor, noise: Noise = UNSEEDED) -> Conditioning:
        self.seen.append(batch[self.field])
        large = interpolate(batch[self.field].float(), like.shape[2:])
        return Conditioning(spatial=torch.where(keep.view(-1, 1, 1, 1), large, 0.0))


def made(**keys: Any) -> Model:
    """The tiny preset with changes as a model, its weights random."""
    return random_model(presets.build(changed(SMALL, **keys), "made.yaml"), "made")


def random_model(preset: presets.Preset, name: str) -> Model:
    """What a preset builds, its weights random, as if it were loaded from a checkpoint."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        task = preset.task.build(preset.specs)
        wake(task)
    task = task.eval().requires_grad_(False)
    return Model(Path(name), 0, preset, task, None, True, "0" * 64)


def pictured(field: str, spec: FieldSpec, **keys: Any) -> tuple[Model, Pictured]:
    """A tiny model of 8x8 images that is conditioned on a picture; and its conditioner, which remembers what it was given."""
    model, conditioner = made(**(FREE | keys)), Pictured(field, spec)
    config, task = model.preset.task, model.task
    assert isinstance(config, DiffusionConfig)
    assert isinstance(task, DiffusionTask)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        task.denoiser.network = config.network.build(model.preset.data.shape, 1, cond_shape([conditioner]))
        wake(task)
    task.conditioners.append(conditioner)
    task.eval().requires_grad_(False)
    return model, conditioner


def encoding(kind: str = "kl", size: int = 8, channels: int = 1, **keys: Any) -> Model:
    """A tiny first stage of downscale 4 as a model, its weights random. keys: of its task."""
    network = {"width": 8, "mult": [1, 2, 2], "depth": 1, "latent": 2, "groups": 4}
    bottleneck = {"kind": kind} | {"vq": {"codes": 16}, "fsq": {"levels": [5, 4]}}.get(kind, {})
    tree = {
        "name": "encoding",
        "data": {"kind": "digits", "size": size, "channels": channels},
        "task": {"kind": "autoencoder", "network": network, "bottleneck": bottleneck, **keys},
        "train": {"steps": 1},
    }
    return random_model(presets.build(tree, "encoding.yaml"), "encoding")
