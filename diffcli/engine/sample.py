"""Drawing images from a checkpoint: the same seed gives the same image, whatever the batch size or number of processes.

Image i of a request starts from seed + i, and everything random about it (its noise, its random label) follows from that.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from diffcli import __version__, checkpoint, preset
from diffcli.config import Config, UserError, did_you_mean
from diffcli.diffusion.samplers import AnySampler, Sampler, Step
from diffcli.digest import sha256
from diffcli.engine.distributed import Group
from diffcli.engine.images import to_uint8
from diffcli.engine.state import load_weights, place
from diffcli.noise import Domain, Noise
from diffcli.preset import Preset
from diffcli.tasks.diffusion import DiffusionConfig, DiffusionTask
from diffcli.tasks.task import Task

DEFAULT_N = 16
FEW_CLASSES = 20  # that a hint can still list


class SampleOptions(Config):
    """The sampling options of the command line; None is what the checkpoint says."""

    n: int | None = Field(None, ge=1)
    labels: str | None = None  # ID, NAME, all or random
    seed: int = Field(0, ge=0)
    sampler: str | None = None
    steps: int | None = Field(None, ge=1)
    eta: float | None = Field(None, ge=0, le=1)
    guidance: float | None = None
    batch_size: int = Field(64, ge=1)
    overrides: tuple[str, ...] = ()  # sampler.KEY=VALUE


@dataclass(frozen=True)
class Model:
    """A checkpoint made ready to use."""

    path: Path
    step: int
    preset: Preset
    task: Task
    classes: tuple[str, ...] | None
    ema: bool
    digest: str  # of the weights in use


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
    sampler: Sampler
    guidance: float
    batch_size: int
    tally: Tally = field(default_factory=Tally)  # for samplers whose evaluations are counted only as they go

    @property
    def task(self) -> DiffusionTask:
        assert isinstance(self.model.task, DiffusionTask)
        return self.model.task

    def batch(self, rows: range) -> dict[str, Tensor]:
        """The condition of images `rows`, as fields of a batch."""
        if self.labels is None:
            return {}
        return {"label": self.labels[rows.start : rows.stop].to(self.task.device)}

    def seeds(self, rows: range) -> list[int]:
        """The seeds of images `rows`."""
        return [self.seed + i for i in rows]

    def describe(self) -> dict[str, Any]:
        """The sidecar of what is drawn: everything that is needed to draw it again."""
        model = self.model
        return {
            "checkpoint": str(model.path),
            "step": model.step,
            "ema": model.ema,
            "weights_sha256": model.digest,
            "n": self.n,
            "seeds": self.seeds(range(self.n)),
            "sampler": self.sampler.model_dump(mode="json"),
            "steps": self.sampler.steps,
            "nfe": self.tally if self.sampler.nfe is None else self.sampler.nfe,
            "guidance": self.guidance,
            "labels": None if self.labels is None else self.labels.tolist(),
            "class_names": model.classes,
            "version": __version__,
        }


class Drawn(NamedTuple):
    """A batch of finished images."""

    images: Tensor  # uint8 (B, C, H, W) on the CPU
    labels: Tensor | None  # int64 (B,)


def load_model(path: Path, device: torch.device, use_ema: bool = True) -> Model:
    """The newest whole checkpoint at PATH, in eval mode. Raises UserError where there is none or it is damaged."""
    found = checkpoint.locate(path)
    record = checkpoint.read_record(found)
    resolved = preset.build(record.get("preset"), f"{found}/{checkpoint.RECORD}")
    part = "ema" if use_ema else "task"
    tensors = checkpoint.read_part(found, part, record)
    with torch.random.fork_rng(devices=[]):  # its initial weights are thrown away
        built = resolved.task.build(resolved.data.shape)
    load_weights(built, tensors, found)
    task = place(built, device, "fp32").eval().requires_grad_(False)
    file = found if found.is_file() else found / f"{part}.safetensors"
    classes = tuple(record["classes"]) if record.get("classes") else None
    return Model(found, record["step"], resolved, task, classes, use_ema, sha256(file))


def request(model: Model, options: SampleOptions) -> Request:
    """The options completed from the checkpoint. Raises UserError where they contradict it."""
    task = model.preset.task
    if not isinstance(task, DiffusionConfig):
        raise UserError(
            f"{model.path}: was trained as a {task.kind}, which draws no images",
            "give the checkpoint of a diffusion model; a classifier is used by `diffcli fid --features RUN`",
        )
    guidance = model.preset.guidance if options.guidance is None else options.guidance
    try:
        if guidance != 1:
            preset.check_guidance(guidance, task)
    except ValueError as error:
        problem = str(error).partition("; ")[0]
        raise UserError(f"--guidance for {model.path}: {problem}", "use --guidance 1, which is off") from None
    sampler = choose_sampler(model, options, task)
    n = options.n or (len(model.classes or ()) if options.labels == "all" else DEFAULT_N)
    return Request(model, n, options.seed, choose_labels(model, options, n), sampler, guidance, options.batch_size)


def choose_sampler(model: Model, options: SampleOptions, task: DiffusionConfig) -> Sampler:
    """The checkpoint's sampler with --sampler, --steps, --ddim-eta and --set sampler.KEY=VALUE applied."""
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
        sampler: Sampler = TypeAdapter(AnySampler).validate_python(wanted)
    except ValidationError as error:
        kinds = [tag.strip(" '") for tag in error.errors()[0].get("ctx", {}).get("expected_tags", "").split(",")]
        raise UserError(f"--sampler {kind}: no such sampler", did_you_mean(kind, kinds)) from None
    if options.overrides:
        sampler = overridden(model, sampler, options.overrides)
    try:
        sampler.times(task.schedule)
    except UserError as error:  # more steps than the schedule has
        flag = f"--steps {options.steps}" if options.steps else f"--sampler {kind}"
        raise UserError(f"{flag}: {error.problem}", error.hint) from None
    return sampler


