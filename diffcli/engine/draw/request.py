"""What is to be drawn: the sampling options completed from the checkpoint, every choice made and every contradiction refused.

Image i of a request starts from seed + i, and everything random about it (its noise, its random label) follows from that.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from typing import Any

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from diffcli import __version__, preset
from diffcli.config import UserError, did_you_mean
from diffcli.diffusion.denoiser import Denoise
from diffcli.diffusion.samplers import AnySampler, Sampler, Step
from diffcli.engine import encoder_records
from diffcli.engine.distributed import Group
from diffcli.engine.draw import guides
from diffcli.engine.draw.edits import Edit, EditOptions, NoNoise, read_edit
from diffcli.engine.draw.prompts import blank_fields, choose_prompts, prompt_fields, unconditional
from diffcli.engine.draw.rows import Rows, choose_rows, told_fields
from diffcli.engine.draw.translation import Prior, choose_prior
from diffcli.engine.model import Model
from diffcli.engine.score.sides import Side
from diffcli.noise import Domain, Noise
from diffcli.preset import Preset
from diffcli.tasks.diffusion import DiffusionConfig, DiffusionTask
from diffcli.tasks.guide import Drawing, Guide
from diffcli.tasks.prior import DiffusionPriorConfig

DEFAULT_N = 16
FEW_CLASSES = 20  # that a hint can still list


class SampleOptions(EditOptions):
    """The sampling options of the command line; None is what the checkpoint says."""

    n: int | None = Field(None, ge=1)
    labels: str | None = None  # ID, NAME, all or random
    prompts: tuple[str, ...] = ()
    prior: str | None = None  # a prior's checkpoint, or none
    seed: int = Field(0, ge=0)
    sampler: str | None = None
    steps: int | None = Field(None, ge=1)
    eta: float | None = Field(None, ge=0, le=1)
    guidance: float | None = None
    batch_size: int = Field(64, ge=1)
    overrides: tuple[str, ...] = ()  # sampler.KEY=VALUE or guide.KEY=VALUE


@dataclass
class Tally:
    """The most evaluations that any image has taken so far; a number to whoever writes it down once all are drawn."""

    most: int = 0

    def __int__(self) -> int:
        return self.most

    def watch(self, steps: Iterator[Step]) -> Iterator[Step]:
        """The same steps, counted where they say what they have cost."""
        for step in steps:
            if step.evaluations is not None:
                self.most = max(self.most, int(step.evaluations.max()))
            yield step

    def agree(self, group: Group) -> None:
        """Takes in what the other ranks have counted; complete on rank 0."""
        self.most = max([self.most, *map(int, group.gather(torch.tensor([self.most], device=group.device)))])


@dataclass(frozen=True)
class Request:
    """What is to be drawn, every choice made."""

    model: Model
    n: int
    seed: int
    labels: Tensor | None  # int64 (n,)
    prompts: list[str] | None  # n of them
    prior: Prior | None  # where the model reads embeddings of images and is given texts
    given: Rows | None  # what tells the conditions instead of prompts
    sampler: Sampler
    guidance: float
    batch_size: int
    guide: Guide
    models: dict[str, Model]  # those that the guide names
    edit: Edit
    tally: Tally = field(default_factory=Tally)  # for samplers whose evaluations are counted only as they go

    @property
    def task(self) -> DiffusionTask:
        assert isinstance(self.model.task, DiffusionTask)
        return self.model.task

    @cached_property
    def walked(self) -> Sampler:
        """The sampler for as much of its walk as is made."""
        return self.edit.sampler(self.sampler, self.task)

    def batch(self, rows: range) -> dict[str, Tensor | list[str]]:
        """The condition of images `rows`, as fields of a batch."""
        label = {} if self.labels is None else {"label": self.labels[rows.start : rows.stop].to(self.task.device)}
        seeds = self.seeds(rows) if self.edit.options.interpolate is None else [self.seed] * len(rows)
        if self.given is not None:
            return self.given.fields(rows, seeds, self.task.device) | label
        if self.prompts is None:
            return label | blank_fields(self.task, len(rows))
        texts = self.prompts[rows.start : rows.stop]
        return label | prompt_fields(self.model, texts, seeds, self.prior)

    def captions(self) -> list[str]:
        """What stands under each image: its prompt, the name of its class, or both. Raises UserError where it has neither."""
        names = self.model.classes
        labels = [] if self.labels is None else [names[i] if names else f"class {i}" for i in self.labels.tolist()]
        told = [parts for parts in (self.prompts, labels) if parts]
        if not told:
            raise UserError(f"--captions: images of {self.model.path} have no prompt or class", "leave --captions out")
        return [" / ".join(parts) for parts in zip(*told, strict=True)]

    def seeds(self, rows: range) -> list[int]:
        """The seeds of images `rows`."""
        return [self.seed + i for i in rows]

    def denoise(self, rows: range) -> Denoise:
        """The guided denoiser of images `rows`."""
        guiding = guides.guiding(self.guide, self.models)
        return self.task.denoise(self.batch(rows), self.guidance, len(rows), guiding)

    def walk(self, rows: range) -> tuple[Tensor, Iterator[Step]]:
        """Where images `rows` begin (B, C, *S) in diffusion space, and the Steps from there to the end."""
        task, sampler, denoise = self.task, self.walked, self.denoise(rows)
        if self.edit.options.interpolate is None:
            x, noise = task.start(self.seeds(rows))
            x, denoise = self.edit.begin(task, sampler, denoise, x, rows)
        else:
            x, noise = self.edit.between(self._ends, rows), NoNoise(sampler)
        return x, self.tally.watch(sampler.trajectory(denoise, task.denoiser.schedule, x, noise))

    @cached_property
    def _ends(self) -> Tensor:
        return self.edit.ends(self.task, self.walked, self.denoise(range(2)), self.seed)

    def describe(self) -> dict[str, Any]:
        """The sidecar of what is drawn: everything that is needed to draw it again."""
        model, nfe = self.model, self.walked.nfe
        seeds = range(2) if self.edit.options.interpolate else range(self.n)
        return {
            "checkpoint": str(model.path),
            "step": model.step,
            "ema": model.ema,
            "weights_sha256": model.digest,
            "n": self.n,
            "seeds": self.seeds(seeds),
            "sampler": self.sampler.model_dump(mode="json"),
            "steps": self.walked.steps,
            "nfe": self.tally if nfe is None else nfe,
            "guidance": self.guidance,
            "guide": guides.describe(self.guide, self.models),
            "labels": None if self.labels is None else self.labels.tolist(),
            "class_names": model.classes,
            "prompts": self.prompts,
            "prior": None if self.prior is None else self.prior.describe(),
            "version": __version__,
        } | self.edit.describe()


def request(model: Model, options: SampleOptions, reference: Side | None = None) -> Request:
    """The options completed from the checkpoint. Raises UserError where they contradict it or each other.

    reference: the rows of which a model of texts or embeddings is told, in place of prompts.
    """
    task = model.preset.task
    if not isinstance(task, DiffusionConfig):
        raise UserError(
            f"{model.path}: was trained as a {task.kind}, which draws no images",
            "give the checkpoint of a diffusion model; a classifier is used by `diffcli fid --features RUN`, a prior by "
            "`diffcli sample --prior RUN`, and scored by `diffcli fid --ckpt RUN --metrics cosine,mse,retrieval`",
        )
    sampler, guidance, guide = choose_sampler(model, options), *choose_guidance(model, options, task)
    if options.overrides:
        changed = overridden(model, sampler, guidance, guide, options)
        sampler, guide = changed.sampler, changed.guide
    check_steps(sampler, options, task)
    models = guides.load_guides(guide, model, options.overrides)
    n = choose_n(model, options)
    prompts, prior, given = choose_words(model, options, n, guidance, guide, reference)
    labels = choose_labels(model, options, n, models)
    if labels is not None and options.labels is None and given is not None:
        labels = given.labels(labels)
    edit = read_edit(
        EditOptions(**{key: getattr(options, key) for key in EditOptions.model_fields}), model.preset.data.shape
    )
    return Request(
        model,
        n,
        options.seed,
        labels,
        prompts,
        prior,
        given,
        sampler,
        guidance,
        options.batch_size,
        guide,
        models,
        edit,
    )


def choose_words(
    model: Model, options: SampleOptions, n: int, guidance: float, guide: Guide, reference: Side | None
) -> tuple[list[str] | None, Prior | None, Rows | None]:
    """The prompts, the prior that they or the rows of a reference need, and these rows, which tell in place of prompts."""
    if reference is not None and told_fields(model) and not unconditional(guidance, guide):
        prior = choose_prior(model, options.prior, needed=False)
        return None, prior, choose_rows(model, reference, prior)
    prompts = choose_prompts(model, options.prompts, n, options.interpolate, guidance, guide)
    return prompts, choose_prior(model, options.prior, needed=prompts is not None), None


def choose_n(model: Model, options: SampleOptions) -> int:
    """--n, or as many images as --interpolate stands for, or the most of --class all, --prompt and --image."""
    if options.interpolate is not None:
        if options.n is not None:
            raise UserError(
                f"--n {options.n} with --interpolate {options.interpolate}: both say how many images", "leave --n out"
            )
        return options.interpolate
    every_class = len(model.classes or ()) if options.labels == "all" else 0
    return options.n or max(every_class, len(options.prompts), len(options.images)) or DEFAULT_N


def choose_guidance(model: Model, options: SampleOptions, task: DiffusionConfig) -> tuple[float, Guide]:
    """The checkpoint's scale and guide with --guidance applied; --guidance 1 also switches off what acts on a scale only."""
    scale, guide = model.preset.guidance, model.preset.guide
    if options.guidance is None:
        return scale, guide
    scale, guide = options.guidance, guide.unscaled() if options.guidance == 1 else guide
    if not any(item.startswith("guide.") for item in options.overrides):
        try:
            task.check_guide(Drawing(model.preset.sampler, scale, guide))
        except ValueError as error:
            problem = str(error).partition("; ")[0]
            raise UserError(f"--guidance for {model.path}: {problem}", "use --guidance 1, which is off") from None
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
    """`--set sampler.KEY=VALUE` and `--set guide.KEY=VALUE`, validated as in a preset; what was trained stays as it is."""
    for item in options.overrides:
        if not item.startswith(("sampler.", "guide.")) and not encoder_records.moves(item):
            raise UserError(
                f"--set {item}: sampling changes sampler.* and guide.* keys only, and where an encoder's model lies",
                "train another model to change the rest",
            )
    chosen = {"sampler": sampler.model_dump(mode="json"), "guidance": guidance, "guide": guide.model_dump(mode="json")}
    return preset.build(model.preset.model_dump(mode="json") | chosen, str(model.path), options.overrides)


