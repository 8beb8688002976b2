"""The sampling options of the command line, and which of them exclude each other."""

from pathlib import Path

from pydantic import Field, NonNegativeInt, PositiveInt

from diffcli.config import UserError
from diffcli.data.clips.rates import FrameRate
from diffcli.engine.draw.pictures import MemoryPicture
from diffcli.engine.options.edit_options import EditOptions
from diffcli.engine.options.restore_wish import check_flags
from diffcli.engine.options.seeds import check_seeds
from diffcli.lookup.flags_and_settings import SAMPLING, check_agreement


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
        if self.interpolate is not None and self.n is not None:
            problem = f"--n {self.n} with --interpolate {self.interpolate}: both say how many images"
            raise UserError(problem, "leave --n out")
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
