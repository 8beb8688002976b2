"""Tiny pipelines of diffusers with random weights, saved to folders as published ones are."""

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor

from diffcli.noise import Noise
from tests.encoders.making import WIDTH, tiny_text_tower
from tests.interop.making import CPU, STAGE, TRANSFORMING, wake

STEPS = 8  # of a walk that two programs compare
UNET = TRANSFORMING | {"cross_attention_dim": WIDTH}
CONTROL: dict[str, Any] = {k: v for k, v in TRANSFORMING.items() if k not in ("sample_size", "up_block_types")} | {
    "cross_attention_dim": WIDTH,
    "conditioning_embedding_out_channels": (6, 10),
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


def control_net(folder: Path, **options: Any) -> diffusers.ControlNetModel:
    """A ControlNetModel of `stable`; options: of its own."""
    made = wake(diffusers.ControlNetModel(**(CONTROL | options)), seed=5)
    made.save_pretrained(folder)
    return made


def unconditional(folder: Path, quantised: bool = True) -> Path:
    """An LDMPipeline, its first stage a VQModel or an AutoencoderKL."""
    first = wake(diffusers.VQModel(**STAGE, num_vq_embeddings=20, scaling_factor=0.7), seed=2)
    kinds = {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}
    channels = 3 if quantised else 4
    network = diffusers.UNet2DModel(**{**TRANSFORMING, **kinds, "in_channels": channels, "out_channels": channels})
    scheduler = diffusers.DDIMScheduler(
        clip_sample=False, beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195
    )
    made = diffusers.LDMPipeline(vqvae=first if quantised else vae(), unet=wake(network), scheduler=scheduler)
    made.save_pretrained(folder)
    return folder


def transformer(folder: Path) -> Path:
    """A DiTPipeline with its first stage; the copies of its embedders are equal as in published models."""
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=5,
    )
    wake(network)
    for block in network.transformer_blocks:
        block.norm1.emb.load_state_dict(network.transformer_blocks[0].norm1.emb.state_dict())
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    diffusers.DiTPipeline(network, vae(), scheduler).save_pretrained(folder)
    return folder


def levels(images: Any) -> Any:
    """uint8 of what a pipeline gives as "np"."""
    return (images * 255).round().astype("uint8")


def trailing(scheduler: Any) -> diffusers.DDIMScheduler:
    """DDIM on the grid that starts at the last trained step and ends without noise, as ours does."""
    options = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "steps_offset": 0, "clip_sample": False}
    return diffusers.DDIMScheduler.from_config(scheduler.config, **options)


def start(seeds: list[int], *shape: int) -> Tensor:
    """The noise that our images of these seeds begin from."""
    return Noise(seeds, CPU)(torch.empty(len(seeds), *shape))


def drawn(folder: Path, seeds: list[int], shape: tuple[int, ...], own: bool = False, **call: Any) -> Any:
    """uint8 (n, H, W, C): what StableDiffusionPipeline draws from our noise in STEPS steps of DDIM, or of its own scheduler."""
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    pipe.scheduler = pipe.scheduler if own else trailing(pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    factor = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    size = {"height": shape[1] * factor, "width": shape[2] * factor}
    return levels(
        pipe(latents=start(seeds, *shape), num_inference_steps=STEPS, output_type="np", **size, **call).images
    )


def walked(pipe: Any, x: Tensor, predict: Any) -> Any:
    """uint8 (n, H, W, C): latents x after STEPS steps of its own scheduler and the first stage; predict(x, t): the noise."""
    stage, scheduler = getattr(pipe, "vqvae", None) or pipe.vae, pipe.scheduler
    scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(predict(x, t), t, x).prev_sample
        image = stage.decode(x / stage.config.scaling_factor).sample
    return levels((image / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy())
