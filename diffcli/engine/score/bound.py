"""`diffcli fid --metrics bpd`: how many bits a dimension a checkpoint needs, by its variational bound, to tell reference images.

Image i of the reference is noised by the stream of seed + i, so the bound depends on neither batch size nor number of processes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.data.loader import to_float
from diffcli.diffusion.likelihood import Variance, bits_per_dim
from diffcli.diffusion.samplers import Ddpm
from diffcli.diffusion.schedule import DiscreteSchedule
from diffcli.engine import encoder_records
from diffcli.engine.distributed import Group
from diffcli.engine.draw.request import Request, SampleOptions
from diffcli.engine.score.evaluate import Progress
from diffcli.engine.score.sides import Images, Source
from diffcli.noise import Noise

METRIC = "bpd"


@dataclass(frozen=True)
class Bound:
    """The bound and what it is made of; all in bits a dimension, means over the images."""

    bpd: float
    spread: float  # standard deviation over the images
    terms: Sequence[float]  # from t = 1 to 1/T, then the prior's; they add up to bpd
    reference: str
    n: int
    warnings: list[str] = field(default_factory=list)
    details: Mapping[str, Any] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """For people: the bound, its parts, then what was told by what."""
        *between, last, prior = self.terms
        facts = {
            METRIC: f"{self.bpd:.6g} +- {self.spread:.3g} over the images (variational bound, bits a dimension)",
            "parts": f"steps {sum(between):.6g}, last step {last:.6g}, prior {prior:.6g}",
            "reference": f"{self.reference}, {self.n} images",
            **{name: str(value) for name, value in self.details.items()},
        }
        width = max(map(len, facts))
        return [f"{name:<{width}}  {value}" for name, value in facts.items()]

    def as_dict(self) -> dict[str, Any]:
        """For programs: JSON values."""
        scores = {METRIC: self.bpd, f"{METRIC}_std": self.spread}
        known = {"scores": scores, "terms": list(self.terms), "reference": {"name": self.reference, "n": self.n}}
        return known | {"warnings": list(self.warnings), **self.details}


def wanted(metrics: Sequence[str]) -> bool:
    """Whether these metrics ask how well the model tells the reference, not how its samples look."""
    return METRIC in (name.strip().lower() for name in metrics)


def check(metrics: Sequence[str], ckpt: object, options: SampleOptions) -> None:
    """Raises UserError for what cannot go with bpd, before anything is loaded."""
    others = [name for name in metrics if not wanted([name])]
    if others:
        raise UserError(
            f"--metrics {','.join(metrics)}: bpd tells reference images, {', '.join(others)} look at samples",
            "run diffcli fid once with --metrics bpd and once with the others",
        )
    if ckpt is None:
        raise UserError("--metrics bpd needs a model", "type diffcli fid --ckpt RUN --ref B --metrics bpd")
    if options.labels is not None:
        raise UserError(
            f"--class {options.labels} with --metrics bpd: the images have their own labels", "leave --class out"
        )
    if options.guidance not in (None, 0, 1):
        raise UserError(
            f"--guidance {options.guidance:g} with --metrics bpd: guided sampling has no likelihood",
            "leave --guidance out, or use 0 for the model without its condition",
        )
    check_walk(options)


def check_walk(options: SampleOptions) -> None:
    """Raises UserError for sampling options other than the variance: the bound takes every trained step, unguided."""
    flags = {
        "--sampler": None if options.sampler == Ddpm().kind else options.sampler,
        "--steps": options.steps,
        "--ddim-eta": options.eta,
        "--set": next(filter(walks, options.overrides), None),
    }
    for flag, value in flags.items():
        if value is not None:
            raise UserError(
                f"{flag} {value} with --metrics bpd: the bound takes every step of the schedule, without guidance",
                f"leave {flag} out; only --sampler ddpm --set sampler.variance=small|large|learned changes it",
            )


def walks(item: str) -> bool:
    """Whether a `--set` item says how to walk, and not what variance the steps have or where an encoder lies."""
    return not (item.startswith("sampler.variance=") or encoder_records.moves(item))


def check_features(features: str | None, weights: Path | None) -> None:
    """Raises UserError for an extractor that was asked for and would see no image."""
    for flag, value in (("--features", features), ("--weights", weights)):
        if value is not None:
            raise UserError(
                f"{flag} {value} with --metrics bpd: the bound is told by the model alone, without an extractor",
                f"leave {flag} out",
            )


@torch.no_grad()
def bound(
    req: Request, source: Source, guidance: float | None, group: Group, progress: Progress | None = None
) -> Bound | None:
    """The bound of the first req.n images of `source`, on the leading rank; the others help and return None.

    guidance: None or 1 conditions on the images' own labels, 0 on nothing. Raises UserError where model and images have no bound.
    """
    schedule, variance = _chain(req)
    assert source.size is not None
    assert source.batches is not None
    n, mine = min(req.n, source.size), group.shares(min(req.n, source.size))[group.rank]
    told = [torch.zeros(0, schedule.steps + 1, device=group.device)]
    done = 0
    for first, images in _share(source, mine, req.batch_size):
        bits = []
        for term in _terms(req, images, first, schedule, variance, conditional=guidance != 0):
            bits.append(term)
            done += len(term)
            if progress and group.leads:
                progress("terms of images", done, len(mine) * (schedule.steps + 1))
        told.append(torch.stack(bits, dim=1))
    terms = group.gather_rows(torch.cat(told)).cpu().double()  # (n, T + 1)
    if not group.leads:
        return None
    total = terms.sum(1)
    few = [f"{source.name} has {n} images, fewer than the {req.n} of --n"] if n < req.n else []
    details = _details(req, variance, schedule, guidance)
    return Bound(
        float(total.mean()), float(total.std(unbiased=False)), terms.mean(0).tolist(), source.name, n, few, details
    )


def _chain(req: Request) -> tuple[DiscreteSchedule, Variance]:
    """The steps and the variance of the ancestral chain whose bound it is: that of --sampler ddpm, or what `auto` means there."""
    schedule, learned = req.task.denoiser.schedule, req.task.denoiser.learn_variance
    if not isinstance(schedule, DiscreteSchedule):
        kind = schedule.model_dump()["kind"]
        raise UserError(
            f"--metrics bpd: the {kind} schedule of {req.model.path} is continuous, the bound is a sum over steps",
            "score a model trained on a discrete schedule, such as cosine, or use --metrics fid",
        )
    chosen = req.sampler.variance if isinstance(req.sampler, Ddpm) else "auto"
    return schedule, ("learned" if learned else "small") if chosen == "auto" else chosen


def _share(source: Source, mine: range, batch_size: int) -> Iterator[tuple[int, Images]]:
    """The images `mine` of a source in batches, each with the number of its first."""
    assert source.batches is not None
    first = 0
    for images, labels in source.batches(batch_size):
        low, high = max(mine.start - first, 0), min(mine.stop - first, len(images))
        if low < high:
            yield first + low, (images[low:high], None if labels is None else labels[low:high])
        first += len(images)
        if first >= mine.stop:
            return


def _terms(
    req: Request, images: Images, first: int, schedule: DiscreteSchedule, variance: Variance, conditional: bool
) -> Iterator[Tensor]:
    """Every term of the bound of a batch, each (B,): unguided, and clipped as sampling clips, as published bounds are told."""
    task, (pixels, labels) = req.task, images
    _check_images(req, pixels, labels)
    image = to_float(pixels.to(task.device))
    batch = {**req.batch(range(first, first + len(pixels))), "image": image}
    if labels is not None:
        task.check({**batch, "label": labels})
        batch["label"] = labels.to(task.device)
    x0 = task.codec.encode(image)
    denoise = task.denoise(batch, float(conditional), len(x0))
    noise = Noise([req.seed + first + i for i in range(len(x0))], task.device)
    for term in bits_per_dim(denoise, schedule, x0, noise, variance, task.codec.scale):
        yield term.bits


def _check_images(req: Request, pixels: Tensor, labels: Tensor | None) -> None:
    shape = req.model.preset.data.shape
    if tuple(pixels.shape[1:]) != tuple(shape):
        raise UserError(
            f"--ref: images are {tuple(pixels.shape[1:])} (channels, height, width), the model draws {tuple(shape)}",
            "give images of the model's own size, such as the test split of its data",
        )
    if "label" in req.task.reads and labels is None:
        raise UserError(
            "--ref: the images have no labels, but the model is conditioned on them",
            "give labelled data, such as the test split of the model's own",
        )


def _details(req: Request, variance: Variance, schedule: DiscreteSchedule, guidance: float | None) -> dict[str, Any]:
    told = [req.given.describe()] if req.given else []
    told += ["the images' own labels"] if "label" in req.task.reads and guidance != 0 else []
    return {
        "checkpoint": f"{req.model.path} (step {req.model.step})",
        "ema": req.model.ema,
        "variance": variance,
        "evaluations": schedule.steps,
        "condition": " and ".join(told) or "none",
        "seed": req.seed,
    }
