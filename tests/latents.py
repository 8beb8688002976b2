"""First stages with random weights, and latent models on them, for tests of what is not about their quality."""

from pathlib import Path
from typing import Any

import torch

from diffcli import __version__, checkpoint
from diffcli import preset as presets
from diffcli.networks.autoencoder import Autoencoder, FirstStageConfig
from diffcli.tasks.diffusion import DiffusionTask
from tests.conftest import TINY, changed

STAGE: dict[str, Any] = {
    "network": {"width": 8, "mult": [1, 2], "depth": 1, "groups": 4, "latent": 3},
    "bottleneck": {"kind": "kl"},
    "channels": 1,
}


def stage_config(**keys: Any) -> FirstStageConfig:
    """That of `STAGE`, with keys such as network__width changed."""
    return FirstStageConfig.model_validate(changed(STAGE, **keys))


def shaken(module: torch.nn.Module, seed: int = 0) -> None:
    """Moves every parameter, so that no layer is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def random_stage(seed: int = 0, **keys: Any) -> Autoencoder:
    """A first stage in which everything is done to the image."""
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(seed)
        stage = stage_config(**keys).build().eval().requires_grad_(False)
    shaken(stage, seed)
    return stage


def latent_tree(**keys: Any) -> dict[str, Any]:
    """The tiny preset with a latent codec."""
    return changed(TINY, **{"name": "latent", "task__codec": {"kind": "latent"}, "train__batch_size": 300, **keys})


def stage_checkpoint(folder: Path, seed: int = 0, **keys: Any) -> Path:
    """A checkpoint to take a first stage from: that of a latent model, with random weights."""
    tree = latent_tree(
        task__codec={"kind": "latent", "first_stage": changed(STAGE, **keys)}, data__channels=keys.get("channels", 1)
    )
    preset = presets.build(tree, "stage.yaml")
    task = preset.task.build(preset.specs)
    assert isinstance(task, DiffusionTask)
    task.codec.first_stage = random_stage(seed, **keys)
    record = {"step": 1, "preset": preset.model_dump(mode="json"), "version": __version__, "classes": None}
    return checkpoint.save_average(folder, task.sampled_state(), record)
