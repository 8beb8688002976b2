"""The schedulers of diffusers, to and from our schedule, target, clipping and sampler.

Their scheduler joins what diffcli separates: betas and prediction type belong to training; clipping, variance and steps to
sampling.
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
from diffcli.interop import blockers, scheduler_classes
from diffcli.interop.foreign import Foreign
from diffcli.preset import Preset
from diffcli.tasks.diffusion_config import DiffusionConfig

DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "prediction_type": None,  # epsilon, but for old files with predict_epsilon false
    "variance_type": None,  # the outputs of the network tell
    "clip_sample_range": 1.0,
    "thresholding": False,
    "timestep_spacing": None,  # each class has its own
    "timestep_type": "discrete",
    "use_flow_sigmas": False,
    "use_dynamic_shifting": False,
    "steps_offset": 0,
    "skip_prk_steps": False,
    "solver_order": 2,
}
OPEN_ENDS = {
    "DDIMScheduler": True,
    "DDIMParallelScheduler": True,
    "PNDMScheduler": False,
}  # set_alpha_to_one by default
TARGETS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
PREDICTIONS = {ours: theirs for theirs, ours in TARGETS.items()}
VARIANCES = {
    "fixed_small": "small",
    "fixed_small_log": "small",
    "fixed_large": "large",
    "fixed_large_log": "large",
    "learned_range": "learned",
}
SPACINGS = ("leading", "trailing", "linspace")
PSEUDO = "PNDMScheduler"
WRITTEN = {"small": "fixed_small", "large": "fixed_large", "learned": "learned_range"}
KNOWN: tuple[type[Linear] | type[ScaledLinear] | type[Cosine], ...] = (Linear, ScaledLinear, Cosine)
BETAS = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps")


def read_scheduler(config: Foreign) -> dict[str, Any]:
    """Raw preset keys `task` (target, schedule, codec, and learn_variance where the file says) and `sampler`.

    config: scheduler_config.json with DEFAULTS, or nothing. Raises UserError for a class or a key that we cannot express.
    """
    entry = scheduler_classes.understood(config)
    config = completed(config)
    config.demand({"prediction_type": tuple(TARGETS), **scheduler_classes.PLAIN})
    clip = scheduler_classes.clips(config)
    if clip:
        config.demand({"clip_sample_range": (1.0,)})
    steps, kind = config.get("num_train_timesteps"), scheduler_classes.sampler_of(config)
    walk: dict[str, Any] = {"spacing": spacing_of(config)} if config.get("_class_name") else {}
    if kind in ("ddim", "plms") and not entry.stand_in and config.get("set_alpha_to_one") is False:
        walk["ends"] = "cleanest"
    variance = variance_of(config)
    if kind == "ddpm":
        walk["variance"] = variance or "auto"
    return {
        "task": {
            "target": TARGETS[config.get("prediction_type")],
            "schedule": recognised(config).model_dump(),
            "codec": {"kind": "pixels", "clip": clip},
            **({} if variance is None else {"learn_variance": variance == "learned"}),
        },
        "sampler": {"kind": kind, "steps": steps if kind == "ddpm" else min(50, steps), **walk},
    }


def completed(config: Foreign) -> Foreign:
    """The configuration with the defaults of its class."""
    start, end = scheduler_classes.understood(config).betas
    name = config.get("_class_name")
    defaults = {
        **config.defaults,
        "beta_start": start,
        "beta_end": end,
        "prediction_type": "sample" if config.get("predict_epsilon") is False else "epsilon",
        "set_alpha_to_one": OPEN_ENDS.get(name),
    }
    return Foreign(config.values, defaults, config.source)


def variance_of(config: Foreign) -> str | None:
    """small, large or learned; None where the file leaves it to the network's outputs."""
    found = config.get("variance_type")
    if found is None:
        return None
    if scheduler_classes.understood(config).sampler == "ddpm":
        config.demand({"variance_type": tuple(VARIANCES)})
        return VARIANCES[found]
    return "learned" if str(found).startswith("learned") else "small"  # no other class adds it


def spacing_of(config: Foreign) -> str:
    """`sampler.spacing` for their timestep_spacing, steps_offset and use_karras_sigmas."""
    found = scheduler_classes.spaced(config)
    if found not in SPACINGS:
        raise config.refuse("timestep_spacing", f"which diffcli does not have (it has {', '.join(SPACINGS)})")
    if config.get("use_karras_sigmas"):
        return "karras"
    return "leading_1" if found == "leading" and config.get("steps_offset") else found


def notes(config: Foreign) -> tuple[str, ...]:
    """Differences between their scheduler and our sampler, by key: images from the same noise are then similar, not equal."""
    differ = scheduler_classes.unusual(completed(config))
    if not config.get("_class_name") or not differ:
        return ()
    return (
        f"{config.source}: images are similar to those of that scheduler, not equal: diffcli has no {'; '.join(differ)}",
    )


