"""A request: the sampling options, completed from the checkpoint and checked for contradictions.

Image i of a request starts from seed + i, or from number i of several seeds. Everything random about it (its noise, its random
label) follows from that.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from diffcli import __version__
from diffcli.config import ImageShape, UserError
from diffcli.data.loader import on_device
from diffcli.diffusion.denoiser import Denoise
from diffcli.diffusion.samplers import Sampler, Step, last
from diffcli.engine.distributed import Group
from diffcli.engine.draw import guides
from diffcli.engine.draw.clips.given_clips import clip_conditions
from diffcli.engine.draw.clips.lengths import clip_frame, guides_of_length
from diffcli.engine.draw.conditions import Conditions, always_told, blanks, check_distinct
from diffcli.engine.draw.edits import Edit, NoNoise, read_edit
from diffcli.engine.draw.given import Given, Value, choose_given
from diffcli.engine.draw.labels import choose_labels
from diffcli.engine.draw.pictured import controls
from diffcli.engine.draw.pictured.augmenting import at_level, check_augment
from diffcli.engine.draw.pictured.exactness import check_guides
from diffcli.engine.draw.pictured.following import WHOLE, Frame, Gathered, Size, check_alike, framed, picture_conditions
from diffcli.engine.draw.pictured.walking import check_steps_to_show
from diffcli.engine.draw.prompts import Prompts, choose_negative, choose_prompts, unconditional
from diffcli.engine.draw.restore.holes import check_hole, choose_surroundings, with_hole
from diffcli.engine.draw.restore.measured import Restoring
from diffcli.engine.draw.restore.projecting import choose_projection
from diffcli.engine.draw.restore.restoring import read_restoration
from diffcli.engine.draw.rows import Reference, choose_rows, row_fields
from diffcli.engine.draw.sampling import (
    SampleOptions,
    check_steps,
    choose_guidance,
    choose_n,
    choose_sampler,
    overridden,
)
from diffcli.engine.draw.translation import choose_prior
from diffcli.engine.model import Model
from diffcli.engine.options.edit_options import EditOptions
from diffcli.engine.options.seeds import Seeds, nth_seed
from diffcli.fields import Batch, to_levels
from diffcli.noise import streams
from diffcli.tasks.diffusion import DiffusionTask
from diffcli.tasks.diffusion_config import DiffusionConfig
from diffcli.tasks.guide import Guide


@dataclass
class Tally:
    """The largest number of evaluations of any image so far; read it when all images are finished."""

    most: int = 0

    def __int__(self) -> int:
        return self.most

    def watch(self, steps: Iterator[Step], count: int) -> Iterator[Step]:
        """The same steps; counts the evaluations of their first `count` images if the sampler reports them."""
        for step in steps:
            if step.evaluations is not None:
                self.most = max(self.most, int(step.evaluations[:count].max()))
            yield step

    def agree(self, group: Group) -> None:
        """Adds the counts of the other ranks; complete on rank 0."""
        if group.world > 1:
            self.most = max([self.most, *map(int, group.gather(torch.tensor([self.most], device=group.device)))])


@dataclass(frozen=True)
class Request:
    """A complete request for images of one size."""

    model: Model
    n: int
    seed: Seeds
    conditions: tuple[Conditions, ...]  # of distinct fields, together all that the model reads
    sampler: Sampler
    guidance: float
    batch_size: int
    guide: Guide
    models: dict[str, Model]  # models that the guide names
    edit: Edit
    negative: Prompts | None = None  # the text of the unconditional branch
    restoration: Restoring | None = None  # pictures that the images must agree with
    frame: Frame = WHOLE  # how the networks see the images
    augment: float | None = None  # level of the noise on pictures that are conditions
    tally: Tally = field(default_factory=Tally)  # for samplers with an unknown number of evaluations

    @property
    def task(self) -> DiffusionTask:
        assert isinstance(self.model.task, DiffusionTask)
        return self.model.task

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image: channels, of a clip its frames, height and width, with the pictures beside it."""
        *before, height, width = self.task.shape
        height, width = (height, width) if self.frame.cut is None else self.frame.cut
        return *before, height, width * (1 if self.restoration is None else self.restoration.pictures)

    @property
    def parts(self) -> list[tuple["Request", range]]:
        """All images are of one size."""
        return [(self, range(self.n))]

    @cached_property
    def walked(self) -> Sampler:
        """The sampler for the part of its walk that is used."""
        return self.edit.sampler(self.sampler, self.task)

    def seeds(self, rows: range) -> list[int]:
        """The seeds of images `rows`."""
        return [nth_seed(self.seed, i) for i in rows]

    def streams(self, rows: range) -> list[int]:
        """The seeds of the conditions of images `rows`; an interpolation has one for all."""
        return self.seeds(rows) if self.edit.options.interpolate is None else self.seeds(range(1)) * len(rows)

    def batch(self, rows: range) -> Batch:
        """The conditions of images `rows` on the model's device, and `stream`, the seeds of what is random about them."""
        return {"stream": streams(self.streams(rows)), **self._fields(self.conditions, rows)}

    def _fields(self, conditions: Iterable[Conditions], rows: range) -> dict[str, Any]:
        """The fields of some conditions for images `rows`, on the model's device."""
        found: dict[str, Any] = {}
        for condition in conditions:
            found |= on_device(condition.fields(rows, self.streams(rows)), condition.specs, self.task.device)
        return found

    @cached_property
    def labels(self) -> Tensor | None:
        """The class of each image, int64 (n,), where they have one."""
        rows = range(self.n)
        found = (condition.labels(rows, self.streams(rows)) for condition in self.conditions)
        return next((labels for labels in found if labels is not None), None)

    def captions(self) -> list[str]:
        """The caption of each image: its prompt, the name of its class, or both. Raises UserError if it has neither."""
        rows = range(self.n)
        found = [condition.captions(rows, self.streams(rows)) for condition in self.conditions]
        texts = [each for each in found if each is not None]
        if not texts:
            raise UserError(f"--captions: images of {self.model.path} have no prompt or class", "leave --captions out")
        return [" / ".join(parts) for parts in zip(*texts, strict=True)]

    def scored_under(self) -> dict[str, Any]:
        """For a report: conditions that are rows of a reference, and the prior, if there are any."""
        described = {key: value for each in self.conditions for key, value in each.describe(range(0), []).items()}
        return {
            key: described[key] for key in ("conditions", "prior", "given_frames") if described.get(key) is not None
        }

    def notes(self) -> list[str]:
        """Warnings about the conditions."""
        return [note for condition in self.conditions for note in condition.notes(self.n)]

    def denoise(self, rows: range) -> Denoise:
        """The guided denoiser of images `rows`."""
        guiding = guides.guiding(self.guide, self.models)
        if self.negative is not None:
            guiding = guiding._replace(negative=self._fields([self.negative], rows))
        with at_level(self.task, self.augment):
            return self.task.denoise(self.batch(rows), self.guidance, len(rows), guiding, self.frame.tiles)

    def walk(self, rows: range) -> tuple[Tensor, Iterator[Step]]:
        """The starting points of images `rows`, (B, C, *S) in diffusion space, and the Steps from there to the end."""
        task, sampler, denoise = self.task, self.walked, self.denoise(rows)
        known = None if self.restoration is None else self.restoration.known(task, rows, self.batch)
        denoise = denoise if known is None else known.bound(task, denoise, sampler)
        if self.edit.options.interpolate is None:
            x, noise = task.start(self.seeds(rows))
            x, denoise = self.edit.begin(task, sampler, denoise, x, rows)
        else:
            x, noise = self.edit.between(self._ends, rows), NoNoise(sampler)
        steps = sampler.trajectory(denoise, task.denoiser.schedule, x, noise)
        steps = steps if known is None else known.finished(task, steps)
        return x, self.tally.watch(steps, min(rows.stop, self.n) - rows.start)

    def images(self, rows: range) -> Tensor:
        """The finished images `rows`, computed as one batch: uint8 (B, C, H, W) on the model's device."""
        return self.finished(last(self.walk(rows)[1]).x, rows)

    def finished(self, x: Tensor, rows: range) -> Tensor:
        """Images `rows` in diffusion space -> uint8 on the same device, with the given pixels outside of a mask."""
        made = to_levels(self.edit.kept(self.task, self.task.decode(x), rows))
        made = self.frame.kept(made)
        for condition in self.conditions:
            made = condition.kept(made, rows)
        return made if self.restoration is None else self.restoration.shown(made, rows)

    def agree(self, group: Group) -> None:
        """Adds the evaluations that the ranks have counted, on rank 0."""
        self.tally.agree(group)

    @cached_property
    def _ends(self) -> Tensor:
        return self.edit.ends(self.task, self.walked, self.denoise(range(2)), self.seeds(range(2)))

    def describe(self) -> dict[str, Any]:
        """The sidecar: everything that is needed to draw the images again."""
        model, nfe, rows = self.model, self.walked.nfe, range(self.n)
        description = {
            **model.describe(),
            "n": self.n,
            "seeds": self.seeds(range(2) if self.edit.options.interpolate else rows),
            "sampler": self.sampler.model_dump(mode="json"),
            "steps": self.walked.steps,
            "nfe": self.tally if nfe is None else nfe,
            "guidance": self.guidance,
            "guide": guides.describe(self.guide, self.models),
            "labels": None,
            "class_names": model.classes,
            "prompts": None,
            "negative_prompt": None if self.negative is None else self.negative.texts[0],
            "prior": None,
            "version": __version__,
        }
        for condition in self.conditions:
            description |= condition.describe(rows, self.streams(rows))
        restored = {} if self.restoration is None else self.restoration.described
        shown = controls.describe(model) | ({} if self.augment is None else {"augment": self.augment})
        return description | self.edit.describe() | restored | shown | self.frame.describe()


