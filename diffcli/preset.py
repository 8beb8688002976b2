"""Presets: one validated tree of configs that describes a run completely.

`load` reads a YAML file, which `preset_files` finds, applies `--set KEY=VALUE` overrides and validates the whole; every error
names the file, the key and the value found. `dump` writes the resolved tree back.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)

from diffcli.config import Config, UserError, keys_agree
from diffcli.config_errors import explain
from diffcli.config_errors.schema_paths import known_keys
from diffcli.data.dataset import DataConfig
from diffcli.data.datasets import AnyData, at_root
from diffcli.data.stream.stream_data import Stream
from diffcli.diffusion.samplers import AnySampler, Ddim
from diffcli.ema import AnyEma
from diffcli.encoders.learned_words import WordConfig
from diffcli.fields import FieldSpec
from diffcli.lookup.plain_yaml import written
from diffcli.lookup.preset_files import find, read
from diffcli.lookup.raw_preset import copied, overridden
from diffcli.networks.lora import LoraConfig
from diffcli.optim import AdamW, AnyCurve, AnyOptimizer, Constant
from diffcli.tasks.autoencoder.autoencoder_config import AutoencoderTaskConfig
from diffcli.tasks.classifier import ClassifierConfig
from diffcli.tasks.control.filling import filled
from diffcli.tasks.diffusion_config import DiffusionConfig
from diffcli.tasks.guide import Drawing, Guide
from diffcli.tasks.prior import PriorConfig
from diffcli.tasks.segmentation import SegmentationConfig
from diffcli.tasks.starting_point import StartingPoint, named
from diffcli.tasks.super_resolution import SuperResolutionConfig

AnyTask = Annotated[
    DiffusionConfig
    | ClassifierConfig
    | PriorConfig
    | AutoencoderTaskConfig
    | SuperResolutionConfig
    | SegmentationConfig,
    Field(discriminator="kind"),
]
PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]
TrackerName = Literal["tensorboard", "wandb", "trackio"]


with warnings.catch_warnings():
    warnings.filterwarnings("ignore", 'Field name "validate"')  # a deprecated method of pydantic has the same name

    class Every(Config):
        """Intervals in steps; 0 is never.

        validate: the loss of the averaged model on held-out images. score: a small score of samples, see train.score.
        """

        log: int = Field(50, ge=0, description="steps between lines of the log; 0: never")
        preview: int = Field(1000, ge=0, description="steps between preview grids; 0: never")
        save: int = Field(1000, ge=0, description="steps between checkpoints; 0: at the end alone")
        validate: int = Field(
            0, ge=0, description="steps between losses of the averaged model on held-out images; 0: never"
        )  # type: ignore[assignment]
        score: int = Field(0, ge=0, description="a small score of samples every so many steps; 0: none")


class SmallScoreConfig(Config):
    """The score during training. KID has no bias where images are few; FID falls with their number."""

    metric: Literal["kid", "fid"] = Field("kid", description="the metric; lower is better")
    n: int = Field(1000, ge=2, description="samples that are drawn for it each time")
    features: str = Field("inception", description="inception, or the run of a classifier that diffcli trained")
    reference: str | None = Field(
        None, description="folder, .npz, prepared set or NAME:SPLIT; null: images of the training data"
    )


class PhaseConfig(Config):
    """Changes to one phase of the task; null keeps the value of the task."""

    networks: tuple[str, ...] | None = Field(None, description="names of those that it trains; the others stay frozen")
    optimizer: AnyOptimizer | None = Field(
        None, description="of this phase; null: train.optimizer, or what the task says"
    )
    curve: AnyCurve | None = Field(None, description="counts the updates of the phase")
    first: int | None = Field(None, ge=1, description="the step of its first update")
    every: int | None = Field(None, ge=1, description="steps from one update to the next")


class TrainConfig(Config):
    """The training of a task; batch_size is global, over all processes and accumulated micro-batches."""

    steps: int = Field(ge=1, examples=[1000], description="updates of the whole run")
    batch_size: int = Field(128, ge=1, description="images in one update, over all processes and micro-batches")
    accumulate: int = Field(1, ge=1, description="micro-batches that one update is split into")
    optimizer: AnyOptimizer = Field(
        AdamW(), description="how gradients become updates; its lr is the rate that the curve scales"
    )
    curve: AnyCurve = Field(Constant(), description="factor of the learning rate over the steps")
    phases: dict[str, PhaseConfig] = Field({}, description="changes to the phases of the task, by name")
    freeze: tuple[str, ...] = Field(
        (), description="parameters that stay as they are: names as --dry-run lists them, * for any part of a name"
    )
    lr_scale: dict[str, float] = Field(
        {},
        description="factor on the learning rate of the parameters of a name, * for any part; the last that fits counts",
    )
    lora: LoraConfig | None = Field(
        None, description="low-rank changes of the model that the run begins from, in place of its weights"
    )
    embedding: WordConfig | None = Field(
        None, description="a new word, whose embedding is all that is trained (textual inversion)"
    )
    clip: float | None = Field(1.0, gt=0, description="largest gradient norm; null clips nothing")
    ema: AnyEma = Field(
        0.9999,
        description="decay of the average of the weights a step, in [0, 1); a list keeps several; or a record of a kind",
    )
    precision: PrecisionName = Field(
        "auto", description="of the networks in training; auto: bf16 on GPUs that have it, else fp32"
    )
    compile: bool = Field(False, description="compile the networks with torch.compile: slower to begin, faster steps")
    workers: int = Field(2, ge=0, description="processes that decode images where the data are not held in memory")
    every: Every = Field(Every(), description="steps between log lines, previews, checkpoints and validations")
    log: tuple[TrackerName, ...] = Field(
        ("tensorboard",),
        description="where numbers and previews go beside the run's own files: tensorboard, wandb, trackio",
    )
    validate_images: int = Field(1024, ge=1, description="held-out images that train.every.validate looks at, at most")
    score: SmallScoreConfig = Field(SmallScoreConfig(), description="what train.every.score measures")
    previews: int = Field(36, ge=1, description="images in a preview grid")
    keep_last: int = Field(2, ge=1, description="newest checkpoints that stay")
    keep_every: int = Field(0, ge=0, description="every how many steps a checkpoint is kept for good; 0: none is")

    @model_validator(mode="before")
    @classmethod
    def _phases_begin_as_the_whole(cls, given: Any) -> Any:
        """Keys that `train.phases.NAME.optimizer` leaves out are those of `train.optimizer`, if both kinds have them."""
        if not isinstance(given, Mapping) or not isinstance(given.get("phases"), Mapping):
            return given
        phases = {name: _completed(phase, given.get("optimizer", {})) for name, phase in given["phases"].items()}
        return {**given, "phases": phases}

    @keys_agree
    def _agree(self) -> Iterator[str]:
        for pattern, factor in self.lr_scale.items():
            if factor <= 0:
                yield (
                    f"lr_scale is {factor:g} for '{pattern}', but a factor is above 0; "
                    f"leave it out and freeze it: --set 'train.freeze=[{pattern}]'"
                )
        if self.accumulate > self.batch_size:
            yield (
                f"accumulate is {self.accumulate}, more than the batch_size {self.batch_size}; set train.accumulate lower"
            )

    def advice(self) -> list[str]:
        """What is allowed but probably not meant, one sentence each."""
        curves = {"train.curve": self.curve}
        curves |= {f"train.phases.{name}.curve": phase.curve for name, phase in self.phases.items() if phase.curve}
        return [
            f"{key}.warmup is {curve.warmup}, so the {self.steps} steps of the run end before the full learning rate"
            for key, curve in curves.items()
            if curve.warmup >= self.steps
        ]


def _completed(phase: Any, whole: Any) -> Any:
    own = phase.get("optimizer") if isinstance(phase, Mapping) else None
    if not isinstance(own, Mapping) or not isinstance(whole, Mapping):
        return phase
    own = {"kind": whole.get("kind", AdamW().kind), **own}
    known = known_keys(PhaseConfig, {"optimizer": own}, ["optimizer"])
    shared = {name: value for name, value in whole.items() if name in known}
    return {**phase, "optimizer": shared | own}


class Preset(Config):
    """Everything about a run: the same preset and seed are the same run."""

    model_config = ConfigDict(populate_by_name=True)

    name: str = Field(
        examples=["mine"],
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="letters, digits and ._-; a run is written to runs/NAME unless --run-dir says otherwise",
    )
    seed: int = Field(
        0, ge=0, lt=2**63, description="of weights, order of images, noise and crops: the same seed is the same run"
    )
    origin: StartingPoint | None = Field(
        None, alias="from", description="model that a new run takes its first weights from: a path, or {path, weights}"
    )
    data: AnyData = Field(description="the images: where they lie and how they are read")
    task: AnyTask = Field(description="what is trained, and of which parts")
    train: TrainConfig = Field(description="how it is trained, and what is written when")
    sampler: AnySampler = Field(Ddim(), description="how images are drawn unless a command says otherwise")
    guidance: float = Field(
        1.0, description="scale of classifier-free guidance, null + scale * (cond - null): 1 is off, 0 unconditional"
    )
    guide: Guide = Field(Guide(), description="what surrounds guidance: where it acts and how large values are tamed")
    prior: Path | None = Field(None, description="checkpoint that makes embeddings of images out of those of prompts")

    @keys_agree
    def _drawing_agrees(self) -> Iterator[str]:
        return self.task.check_drawing(self.drawing)

    @keys_agree
    def _buckets_agree(self) -> None:
        self.task.check_buckets(self.data.buckets)

    @model_serializer(mode="wrap")
    def _named(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return named(handler(self), "origin", "from")

    @property
    def specs(self) -> dict[str, FieldSpec]:
        """The fields of the data, as far as the preset tells; modelled and leading fields are assumed to lie over the images."""
        known, modelled = self.data.specs, self.task.models
        over = [*([] if modelled is None else [modelled]), *self.task.led_by]
        return known | {name: self.data.over(name) for name in over if name not in known}

    @property
    def drawing(self) -> Drawing:
        """The settings for sampling from the model, unless a command changes them."""
        return Drawing(self.sampler, self.guidance, self.guide, self.prior)

    def advice(self) -> list[str]:
        """What is allowed but probably not meant, one sentence each."""
        return [*self.train.advice(), *self.task.advice()]


def load(name: str, overrides: Sequence[str] = (), data: str | None = None) -> Preset:
    """The preset NAME|FILE with `--set KEY=VALUE` overrides and `--data PATH|URL` applied, validated."""
    path = find(name)
    return build(read(path), str(path), overrides, data)


def build(raw: object, source: str, overrides: Iterable[str] = (), data: str | None = None) -> Preset:
    """Validates a raw tree, a mapping, after overrides; `source` names it in errors. data: the place of its data, --data."""
    if not isinstance(raw, Mapping):
        raise UserError(f"{source}: holds no preset", "it was changed by hand: copy it again from where it was written")
    if data is not None and "data" in raw:
        raw = {**raw, "data": _of_kind(raw["data"], data)}
    tree, changed = overridden(raw, overrides, Preset)
    tree = filled(tree)
    try:
        preset = Preset.model_validate(tree)
    except ValidationError as error:
        raise explain(error, tree, Preset, source, changed) from None
    return preset if data is None else preset.model_copy(update={"data": _rooted(preset.data, data, source)})


def dump(preset: Preset) -> str:
    """The resolved preset as YAML; `load` gives the same preset back."""
    return written(preset.model_dump(mode="json"), width=120)


def _of_kind(given: Any, place: str) -> Any:
    """The raw section `data` with the kind that `--data` implies, so that --set reaches its keys; else unchanged."""
    try:
        config = TypeAdapter[DataConfig](AnyData).validate_python(given)
        at_place = at_root(config, place)
    except (ValidationError, UserError):  # raised again below where --set does not mend it
        return given
    if isinstance(config, type(at_place) | Stream):
        return given
    return copied(at_place.model_dump(include={"kind"}) | at_place.model_dump(exclude_unset=True))


def _rooted(config: DataConfig, place: str, source: str) -> DataConfig:
    try:
        return at_root(config, place)
    except ValidationError as error:
        message, _, remedy = str(error.errors()[0]["ctx"]["error"]).partition("; ")
        raise UserError(f"{source} with --data {place}: {message}", remedy) from None
