"""The same U-Net and the same training step in three projects: channels 64, 128, 128, two residual blocks a level,
attention at 16x16 and in the middle, 32x32x3, batches of 32.

Each contender is what its own users run: this project's engine; diffusers' `UNet2DModel` in the loop of its
train_unconditional example; denoising-diffusion-pytorch's `Unet` and `GaussianDiffusion` in the loop of its `Trainer`. All
compute a loss and its gradient, clip it, step Adam(W) and average the weights. Images are in memory already.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diffcli.torchvision_compat  # noqa: F401  before the peers import torchvision

Precision = Literal["fp32", "bf16", "auto"]
BATCH, SIZE, CHANNELS = 32, 32, (64, 128, 128)


class Contender(NamedTuple):
    """A training loop that stands ready."""

    version: str
    precision: str  # as resolved
    parameters: int
    heads: str
    step: Callable[[], object]  # one optimizer update


def images(n: int = 512) -> Tensor:
    """uint8 (N, 3, 32, 32): noise, since only time is measured."""
    return torch.randint(0, 256, (n, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator())


def batches() -> Iterator[Tensor]:
    """float (B, 3, 32, 32) in [-1, 1], for ever."""
    data = images()
    while True:
        yield data[torch.randint(len(data), (BATCH,))].float() / 127.5 - 1


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def autocast(precision: Precision) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def ours(precision: Precision, head_dim: int) -> Contender:
    """The steps of `diffcli train`, as they are."""
    from diffcli import __version__
    from diffcli import preset as presets
    from diffcli.data.images import MemoryImages
    from diffcli.engine.distributed import Group
    from diffcli.engine.run.loop import Loop
    from diffcli.engine.run.runlog import RunDir
    from diffcli.engine.run.state import build_state, resolved
    from diffcli.engine.tuning import tune_allocator

    tree: dict[str, Any] = {
        "name": "bench",
        "data": {"kind": "cifar10", "size": SIZE},
        "task": {
            "kind": "diffusion",
            "network": {
                "kind": "unet",
                "width": CHANNELS[0],
                "mult": [c // CHANNELS[0] for c in CHANNELS],
                "blocks": ["res", "attention", "res", "attention"],
                "attend_at": [16],
                "head_dim": head_dim,
                "resample": "conv",
            },
        },
        "train": {
            "steps": 10**9,
            "batch_size": BATCH,
            "precision": precision,
            "clip": 1.0,
            "ema": 0.9999,
            "optimizer": {"kind": "adamw", "lr": 1e-4},
            "every": {"log": 0, "preview": 0, "save": 0},
        },
    }
    tune_allocator()
    group = Group(rank=0, world=1, device=torch.device("cpu"))
    preset = resolved(presets.build(tree, "bench"), group.device)
    state = build_state(preset, group.device)
    steps = Loop(preset, RunDir(Path(mkdtemp())), group, state, MemoryImages(images()), {}).steps(0)
    network = state.task.network_to_compile
    heads = f"{CHANNELS[-1] // head_dim} of {head_dim}"
    return Contender(__version__, preset.train.precision, count(network), heads, lambda: next(steps))


def diffusers(precision: Precision, head_dim: int) -> Contender:
    """The loop of examples/unconditional_image_generation/train_unconditional.py."""
    from diffusers import DDPMScheduler, UNet2DModel, __version__
    from diffusers.training_utils import EMAModel

    network = UNet2DModel(
        sample_size=SIZE,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=head_dim,
        resnet_time_scale_shift="scale_shift",
    )
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    ema = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True)
    data = batches()

    def step() -> None:
        clean = next(data)
        noise = torch.randn_like(clean)
        time = torch.randint(0, 1000, (BATCH,))
        noisy = scheduler.add_noise(clean, noise, time)
        with autocast(precision):
            predicted = network(noisy, time).sample
        F.mse_loss(predicted.float(), noise).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(network.parameters())

    heads = f"{CHANNELS[-1] // head_dim} of {head_dim}"
    return Contender(__version__, precision, count(network), heads, step)


def denoising_diffusion_pytorch(precision: Precision, head_dim: int) -> Contender:
    """The loop of its Trainer. Where attention is not full, its U-Net has linear attention: that is its architecture."""
    from importlib.metadata import version

    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

    mult = tuple(c // CHANNELS[0] for c in CHANNELS)
    heads = CHANNELS[-1] // head_dim
    network = Unet(
        CHANNELS[0], dim_mults=mult, full_attn=(False, True, False), attn_dim_head=head_dim, attn_heads=heads
    )
    diffusion = GaussianDiffusion(network, image_size=SIZE, objective="pred_noise")
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    ema = EMA(diffusion, beta=0.995, update_every=10)
    data = batches()

    def step() -> None:
        with autocast(precision):
            loss = diffusion(next(data) / 2 + 0.5)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()

    told = f"{heads} of {head_dim}, linear elsewhere"
    return Contender(version("denoising-diffusion-pytorch"), precision, count(network), told, step)


CONTENDERS: dict[str, Callable[[Precision, int], Contender]] = {
    "diffcli": ours,
    "diffusers": diffusers,
    "denoising-diffusion-pytorch": denoising_diffusion_pytorch,
}