def request(
    model: Model, options: SampleOptions, reference: Reference | None = None, given: Mapping[str, Value] | None = None
) -> Request:
    """The options completed from the checkpoint. Raises UserError if they contradict it or each other.

    reference: its rows are the conditions of a model of texts or embeddings, in place of prompts. given: values of conditions
    by field, such as pictures from files or the images of an earlier stage.
    """
    check_steps_to_show(model)
    if options.compare and options.restore is None:
        problem = f"--compare: {model.path} changes its images instead of reconstructing them"
        raise UserError(problem, "leave --compare out, add --restore NAME, or give --ckpt of a first stage")
    model, options = controls.led(model, options)
    if reference is None:
        check_hole(model, options, {*(given or {}), *dict(options.fields)})
    gathered = picture_conditions(model, options, given or {})
    check_alike(gathered.sizes)
    return composed(model, gathered, next(iter(gathered.sizes), None), reference)


def composed(model: Model, gathered: Gathered, size: Size | None, reference: Reference | None = None) -> Request:
    """The request for images of one size, (height, width); None: that of the options. Raises UserError."""
    task, options = model.preset.task, gathered.options
    assert isinstance(task, DiffusionConfig)
    check_augment(model, options.augment)
    model, frame, sides = framed(model, options, gathered.values, size)
    model, frame = clip_frame(model, options, frame)
    fps = None if frame.clip is None else frame.clip.fps
    options, clips = clip_conditions(model, options, fps, reference)
    sampler, guidance, guide = choose_sampler(model, options), *choose_guidance(model, options, task)
    if options.overrides:
        changed = overridden(model, sampler, guidance, guide, options)
        sampler, guide = changed.sampler, changed.guide
    check_steps(sampler, options, task)
    models = guides_of_length(guides.load_guides(guide, model, options.overrides), frame)
    check_guides(frame.tiles, models)
    given = gathered.values if reference is not None else with_hole(model, options, gathered.values)
    values = choose_given(model, given, options.interpolate, sides)
    conditions = choose_conditions(model, options, guidance, guide, models, reference, values, clips)
    words = next((each for each in conditions if isinstance(each, Prompts)), None)
    negative = choose_negative(model, options, guidance, guide, words)
    edit = Edit() if options.restore else choose_edit(model, options)
    return Request(
        model,
        choose_n(options, conditions),
        options.seed,
        conditions,
        sampler,
        guidance,
        frame.at_once or options.batch_size,
        guide,
        models,
        edit,
        negative,
        choose_restoration(model, options),
        frame,
        options.augment,
    )


