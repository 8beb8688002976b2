"""The sampling options of the command line; sampler, guidance and number of images completed by them."""

from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from diffcli import preset
from diffcli.config import UserError, did_you_mean
from diffcli.diffusion.samplers import AnySampler, Sampler
from diffcli.engine.draw.conditions import Conditions
from diffcli.engine.model import Model
from diffcli.engine.options.sample_options import SampleOptions as SampleOptions
from diffcli.engine.options.sample_options import check_one_step as check_one_step
from diffcli.engine.options.seeds import seed_count
from diffcli.lookup.changeable import check_sampling
from diffcli.preset import Preset
from diffcli.tasks.diffusion_config import DiffusionConfig
from diffcli.tasks.guide import Drawing, Guide
from diffcli.tasks.prior import DiffusionPriorConfig

DEFAULT_N = 16


def choose_guidance(model: Model, options: SampleOptions, task: DiffusionConfig) -> tuple[float, Guide]:
    """The checkpoint's scale and guide with --guidance applied; --guidance 1 also switches off settings that need a scale."""
    scale, guide = model.preset.guidance, model.preset.guide
    if options.guidance is None:
        return scale, guide
    scale, guide = options.guidance, guide.unscaled() if options.guidance == 1 else guide
    if not any(item.startswith("guide.") for item in options.overrides):
        for contradiction in task.check_guide(Drawing(model.preset.sampler, scale, guide)):
            problem = contradiction.partition("; ")[0]
            raise UserError(f"--guidance for {model.path}: {problem}", "use --guidance 1, which is off")
    return scale, guide


def choose_sampler(model: Model, options: SampleOptions) -> Sampler:
    """The checkpoint's sampler with --sampler, --steps and --ddim-eta applied."""
    wanted: dict[str, Any] = model.preset.sampler.model_dump()
    kind = options.sampler or ("ddim" if options.eta is not None else wanted["kind"])
    if kind != wanted["kind"]:
        wanted = {"kind": kind, "steps": wanted["steps"]}
    if options.eta is not None:
        if kind != "ddim":
            raise UserError(
                f"--ddim-eta {options.eta} with --sampler {kind}: only ddim has an eta", "use --sampler ddim"
            )
        wanted["eta"] = options.eta
    if options.steps is not None:
        wanted["steps"] = options.steps
    try:
        return TypeAdapter(AnySampler).validate_python(wanted)
    except ValidationError as error:
        kinds = [tag.strip(" '") for tag in error.errors()[0].get("ctx", {}).get("expected_tags", "").split(",")]
        raise UserError(f"--sampler {kind}: no such sampler", did_you_mean(kind, kinds)) from None


def overridden(model: Model, sampler: Sampler, guidance: float, guide: Guide, options: SampleOptions) -> Preset:
    """`--set sampler.KEY=VALUE` and `--set guide.KEY=VALUE`, validated as in a preset; settings of training stay."""
    check_sampling(options.overrides)
    chosen = {"sampler": sampler.model_dump(mode="json"), "guidance": guidance, "guide": guide.model_dump(mode="json")}
    return preset.build(model.preset.model_dump(mode="json") | chosen, str(model.path), options.overrides)


def check_steps(sampler: Sampler, options: SampleOptions, task: DiffusionConfig | DiffusionPriorConfig) -> None:
    """Raises UserError if the schedule has fewer steps than the sampler."""
    try:
        sampler.times(task.schedule)
    except UserError as error:
        flag = f"--steps {options.steps}" if options.steps else f"--sampler {sampler.name}"
        raise UserError(f"{flag}: {error.problem}", error.hint) from None


def choose_n(options: SampleOptions, conditions: Sequence[Conditions]) -> int:
    """--n, or as many images as --interpolate or several seeds stand for, or the most that --class all, --prompt and --image ask.

    Raises UserError where there are fewer seeds than prompts, pictures or named classes.
    """
    if options.interpolate is not None:
        return options.interpolate
    count = seed_count(options.seed)
    if count is not None and options.n is None:
        named = [c for c in conditions if options.labels != "all" or "label" not in c.specs]
        pieces = max(len(options.images), *(c.images or 0 for c in named), 0)
        if pieces > count:
            raise UserError(
                f"--seed names {count} seeds, but there are {pieces} prompts, pictures or classes, of each of which one is drawn",
                f"name {pieces} seeds, or --n {count} to draw the first {count} alone",
            )
        return count
    return options.n or max(len(options.images), *(c.images or 0 for c in conditions), 0) or DEFAULT_N