def overridden(model: Model, sampler: Sampler, overrides: Sequence[str]) -> Sampler:
    """`--set sampler.KEY=VALUE`, validated as in a preset; what was trained stays as it is."""
    for item in overrides:
        if not item.startswith("sampler."):
            raise UserError(
                f"--set {item}: sampling changes sampler.* keys only", "train another model to change the rest"
            )
    raw = model.preset.model_dump(mode="json") | {"sampler": sampler.model_dump(mode="json")}
    return preset.build(raw, str(model.path), overrides).sampler


def choose_labels(model: Model, options: SampleOptions, n: int) -> Tensor | None:
    """--class ID|NAME|all|random as int64 (n,); None for a model without classes."""
    task, which = model.preset.task, options.labels
    assert isinstance(task, DiffusionConfig)
    count = next((c.num_classes for c in task.conditioners if c.kind == "class"), None)
    if count is None:
        if which is not None:
            raise UserError(f"--class {which}: {model.path} is not class-conditional", "leave --class out")
        return None
    if which in (None, "all"):
        return torch.arange(n) % count
    if which == "random":
        seeds = [options.seed + i for i in range(n)]
        return (Noise(seeds, torch.device("cpu"), Domain.LABEL).uniform() * count).long()
    return torch.full((n,), class_id(which, model.classes, count))


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


@torch.no_grad()
def draw(req: Request, group: Group) -> Iterator[Drawn]:
    """The images of a request in order, batch by batch, on rank 0; the other ranks help and yield nothing."""
    starts = range(0, req.n, req.batch_size)
    for first in range(0, len(starts), group.world):
        mine = first + group.rank
        rows = rows_of(req, starts[mine]) if mine < len(starts) else range(0)
        images = torch.zeros(req.batch_size, *req.model.preset.data.shape, dtype=torch.uint8)
        if rows:
            *_, last = req.tally.watch(
                req.task.trajectory(req.batch(rows), req.seeds(rows), req.sampler, req.guidance)
            )
            images[: len(rows)] = to_uint8(req.task.decode(last.x))
        parts = group.gather(images.to(group.device))
        req.tally.agree(group)
        for part, start in zip(parts, islice(starts, first, None), strict=False):
            done = rows_of(req, start)
            labels = None if req.labels is None else req.labels[done.start : done.stop]
            yield Drawn(part[: len(done)].cpu(), labels)


def frame_count(req: Request, show: Literal["x", "x0"]) -> int:
    """How many `frames` a request has: one a step, and for x the noise before the first."""
    return req.sampler.steps + (show == "x")


@torch.no_grad()
def frames(req: Request, show: Literal["x", "x0"], group: Group) -> Iterator[Tensor]:
    """The trajectory of all images of a request as uint8 (n, C, H, W), on rank 0; the other ranks help and yield nothing.

    show: x, from pure noise to the samples, or the x0 that each step predicts, the last of which are the samples.
    """
    shares = group.shares(req.n)
    mine, most = shares[group.rank], max(map(len, shares))
    starts = range(mine.start, mine.stop, req.batch_size)
    walks = [walk(req, range(start, min(start + req.batch_size, mine.stop)), show) for start in starts]
    for _ in range(frame_count(req, show)):
        images = torch.zeros(most, *req.model.preset.data.shape, dtype=torch.uint8)
        if walks:
            images[: len(mine)] = torch.cat([next(each) for each in walks])
        parts = group.gather(images.to(group.device))
        if parts:
            yield torch.cat([part[: len(rows)] for part, rows in zip(parts, shares, strict=True)]).cpu()
    req.tally.agree(group)


@torch.no_grad()
def walk(req: Request, rows: range, show: Literal["x", "x0"]) -> Iterator[Tensor]:
    """`frames` of the images `rows` alone, computed as one batch."""
    task, seeds = req.task, req.seeds(rows)
    if show == "x":  # the same draw that the trajectory starts from
        noise = Noise(seeds, task.device)(torch.empty(task.latent_shape(len(rows)), device=task.device))
        yield to_uint8(task.decode(noise))
    for step in req.tally.watch(task.trajectory(req.batch(rows), seeds, req.sampler, req.guidance)):
        yield to_uint8(task.decode(step.x0 if show == "x0" else step.x))


def rows_of(req: Request, start: int) -> range:
    """The images of the batch that begins at `start`."""
    return range(start, min(start + req.batch_size, req.n))