def choose_restoration(model: Model, options: SampleOptions) -> Restoring | None:
    """The constraint of --restore, with its pictures read, of --project, or of a model that fills holes. Raises UserError."""
    if options.restore is None:
        return choose_projection(model) if options.project else choose_surroundings(model)
    return read_restoration(model, options, options.restore, options.degrade, options.compare)


def choose_edit(model: Model, options: SampleOptions) -> Edit:
    """--image and its options. Raises UserError if the model draws something else than images."""
    field, shape = model.preset.task.models, model.preset.data.shape
    if field is not None and options.images:
        spec = model.task.reads[field]
        if spec.kind != "image":
            problem = f"--image: {model.path} draws the field '{field}' of kind {spec.kind}, no images"
            raise UserError(problem, "leave --image out")
        shape = ImageShape(*spec.sides)
    return read_edit(EditOptions(**{key: getattr(options, key) for key in EditOptions.model_fields}), shape)


def choose_conditions(
    model: Model,
    options: SampleOptions,
    guidance: float,
    guide: Guide,
    models: dict[str, Model],
    reference: Reference | None,
    values: Given | None,
    clips: Sequence[Conditions] = (),
) -> tuple[Conditions, ...]:
    """The conditions of the images: all fields that the model reads. Raises UserError if one is not given.

    clips: conditions of clips alone.
    """
    null_alone = unconditional(guidance, guide)
    labels = choose_labels(model, options.labels, options.interpolate, models)
    words: Conditions | None
    if reference is not None and row_fields(model) and (not null_alone or always_told(model)):
        own = labels is not None and options.labels is None  # labels of the rows themselves
        words = rows = choose_rows(model, reference, choose_prior(model, options.prior, needed=False), own)
        labels = None if "label" in rows.specs else labels
    else:
        words = choose_prompts(model, options, guidance, guide, {} if values is None else values.specs)
    found = [condition for condition in (words, labels, values, *clips) if condition is not None]
    check_distinct(found)
    return (*found, *blanks(model, found, null_alone))
