"""Tiny pipelines of diffusers with random weights, saved to folders as published ones are."""

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor

from diffcli.noise import Noise
from tests.encoders.making import WIDTH, tiny_text_tower
from tests.interop.making import CPU, wake

STAGE: dict[str, Any] = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 16,
}
UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
}
STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def vae(**options: Any) -> diffusers.AutoencoderKL:
    return wake(diffusers.AutoencoderKL(**(STAGE | options)), seed=2)


def stable(folder: Path, scheduler: Any = None, stage: dict[str, Any] | None = None, **options: Any) -> Path:
    """A StableDiffusionPipeline; options: of its U-Net."""
    tiny_text_tower(folder)
    made = diffusers.StableDiffusionPipeline(
        vae=vae(**(stage or {})),
        text_encoder=transformers.CLIPTextModel.from_pretrained(folder / "text_encoder"),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=wake(diffusers.UNet2DConditionModel(**(UNET | options))),
        scheduler=scheduler or diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1, **STABLE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.save_pretrained(folder)
    return folder


def trailing(scheduler: Any) -> diffusers.DDIMScheduler:
    """DDIM on the grid that starts at the last trained step and ends without noise, as ours does."""
    options = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "steps_offset": 0, "clip_sample": False}
    return diffusers.DDIMScheduler.from_config(scheduler.config, **options)


def start(seeds: list[int], *shape: int) -> Tensor:
    """The noise that our images of these seeds begin from."""
    return Noise(seeds, CPU)(torch.empty(len(seeds), *shape))


def drawn(folder: Path, seeds: list[int], shape: tuple[int, ...], **call: Any) -> Any:
    """uint8 (n, H, W, C): what StableDiffusionPipeline draws from our noise in 20 steps of DDIM."""
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    pipe.scheduler = trailing(pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    factor = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    size = {"height": shape[1] * factor, "width": shape[2] * factor}
    images = pipe(latents=start(seeds, *shape), num_inference_steps=20, output_type="np", **size, **call).images
    return (images * 255).round().astype("uint8")
