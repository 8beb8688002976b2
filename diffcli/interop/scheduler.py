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
from diffcli.diffusion.samplers import Ddpm, Plms
from diffcli.diffusion.schedule import MAX_BETA, Cosine, DiscreteSchedule, Linear, ScaledLinear
from diffcli.interop import blockers
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
    "timestep_spacing": None,  # each class has its own
    "steps_offset": 0,
    "set_alpha_to_one": None,
    "skip_prk_steps": False,
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
SPACINGS = {  # theirs, in classes whose walk along it ours takes to the bit; others come near
    "leading": ("DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler"),
    "trailing": ("DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler"),
    "linspace": ("DDPMScheduler",),
}
LEADING = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler")  # classes that space so where a file does not say
PSEUDO = "PNDMScheduler"
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
    walk = {"spacing": spacing_of(config)} if kind is not None else {}
    if kind == "DDIMScheduler" and config.get("set_alpha_to_one") is False:
        walk["ends"] = "cleanest"
    return {
        "task": {
            "target": TARGETS[config.get("prediction_type")],
            "learn_variance": variance == "learned",
            "schedule": recognised(config).model_dump(),
            "codec": {"kind": "pixels", "clip": clips},
        },
        "sampler": {"kind": "ddpm", "steps": steps, "variance": variance, **walk}
        if kind in ("DDPMScheduler", None)
        else {"kind": SAMPLERS.get(kind, "ddim"), "steps": min(50, steps), **walk},
    }


def spacing_of(config: Foreign) -> str:
    """`sampler.spacing` of ours for their timestep_spacing and steps_offset."""
    found = config.get("timestep_spacing") or ("leading" if config.get("_class_name") in LEADING else "linspace")
    if found not in SPACINGS:
        raise config.refuse("timestep_spacing", f"which diffcli does not have (it has {', '.join(SPACINGS)})")
    return "leading_1" if found == "leading" and config.get("steps_offset") else found


def notes(config: Foreign) -> tuple[str, ...]:
    """What of a stated scheduler our sampler does otherwise, by key: images from one noise are then near theirs, not equal."""
    kind, spacing = config.get("_class_name"), spacing_of(config)
    theirs = spacing.removesuffix("_1")
    differ = []
    if kind == PSEUDO:
        differ.append(
            "_class_name PNDMScheduler (plms has the coefficients of the grid at hand, and no second look at its start)"
        )
        if not config.get("skip_prk_steps"):
            differ.append("skip_prk_steps false")
        if not config.get("set_alpha_to_one"):
            differ.append("set_alpha_to_one false (plms ends without noise)")
    elif kind is not None and kind not in (*SAMPLERS, "DDPMScheduler", "DDIMScheduler"):
        differ.append(f"_class_name {kind} (drawn with ddim)")
    elif kind is not None and kind not in SPACINGS[theirs]:
        differ.append(f"timestep_spacing {theirs} as {kind} has it")
    if theirs == "leading" and config.get("steps_offset") not in (0, 1):
        differ.append(f"steps_offset {config.get('steps_offset')} (ours is 1)")
    if kind == "DDIMScheduler" and spacing == "leading" and config.get("set_alpha_to_one") is False:
        differ.append("set_alpha_to_one false with steps_offset 0 (its last step moves nothing, ours removes the rest)")
    if not differ:
        return ()
    return (
        f"{config.source}: images come near those of that scheduler, but are not equal, for diffcli has no {'; '.join(differ)}",
    )


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
    """scheduler_config.json: a DDPMScheduler for the ancestral sampler, a PNDMScheduler for plms where it can be, else a
    DDIMScheduler.

    All on the times of the preset's sampler, where they have such.
    """
    task = preset.task
    assert isinstance(task, DiffusionConfig)
    errors = []
    if task.target not in PREDICTIONS or not isinstance(task.schedule, DiscreteSchedule):
        errors.append(
            UserError(
                f"task.target is '{task.target}' on the schedule '{task.schedule.kind}', "
                "which the pipelines of diffusers for such networks cannot draw",
                "such a model cannot go out; to export one, train it with --set task.target=v --set task.schedule.kind=cosine",
            )
        )
    if task.codec.kind != "latent" and (task.codec.kind != "pixels" or task.codec.scale != 1):
        wanted = "--set task.codec.scale=1" if task.codec.kind == "pixels" else "task.codec.kind pixels"
        errors.append(
            UserError(
                f"task.codec is {task.codec.model_dump(mode='json')}, which a pipeline of diffusers for pixels does not have",
                f"export a model that was trained with {wanted}",
            )
        )
    blockers.raise_joined(errors)
    assert isinstance(task.schedule, DiscreteSchedule)
    assert task.codec.kind in ("latent", "pixels")
    written = {
        "num_train_timesteps": task.schedule.steps,
        "trained_betas": task.schedule.betas().tolist(),
        "rescale_betas_zero_snr": task.schedule.zero_terminal_snr,
        "prediction_type": PREDICTIONS[task.target],
        "clip_sample": task.codec.kind == "pixels" and task.codec.clip,
        **written_walk(preset),
    }
    if isinstance(preset.sampler, Plms) and task.target != "x0" and not task.codec.clip:
        return {"_class_name": PSEUDO, **written, "skip_prk_steps": True, "set_alpha_to_one": False}
    if not isinstance(preset.sampler, Ddpm):
        ends = getattr(preset.sampler, "ends", "clean")
        return {"_class_name": "DDIMScheduler", **written, "set_alpha_to_one": ends == "clean"}
    chosen = preset.sampler.variance
    variance = ("learned" if task.learn_variance else "small") if chosen == "auto" else chosen
    return {"_class_name": "DDPMScheduler", **written, "variance_type": WRITTEN[variance]}


def written_walk(preset: Preset) -> dict[str, Any]:
    """timestep_spacing and steps_offset; trailing, which our uniform is, for a spacing that their scheduler has not."""
    spacing = preset.sampler.spacing
    if spacing in ("leading", "leading_1"):
        return {"timestep_spacing": "leading", "steps_offset": int(spacing == "leading_1")}
    exact = spacing == "linspace" and isinstance(preset.sampler, Ddpm)
    latent = preset.task.codec.kind == "latent" if isinstance(preset.task, DiffusionConfig) else False
    # an offset has no effect on these, but pipelines of latents insist on it
    return {"timestep_spacing": "linspace" if exact else "trailing", "steps_offset": int(latent)}
