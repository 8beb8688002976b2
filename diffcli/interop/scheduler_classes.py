"""The schedulers of diffusers that diffcli understands, by class, and the sampler that each becomes.

One file of theirs describes training and sampling. A class that is not listed may use the same keys for another path, or have
another target without any key, so it is refused by name.
"""

from typing import Any, NamedTuple

from diffcli.config import UserError
from diffcli.interop.foreign import Foreign

STABLE = (0.00085, 0.012)  # betas of Stable Diffusion, which some classes begin with
NOT_STATED = "DDPMScheduler"  # assumed for a folder without a scheduler


class UnderstoodClass(NamedTuple):
    """A class of theirs: the sampler of ours, and the defaults in which classes differ."""

    sampler: str
    spacing: str = "linspace"  # timestep_spacing if a file has none
    exact: tuple[str, ...] = ()  # timestep_spacing with the same steps as ours; others are similar
    clip: bool | None = None  # clip_sample if a file has none; None: the class has no such key and never clips
    betas: tuple[float, float] = (0.0001, 0.02)
    stand_in: bool = False  # ours has no such method


ANCESTRAL = UnderstoodClass("ddpm", "leading", ("leading", "trailing", "linspace"), clip=True)
IMPLICIT = UnderstoodClass("ddim", "leading", ("leading", "trailing"), clip=True)
UNDERSTOOD = {
    "DDPMScheduler": ANCESTRAL,
    "DDPMParallelScheduler": ANCESTRAL,
    "DDIMScheduler": IMPLICIT,
    "DDIMParallelScheduler": IMPLICIT,
    "PNDMScheduler": UnderstoodClass("plms", "leading", ("leading", "trailing")),
    "EulerDiscreteScheduler": UnderstoodClass("euler", exact=("leading", "trailing")),
    "EulerAncestralDiscreteScheduler": UnderstoodClass("euler_ancestral"),
    "HeunDiscreteScheduler": UnderstoodClass("edm_heun", clip=False, betas=STABLE),
    "DPMSolverMultistepScheduler": UnderstoodClass("dpmpp_2m"),
    "DPMSolverSinglestepScheduler": UnderstoodClass("dpmpp_2m", stand_in=True),
    "DPMSolverSDEScheduler": UnderstoodClass("dpmpp_2m_sde", betas=STABLE, stand_in=True),
    "UniPCMultistepScheduler": UnderstoodClass("unipc"),
    "DEISMultistepScheduler": UnderstoodClass("ddim", stand_in=True),
    "LMSDiscreteScheduler": UnderstoodClass("ddim", stand_in=True),
    "KDPM2DiscreteScheduler": UnderstoodClass("ddim", betas=STABLE, stand_in=True),
    "KDPM2AncestralDiscreteScheduler": UnderstoodClass("euler_ancestral", betas=STABLE, stand_in=True),
}
PLAIN: dict[str, tuple[Any, ...]] = {  # other values mean another path, another time or another x0
    "thresholding": (False,),
    "timestep_type": ("discrete",),
    "use_flow_sigmas": (False,),
    "use_dynamic_shifting": (False,),
    "shift_terminal": (None,),
}
USUAL: dict[str, Any] = {  # other values give similar images
    "interpolation_type": "linear",
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "sigma_min": None,
    "sigma_max": None,
    "final_sigmas_type": "zero",
    "euler_at_final": False,
    "predict_x0": True,
}
MULTISTEP = "DPMSolverMultistepScheduler"
FIRST, THIRD = 1, 3  # solver_order


def understood(config: Foreign) -> UnderstoodClass:
    """The entry of the class that a configuration names. Raises UserError with the class if there is none."""
    name = config.get("_class_name") or NOT_STATED
    if name not in UNDERSTOOD:
        raise UserError(
            f"{config.source}: _class_name is {name!r}, whose noise and target diffcli does not know",
            f"it imports models with one of {', '.join(UNDERSTOOD)}",
        )
    return UNDERSTOOD[name]


def sampler_of(config: Foreign) -> str:
    """The kind of our sampler: that of the class, or what its options make of it."""
    kind = understood(config).sampler
    if config.get("_class_name") != MULTISTEP:
        return kind
    if str(config.get("algorithm_type")).startswith("sde-"):
        return "dpmpp_2m_sde"
    return {FIRST: "ddim", THIRD: "dpmpp_3m"}.get(config.get("solver_order"), kind)


def clips(config: Foreign) -> bool:
    """Whether x0 is clipped to [-1, 1], as the file says if its class has such a key."""
    default = understood(config).clip
    return default is not None and bool(config.values.get("clip_sample", default))


def spaced(config: Foreign) -> str:
    """timestep_spacing, in the class's own default where the file does not say."""
    return str(config.get("timestep_spacing") or understood(config).spacing)


def unusual(config: Foreign) -> list[str]:
    """The differences of such a scheduler from our sampler, each by its key and value."""
    entry, name, spacing = understood(config), config.get("_class_name"), spaced(config)
    found = [f"_class_name {name} (drawn with {sampler_of(config)})"] if entry.stand_in else []
    if not entry.stand_in and spacing not in entry.exact:
        found.append(f"timestep_spacing {spacing} as {name} has it")
    for key, usual in USUAL.items():
        value = config.values.get(key, usual)
        if value != usual:
            found.append(f"{key} {value}".lower())
    if name == MULTISTEP and config.get("solver_order") == THIRD:
        found.append("solver_order 3 (dpmpp_3m takes the whole of the third term)")
    if str(config.get("algorithm_type")) in ("dpmsolver", "sde-dpmsolver"):
        found.append(f"algorithm_type {config.get('algorithm_type')}")
    if entry.sampler == "ddim" and clips(config):
        found.append("clip_sample true (theirs keeps the noise that belongs to x0 before it is clipped)")
    ends_near = entry.sampler in ("ddim", "plms") and not entry.stand_in and not config.get("set_alpha_to_one")
    if spacing == "leading" and ends_near and not config.get("steps_offset"):
        found.append("set_alpha_to_one false with steps_offset 0 (its last step moves nothing, ours removes the rest)")
    if spacing == "leading" and config.get("steps_offset") not in (0, 1):
        found.append(f"steps_offset {config.get('steps_offset')} (ours is 1)")
    if entry.sampler == "plms" and not config.get("skip_prk_steps"):
        found.append("skip_prk_steps false")
    if entry.sampler == "plms" and config.get("prediction_type") == "v_prediction":
        found.append("prediction_type v_prediction (theirs combines v, plms the noise)")
    return found