def check_steps(sampler: Sampler, options: SampleOptions, task: DiffusionConfig | DiffusionPriorConfig) -> None:
    """Raises UserError where the schedule has fewer steps than the sampler wants."""
    try:
        sampler.times(task.schedule)
    except UserError as error:
        flag = f"--steps {options.steps}" if options.steps else f"--sampler {sampler.name}"
        raise UserError(f"{flag}: {error.problem}", error.hint) from None


def choose_labels(model: Model, options: SampleOptions, n: int, models: dict[str, Model]) -> Tensor | None:
    """--class ID|NAME|all|random as int64 (n,); None where neither the model nor a classifier that guides it knows classes."""
    which = options.labels
    asked = model if guides.class_count(model.preset.task) else models.get("classifier", model)
    count = guides.class_count(asked.preset.task)
    if count is None:
        if which is not None:
            raise UserError(f"--class {which}: {model.path} is not class-conditional", "leave --class out")
        return None
    if options.interpolate is not None and which in (None, "all", "random"):
        raise UserError(
            f"--interpolate {options.interpolate} with --class {which or 'all'}: the class must not change on the way",
            "name one, for example --class 0",
        )
    if which in (None, "all"):
        return torch.arange(n) % count
    if which == "random":
        seeds = [options.seed + i for i in range(n)]
        return (Noise(seeds, torch.device("cpu"), Domain.LABEL).uniform() * count).long()
    return torch.full((n,), class_id(which, asked.classes, count))


def class_id(which: str, classes: tuple[str, ...] | None, count: int) -> int:
    """A class given by name (exact, then without case) or by number."""
    names = list(classes or ())
    for known in (names, [name.lower() for name in names]):
        if which in known or which.lower() in known:
            return known.index(which if which in known else which.lower())
    if which.isdecimal() and int(which) < count:
        return int(which)
    if which.lstrip("-").isdecimal():
        raise UserError(
            f"--class {which}: the model has the classes 0 to {count - 1}", f"use 0 to {count - 1}, all or random"
        )
    shown = names if len(names) <= FEW_CLASSES else get_close_matches(which, names, n=5, cutoff=0.3)
    raise UserError(f"--class {which}: no such class", did_you_mean(which, [*shown, "all", "random"]))
