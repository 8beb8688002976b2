"""The sampling options of the command line; sampler, guidance and number of images completed by them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from diffcli import preset
from diffcli.config import UserError, did_you_mean
from diffcli.data.clips.clip_keys import FrameRate
from diffcli.diffusion.samplers import AnySampler, Sampler
from diffcli.engine.draw.conditions import Conditions
from diffcli.engine.draw.edits import EditOptions
from diffcli.engine.draw.pictures import MemoryPicture
from diffcli.engine.draw.restore.wishes import check_flags
from diffcli.engine.model import Model
from diffcli.engine.seeds import check_seeds, seed_count
from diffcli.lookup.changeable import check_sampling
from diffcli.lookup.flags_and_settings import SAMPLING, check_agreement
from diffcli.preset import Preset
from diffcli.tasks.diffusion_config import DiffusionConfig
from diffcli.tasks.guide import Drawing, Guide
from diffcli.tasks.prior import DiffusionPriorConfig

DEFAULT_N = 16


class SampleOptions(EditOptions):
    """The sampling options of the command line; None is what the checkpoint says."""

    n: int | None = Field(None, ge=1)
    labels: int | str | tuple[int | str, ...] | None = None  # ID, NAME, all or random; or several, in turn
    prompts: tuple[str, ...] = ()
    negative_prompt: str | None = None  # of every image
    prior: str | None = None  # a prior's checkpoint, or none
    seed: NonNegativeInt | tuple[NonNegativeInt, ...] = 0  # image i has seed + i; of several number i
    sampler: str | None = None
    steps: int | None = Field(None, ge=1)
    eta: float | None = Field(None, ge=0, le=1)
    guidance: float | None = None
    batch_size: int = Field(64, ge=1)
    overrides: tuple[str, ...] = ()  # sampler.KEY=VALUE or guide.KEY=VALUE
    size: tuple[PositiveInt, PositiveInt] | None = None  # (height, width) of the images
    precision: str = "auto"  # of the networks: auto, fp32, bf16 or fp16
    compile: bool = False  # the network
    compare: bool = False  # each reconstruction beside its original, each restored picture beside the given one
    restore: str | None = None  # NAME[:OPTION] of the operator that left the images as they are
    degrade: bool = False  # degrade the images by that operator first
    project: bool = False  # on the picture that an upscaler enlarges
    fields: tuple[tuple[str, tuple[Path | MemoryPicture, ...]], ...] = ()  # pictures by the name of their condition
    augment: float | None = Field(None, ge=0, le=1)  # level of the noise on pictures that the model enlarges
    tile: int | None = Field(None, ge=1)  # edge in pixels
    overlap: int | None = Field(None, ge=0)  # of tiles, in pixels
    exact_tiles: bool = False  # tiles with the result of the whole image
    whole: bool = False  # large images are not cut into tiles
    frames: int | None = Field(None, ge=1)  # of a clip
    fps: FrameRate | None = None  # of a clip, frames per second
    window: int | None = Field(None, ge=1)  # frames of a clip that are predicted together
    window_overlap: int | None = Field(None, ge=0)  # of windows, in frames
    given_frames: str | None = None  # first:K, last:K or ends:K: which frames of a clip --image gives
    loras: tuple[str, ...] = ()  # PATH[:SCALE] of low-rank changes that are merged into the weights
    embeddings: tuple[Path, ...] = ()  # words that prompts may hold
    base: Path | None = None  # where the model lies that a checkpoint of such changes changes
    controls: tuple[tuple[Path, float], ...] = ()  # runs whose branches lead the model, too, and how much each counts
    control_scale: tuple[tuple[str | None, float], ...] = ()  # of the branch of a field; None: of all

    def check(self) -> None:
        super().check()
        flags = {"--sampler": self.sampler, "--steps": self.steps, "--ddim-eta": self.eta}
        check_agreement(self.overrides, SAMPLING, flags)
        check_seeds(self.seed, self.n, self.interpolate)
        if not isinstance(self.seed, int) and self.interpolate is not None and self.images:
            raise UserError("--seed names two seeds, and --image two pictures to go between", "leave out one of them")
        if self.compare and not self.images:
            raise UserError("--compare: there is no image to compare with", "give one with --image FILE")
        given = {"--strength": self.strength, "--interpolate": self.interpolate, "--mask": self.mask}
        if self.project and self.restore is not None:
            problem = f"--project with --restore {self.restore}: both say what was measured"
            raise UserError(problem, "leave out one of them")
        check_flags(self.restore, self.degrade, {**given, "--image": self.images[0] if self.images else None})
        names = [name for name, _ in self.fields]
        for name in names:
            if names.count(name) > 1:
                hint = f"give it once; of several pictures a folder, --field {name}=DIR"
                raise UserError(f"--field {name}: the condition '{name}' is given twice", hint)
        cut = {"--tile": self.tile, "--overlap": self.overlap, "--exact-tiles": self.exact_tiles or None}
        for flag, value in cut.items():
            if self.whole and value is not None:
                shown = flag if value is True else f"{flag} {value}"
                raise UserError(f"{shown} with --no-tile: there are no tiles", f"leave out {flag} or --no-tile")

    @property
    def images_are_conditions(self) -> bool:
        """Whether --image is the condition of a model that reads one picture, instead of the start of the images."""
        beside = self.mask, self.strength, self.interpolate, self.restore
        return all(value is None for value in beside)


def check_one_step(options: SampleOptions, what: str) -> None:
    """Raises UserError for sampling options without effect on a one-step model. what: the model, as a clause."""
    if not isinstance(options.seed, int):
        raise UserError(f"--seed names several seeds: {what}", "leave --seed out")
    flags = {
        "--class": options.labels,
        "--prompt": next(iter(options.prompts), None),
        "--negative-prompt": options.negative_prompt,
        "--prior": options.prior,
        "--sampler": options.sampler,
        "--steps": options.steps,
        "--ddim-eta": options.eta,
        "--guidance": options.guidance,
        "--mask": options.mask,
        "--strength": options.strength,
        "--interpolate": options.interpolate,
        "--compare": options.compare or None,
        "--restore": options.restore,
        "--project": options.project or None,
        "--set": next((item for item in options.overrides if not item.startswith("metrics.")), None),
        "--augment": options.augment,
        "--tile": options.tile,
        "--overlap": options.overlap,
        "--exact-tiles": options.exact_tiles or None,
        "--frames": options.frames,
        "--fps": options.fps,
        "--window": options.window,
        "--window-overlap": options.window_overlap,
        "--given-frames": options.given_frames,
        "--control": next((path for path, _ in options.controls), None),
        "--control-scale": next((scale for _, scale in options.control_scale), None),
    }
    for flag, value in flags.items():
        if value is not None:
            named = flag if value is True else f"{flag} {value}"
            raise UserError(f"{named}: {what}", f"leave {flag} out")


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
        if options.n is not None:
            raise UserError(
                f"--n {options.n} with --interpolate {options.interpolate}: both say how many images", "leave --n out"
            )
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
