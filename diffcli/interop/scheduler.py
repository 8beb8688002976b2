"""The schedulers of diffusers, to and from our schedule, target, clipping and sampler.

Their scheduler joins what we keep apart: betas and prediction type were trained; clipping, variance and steps only sample.
"""

import math
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.diffusion.samplers import Ddpm
from diffcli.diffusion.schedule import MAX_BETA, Cosine, DiscreteSchedule, Linear, ScaledLinear
from diffcli.interop.foreign import Foreign
from diffcli.preset import Preset
from diffcli.tasks.diffusion_config import DiffusionConfig

DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "prediction_type": "epsilon",
    "variance_type": "fixed_small",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "thresholding": False,
}
TARGETS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
PREDICTIONS = {ours: theirs for theirs, ours in TARGETS.items()}
VARIANCES = {
    None: "small",
    "fixed_small": "small",
    "fixed_small_log": "small",
    "fixed_large": "large",
    "fixed_large_log": "large",
    "learned_range": "learned",
}
CLIPPING = ("DDPMScheduler", "DDIMScheduler", None)  # those that know `clip_sample`; None: nothing says which one it is
SAMPLERS = {  # of ours, for schedulers that are no DDPM; others become DDIM, the first order of them all
    "PNDMScheduler": "plms",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "HeunDiscreteScheduler": "heun",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "UniPCMultistepScheduler": "unipc",
}
WRITTEN = {"small": "fixed_small", "large": "fixed_large", "learned": "learned_range"}
KNOWN: tuple[type[Linear] | type[ScaledLinear] | type[Cosine], ...] = (Linear, ScaledLinear, Cosine)
BETAS = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps")


def read_scheduler(config: Foreign) -> dict[str, Any]:
    """Raw preset keys `task` (target, learn_variance, schedule, codec) and `sampler`.

    config: scheduler_config.json with DEFAULTS. Raises UserError for what we cannot express.
    """
    config.demand({"prediction_type": tuple(TARGETS), "variance_type": tuple(VARIANCES), "thresholding": (False,)})
    kind = config.get("_class_name")
    clips = bool(config.get("clip_sample")) and kind in CLIPPING
    if clips:
        config.demand({"clip_sample_range": (1.0,)})
    variance = VARIANCES[config.get("variance_type")]
    steps = config.get("num_train_timesteps")
    return {
        "task": {
            "target": TARGETS[config.get("prediction_type")],
            "learn_variance": variance == "learned",
            "schedule": recognised(config).model_dump(),
            "codec": {"kind": "pixels", "clip": clips},
        },
        "sampler": {"kind": "ddpm", "steps": steps, "variance": variance}
        if kind in ("DDPMScheduler", None)
        else {"kind": SAMPLERS.get(kind, "ddim"), "steps": min(50, steps)},
    }


def recognised(config: Foreign) -> DiscreteSchedule:
    """The schedule of ours that has their betas."""
    theirs = their_alpha(config)
    grid = torch.arange(1, len(theirs) + 1, dtype=torch.float64) / len(theirs)
    for make, rescaled in product((*KNOWN, partial(between, config)), (False, True)):
        ours = make(steps=len(theirs), zero_terminal_snr=rescaled)
        if torch.allclose(ours.alpha_sigma(grid)[0], theirs, rtol=1e-4, atol=1e-6):
            return ours
    if config.get("trained_betas") is not None:
        raise UserError(
            f"{config.source}: trained_betas are those of no schedule of diffcli (linear, scaled_linear, cosine)",
            "it can only be used with the library that wrote it",
        )
    found = ", ".join(f"{key} {config.get(key)}" for key in BETAS)
    raise UserError(
        f"{config.source}: {found} is no schedule of diffcli",
        "linear runs from 0.0001 to 0.02 at 1000 steps; scaled_linear and squaredcos_cap_v2 are free",
    )


def between(config: Foreign, steps: int, zero_terminal_snr: bool) -> DiscreteSchedule:
    """Square roots of betas on a line with their ends, which are those at any number of steps; ours are those of 1000."""
    start, end = (min(config.get(key) * steps / 1000, MAX_BETA) for key in ("beta_start", "beta_end"))
    return ScaledLinear(steps=steps, zero_terminal_snr=zero_terminal_snr, start=start, end=end)


def their_alpha(config: Foreign) -> Tensor:
    """sqrt(alpha-bar) after each step, float64 (T,)."""
    steps, start, end = (config.get(key) for key in ("num_train_timesteps", "beta_start", "beta_end"))
    if config.get("trained_betas") is not None:
        betas = torch.tensor(config.get("trained_betas"), dtype=torch.float64)
    elif config.get("beta_schedule") == "linear":
        betas = torch.linspace(start, end, steps, dtype=torch.float64)
    elif config.get("beta_schedule") == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square()
    elif config.get("beta_schedule") == "squaredcos_cap_v2":
        t = torch.arange(steps + 1, dtype=torch.float64) / steps
        curve = torch.cos((t + 0.008) / 1.008 * math.pi / 2).square()
        betas = (1 - curve[1:] / curve[:-1]).clamp(max=MAX_BETA)
    else:
        raise config.refuse("beta_schedule", "which diffcli does not have")
    alpha = (1 - betas).cumprod(0).sqrt()
    if config.get("rescale_betas_zero_snr"):
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    return alpha


def write_scheduler(preset: Preset) -> dict[str, Any]:
    """scheduler_config.json: a DDPMScheduler for the ancestral sampler, else a DDIMScheduler on the same times."""
    task = preset.task
    assert isinstance(task, DiffusionConfig)
    if task.target not in PREDICTIONS or not isinstance(task.schedule, DiscreteSchedule):
        raise UserError(
            f"task.target is '{task.target}' on the schedule '{task.schedule.kind}', "
            "which the pipelines of diffusers for such networks cannot draw",
            "such a model cannot go out; to export one, train it with --set task.target=v --set task.schedule.kind=cosine",
        )
    if task.codec.kind != "latent" and (task.codec.kind != "pixels" or task.codec.scale != 1):
        raise UserError(
            f"task.codec is {task.codec.model_dump(mode='json')}, which a pipeline of diffusers for pixels does not have",
            "export a model that was trained with task.codec.scale 1",
        )
    written = {
        "num_train_timesteps": task.schedule.steps,
        "trained_betas": task.schedule.betas().tolist(),
        "rescale_betas_zero_snr": task.schedule.zero_terminal_snr,
        "prediction_type": PREDICTIONS[task.target],
        "clip_sample": task.codec.clip,
        "timestep_spacing": "trailing",
        "steps_offset": 1 if task.codec.kind == "latent" else 0,  # of no effect here, but pipelines of latents insist
    }
    if not isinstance(preset.sampler, Ddpm):
        return {"_class_name": "DDIMScheduler", **written}
    chosen = preset.sampler.variance
    variance = ("learned" if task.learn_variance else "small") if chosen == "auto" else chosen
    return {"_class_name": "DDPMScheduler", **written, "variance_type": WRITTEN[variance]}
