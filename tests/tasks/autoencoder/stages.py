"""Tiny first stages for tests, and batches for them."""

from typing import Any

import torch
from torch import Tensor

from diffcli.fields import FieldSpec
from diffcli.noise import Noise
from diffcli.tasks.autoencoder.autoencoder_config import AutoencoderTaskConfig
from diffcli.tasks.autoencoder.autoencoder_task import AutoencoderTask

NETWORK: dict[str, Any] = {"width": 8, "mult": [1, 2], "depth": 1, "latent": 2, "groups": 4}
ADVERSARIAL: dict[str, Any] = {"start": 3, "warm": 2, "discriminator": {"width": 4, "depth": 1}}


def first_stage(channels: int = 1, size: int = 8, width: int = 5, **keys: Any) -> AutoencoderTask:
    """A task whose residual branches are awake; width: of its embedding, where keys name one."""
    tree = {"network": NETWORK, **keys}
    specs = {"image": FieldSpec("image", (channels, size, size)), "clip_image": FieldSpec("vector", (width,))}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        task = AutoencoderTaskConfig.model_validate(tree).build(specs)
        for parameter in task.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    return task


def batch(n: int = 6, channels: int = 1, size: int = 8, width: int = 5) -> dict[str, Tensor]:
    """n images of noise, and embeddings."""
    noise = Noise(range(n), torch.device("cpu"))
    image = noise(torch.empty(n, channels, size, size)).mul(0.5).clamp(-1, 1)
    rows = {"stream": torch.arange(n), "position": torch.arange(n)}
    return {"image": image, "clip_image": noise(torch.empty(n, width)), **rows}


def part(whole: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {name: value[rows] for name, value in whole.items()}
