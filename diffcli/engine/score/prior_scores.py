"""`diffcli fid --metrics cosine,mse,retrieval`: what a prior makes of held-out texts, beside what the identity would.

Row i of a reference is translated by the stream of seed + i, so nothing depends on batch size or number of processes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.data.images import ImageData
from diffcli.data.loader import on_device
from diffcli.diffusion.samplers import Sampler
from diffcli.engine.distributed import Group
from diffcli.engine.draw.request import SampleOptions, check_steps, choose_sampler, overridden
from diffcli.engine.model import Model
from diffcli.engine.score.evaluate import Progress
from diffcli.engine.score.sides import own_source, resolve
from diffcli.tasks.conditioners.slots import unit_variance
from diffcli.tasks.conditioners.stored import IMAGE, TEXT
from diffcli.tasks.guide import Guide
from diffcli.tasks.prior import DiffusionPriorConfig, PriorConfig, PriorTask, closeness

METRICS = ("cosine", "mse", "retrieval")
CHUNK = 1024  # rows compared with all others at once


@dataclass(frozen=True)
class Comparison:
    """The scores of a prior and of the identity, means over the n rows of a reference."""

    scores: Mapping[str, float]  # METRICS asked for, each also as identity_METRIC
    reference: str
    n: int
    warnings: list[str] = field(default_factory=list)
    details: Mapping[str, Any] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """For people: prior and identity side by side, then what was translated by what."""
        asked = [name for name in METRICS if name in self.scores]
        facts = {name: f"{self.scores[name]:.6g} (identity {self.scores[f'identity_{name}']:.6g})" for name in asked}
        facts |= {"reference": f"{self.reference}, {self.n} pairs"}
        facts |= {name: str(value) for name, value in self.details.items()}
        width = max(map(len, facts))
        return [f"{name:<{width}}  {value}" for name, value in facts.items()]

    def as_dict(self) -> dict[str, Any]:
        """For programs: JSON values."""
        known = {"scores": dict(self.scores), "reference": {"name": self.reference, "n": self.n}}
        return known | {"warnings": list(self.warnings), **self.details}


def wanted(metrics: Sequence[str]) -> bool:
    """Whether these metrics ask for embeddings, not for images."""
    return any(name.strip().lower() in METRICS for name in metrics)


def check(metrics: Sequence[str], ckpt: object, options: SampleOptions, others: Mapping[str, object]) -> None:
    """Raises UserError for what cannot go with them, before anything is loaded. others: flags with values that say nothing."""
    asked = ",".join(metrics)
    for name in metrics:
        if not wanted([name]):
            raise UserError(
                f"--metrics {asked}: {name} looks at images, of which a prior draws none",
                f"choose among {', '.join(METRICS)}",
            )
    if ckpt is None:
        raise UserError(
            f"--metrics {asked} needs a prior", f"type diffcli fid --ckpt RUN --ref SET:test --metrics {asked}"
        )
    for flag, value in {"--class": options.labels, "--prior": options.prior, **others}.items():
        if value is not None:
            raise UserError(f"{flag} {value} with --metrics {asked}: nothing looks at it", f"leave {flag} out")


@torch.no_grad()
def compare(
    model: Model,
    options: SampleOptions,
    metrics: Sequence[str],
    ref: str | None,
    group: Group,
    progress: Progress | None = None,
) -> Comparison | None:
    """The scores over the first --n rows of the reference, on the leading rank; the others help and return None.

    ref: SET:SPLIT; None is the split `test` of the prior's own data. Raises UserError where it has no embeddings.
    """
    task = model.task
    if not isinstance(task, PriorTask):
        raise UserError(
            f"--metrics {','.join(metrics)}: {model.path} is a {model.preset.task.kind} model, not a prior",
            "give the run of a prior, such as that of the preset clip-prior",
        )
    name, data = _held_out(model, ref)
    wish = options.n or len(data)
    n = min(wish, len(data))
    sampler, guidance = drawn_by(model, options)
    pairs = _translated(task, data, group.shares(n)[group.rank], options, sampler, guidance, group, progress)
    text, image, predicted = group.gather_rows(pairs).unbind(1)
    if not group.leads:
        return None
    told = {**_scores(predicted, image), **{f"identity_{k}": v for k, v in _scores(text, image).items()}}
    asked = {name.strip().lower() for name in metrics}
    few = [f"{name} has {n} pairs, fewer than the {wish} of --n"] if n < wish else []
    shown = {key: value for key, value in told.items() if key.removeprefix("identity_") in asked}
    return Comparison(shown, name, n, few, _details(model, options, sampler, guidance))


def _translated(
    task: PriorTask,
    data: ImageData,
    mine: range,
    options: SampleOptions,
    sampler: Sampler,
    guidance: float,
    group: Group,
    progress: Progress | None,
) -> Tensor:
    """(n, 3, D): the scaled embeddings of texts and images of the rows `mine`, and what the prior makes of the texts."""
    rows = [torch.zeros(0, 3, task.dim, device=group.device)]
    for start in range(mine.start, mine.stop, options.batch_size):
        chunk = range(start, min(start + options.batch_size, mine.stop))
        fields = on_device(data.read(torch.arange(chunk.start, chunk.stop)), group.device)
        task.check(fields)
        text, image = unit_variance(fields[TEXT]), unit_variance(fields[IMAGE])
        predicted = task.translate(text, [options.seed + i for i in chunk], sampler, guidance)
        rows.append(torch.stack([text, image, predicted], dim=1))
        if progress and group.leads:
            progress("translated", chunk.stop - mine.start, len(mine))
    return torch.cat(rows)


def retrieval(predicted: Tensor, image: Tensor) -> float:
    """How often, of all image embeddings (n, D), the right one is the nearest to a prediction (n, D) by its cosine.

    Where several are equally near, the right one among them is taken as often as one that is drawn of them.
    """
    images = unit_variance(image)
    hits = 0.0
    for first, rows in zip(range(0, len(images), CHUNK), unit_variance(predicted).split(CHUNK), strict=True):
        near = rows @ images.T
        nearest = near == near.amax(1, keepdim=True)
        own = nearest[torch.arange(len(rows)), torch.arange(first, first + len(rows))]
        hits += float((own / nearest.sum(1)).sum())
    return hits / len(images)


def drawn_by(model: Model, options: SampleOptions) -> tuple[Sampler, float]:
    """Sampler and scale of a prior: those of its own preset, with the sampling options applied. Raises UserError."""
    config = model.preset.task
    assert isinstance(config, PriorConfig)
    if not isinstance(config.network, DiffusionPriorConfig):
        flags = {"--sampler": options.sampler, "--steps": options.steps, "--ddim-eta": options.eta}
        flags |= {"--guidance": options.guidance, "--set": next(iter(options.overrides), None)}
        for flag, value in flags.items():
            if value is not None:
                raise UserError(
                    f"{flag} {value}: {model.path} is a regression, which draws nothing", f"leave {flag} out"
                )
        return model.preset.sampler, 1.0
    guidance = model.preset.guidance if options.guidance is None else options.guidance
    if guidance != 1 and not config.guided:
        raise UserError(
            f"--guidance {guidance:g}: {model.path} was trained with task.network.drop_condition 0, without a second branch",
            "use --guidance 1, which is off",
        )
    sampler = choose_sampler(model, options)
    if options.overrides:
        sampler = overridden(model, sampler, guidance, Guide(), options).sampler
    check_steps(sampler, options, config.network)
    return sampler, guidance


def _held_out(model: Model, ref: str | None) -> tuple[str, ImageData]:
    """The name and the rows of the reference: its embeddings alone."""
    hint = "give a set with stored embeddings: --ref SET:SPLIT, prepared with prep-data ... --embed clip"
    if ref is None:
        try:
            source = own_source(model, "test")
        except UserError as error:
            raise UserError(error.problem, hint) from None
    else:
        source = resolve(ref, size=model.preset.data.size)
    if source.data is None or not {TEXT, IMAGE} <= set(source.data.fields):
        raise UserError(f"{source.name} holds no {TEXT} and {IMAGE}", hint)
    return source.name, source.data.select({TEXT, IMAGE})


def _scores(predicted: Tensor, image: Tensor) -> dict[str, float]:
    near = {name: float(value.double().mean()) for name, value in closeness(predicted, image).items()}
    return near | {"retrieval": retrieval(predicted, image)}


def _details(model: Model, options: SampleOptions, sampler: Sampler, guidance: float) -> dict[str, Any]:
    config = model.preset.task
    assert isinstance(config, PriorConfig)
    drawn = {"sampler": sampler.name, "steps": sampler.steps, "guidance": guidance, "seed": options.seed}
    told = {"checkpoint": f"{model.path} (step {model.step})", "ema": model.ema, "network": config.network.kind}
    return told | (drawn if isinstance(config.network, DiffusionPriorConfig) else {})