def recognised(config: Foreign) -> DiscreteSchedule:
    """The schedule of ours that has their betas."""
    betas = their_betas(config)
    theirs = their_log_alpha_bar(config, betas)
    makers = (*KNOWN, partial(between, Linear, betas), partial(between, ScaledLinear, betas))
    for make, rescaled in product(makers, (False, True)):
        ours = make(steps=len(betas), zero_terminal_snr=rescaled)
        if ours is not None and torch.allclose(ours.log_alpha_bar[1:], theirs, rtol=2e-4, atol=2e-6):
            return ours
    if config.get("trained_betas") is not None:
        raise UserError(
            f"{config.source}: trained_betas are those of no schedule of diffcli (linear, scaled_linear, cosine)",
            "it can only be used with the library that wrote it",
        )
    found = ", ".join(f"{key} {config.get(key)}" for key in BETAS)
    raise UserError(
        f"{config.source}: {found} is no schedule of diffcli",
        "linear and scaled_linear may have any two betas between 0 and 1",
    )


def between(
    cls: type[Linear] | type[ScaledLinear], betas: Tensor, steps: int, zero_terminal_snr: bool
) -> DiscreteSchedule | None:
    """Betas, or their square roots, on a line with the given ends, in our units of 1000 steps; None if that is impossible."""
    start, end = (float(beta) * steps / 1000 for beta in (betas[0], betas[-1]))
    if not (0 < start < 1 and 0 < end < 1):
        return None
    return cls(steps=steps, zero_terminal_snr=zero_terminal_snr, start=start, end=end)


def their_log_alpha_bar(config: Foreign, betas: Tensor) -> Tensor:
    """log alpha-bar after each step, float64 (T,), where rescaled -inf after the last."""
    found = torch.log1p(-betas).cumsum(0)
    if config.get("rescale_betas_zero_snr"):
        alpha = (found / 2).exp()
        found = 2 * ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])).log()
    return found


def their_betas(config: Foreign) -> Tensor:
    """float64 (T,) before any rescaling."""
    steps, start, end = (config.get(key) for key in ("num_train_timesteps", "beta_start", "beta_end"))
    if config.get("trained_betas") is not None:
        betas = torch.tensor(config.get("trained_betas"), dtype=torch.float64)
        if "num_train_timesteps" in config.values and len(betas) != steps:
            raise UserError(
                f"{config.source}: trained_betas has {len(betas)} entries but num_train_timesteps is {steps}",
                "download the folder again, whole",
            )
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
    return betas


def write_scheduler(preset: Preset) -> dict[str, Any]:
    """scheduler_config.json: a DDPMScheduler for the ancestral sampler, a PNDMScheduler for plms if possible, else a
    DDIMScheduler.

    All use the times of the preset's sampler, if they support them.
    """
    task = preset.task
    assert isinstance(task, DiffusionConfig)
    errors = []
    if task.target not in PREDICTIONS or not isinstance(task.schedule, DiscreteSchedule):
        errors.append(
            UserError(
                f"task.target is '{task.target}' on the schedule '{task.schedule.kind}', "
                "which the pipelines of diffusers for such networks do not support",
                "it cannot be exported; to export one, train it with --set task.target=v --set task.schedule.kind=cosine",
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
    clean = getattr(preset.sampler, "ends", "clean") == "clean"
    if isinstance(preset.sampler, Plms) and task.target != "x0" and not task.codec.clip:
        return {"_class_name": PSEUDO, **written, "skip_prk_steps": True, "set_alpha_to_one": clean}
    if not isinstance(preset.sampler, Ddpm):
        return {"_class_name": "DDIMScheduler", **written, "set_alpha_to_one": clean}
    chosen = preset.sampler.variance
    variance = ("learned" if task.learn_variance else "small") if chosen == "auto" else chosen
    return {"_class_name": "DDPMScheduler", **written, "variance_type": WRITTEN[variance]}


def written_walk(preset: Preset) -> dict[str, Any]:
    """timestep_spacing and steps_offset; trailing, our uniform, for a spacing that their scheduler lacks."""
    spacing = preset.sampler.spacing
    if spacing in ("leading", "leading_1"):
        return {"timestep_spacing": "leading", "steps_offset": int(spacing == "leading_1")}
    exact = spacing == "linspace" and isinstance(preset.sampler, Ddpm)
    latent = preset.task.codec.kind == "latent" if isinstance(preset.task, DiffusionConfig) else False
    # an offset has no effect on these, but pipelines of latents insist on it
    return {"timestep_spacing": "linspace" if exact else "trailing", "steps_offset": int(latent)}
