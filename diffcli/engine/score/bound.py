"""The extractor `bound`: how many bits a dimension a checkpoint needs, by its variational bound, to code reference images.

Image i of the reference is noised by the stream of seed + i, so the bound depends on neither batch size nor number of processes.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.diffusion.likelihood import Term, Variance, bits_per_dim
from diffcli.diffusion.samplers import Ddpm
from diffcli.diffusion.schedule import DiscreteSchedule
from diffcli.engine.draw.request import Request, SampleOptions
from diffcli.engine.score.onepass import Watch
from diffcli.fields import Remedies, Specs, check_classes, check_fields, converted
from diffcli.lookup.changeable import moves_encoder
from diffcli.metrics.extractor import Extracted
from diffcli.noise import Noise


class VariationalBound:
    """Every term of the bound of each image: unguided, and clipped as sampling clips, as published bounds are.

    guidance: None or 1 conditions on the images' own labels, 0 on nothing. watch: shows how many of `expected` images' terms are
    done. Raises UserError if the model has no bound.
    """

    unit = "images"
    classes: tuple[str, ...] | None = None

    def __init__(self, req: Request, guidance: float | None, watch: Watch | None = None, expected: int = 0) -> None:
        self.req, self.guidance, self.watch = req, guidance, watch
        self.schedule, self.variance = _chain(req)
        self.done, self.expected = 0, expected * (self.schedule.steps + 1)
        self.most = 0  # rows of a batch so far
        self.limit: int | None = req.n
        self.notes: list[str] = []
        self.reads: Specs = {req.task.field: req.task.spec}
        if "label" in req.task.reads:
            self.reads = {**self.reads, "label": req.task.reads["label"]}
        self.gives: Mapping[str, tuple[int, ...]] = {"bits": (self.schedule.steps + 1,), "bpd": ()}

    def check(self, name: str, fields: Specs) -> None:
        labels = "give labelled data, such as the test split of the model's own"
        if "label" in self.reads and "label" not in fields:
            raise UserError(f"--ref {name}: the images have no labels, but the model is conditioned on them", labels)
        size = "give images of the model's own size, such as the test split of its data"
        remedies = {
            self.req.task.field: Remedies(lacking=size, kind=size, shape=size),
            "label": Remedies(classes=labels),
        }
        check_fields(self.reads, fields, f"--ref {name}: --ckpt {self.req.model.path}", remedies)

    def __call__(self, fields: Mapping[str, Any], rows: range) -> Extracted:
        """`bits` (B, T + 1), from t = 1 to 1/T and then the prior's, and their sum `bpd` (B,), in bits a dimension."""
        count, self.most = len(rows), max(self.most, len(rows))
        if self.req.model.compiled:  # for batches of one size: the last, odd one repeats its last row
            rows = range(rows.start, rows.start + self.most)
            fields = {name: value[[min(i, count - 1) for i in range(len(rows))]] for name, value in fields.items()}
        terms = []
        for term in self._terms(fields, rows):
            terms.append(term.bits[:count])
            self.done += count
            if self.watch:
                self.watch("terms of images", self.done, self.expected)
        bits = torch.stack(terms, dim=1)
        return {"bits": bits, "bpd": bits.cpu().double().sum(1)}

    def _terms(self, fields: Mapping[str, Any], rows: range) -> Iterator[Term]:
        """Every term of the bound of a batch."""
        task = self.req.task
        self._check_shape(fields[task.field])
        x = converted(fields[task.field].to(task.device), task.spec)
        batch = {**self.req.batch(rows), task.field: x}
        if "label" in self.reads:
            check_classes(fields["label"], task.reads["label"], "--ref: a label")
            batch["label"] = fields["label"].to(task.device)
        x0 = task.codec.encode(x)
        denoise = task.denoise(batch, float(self.guidance != 0), len(x0))
        noise = Noise(self.req.seeds(rows), task.device)
        return bits_per_dim(denoise, self.schedule, x0, noise, self.variance, task.codec.length)

    def describe(self) -> dict[str, Any]:
        req = self.req
        conditions = [value for key, value in req.scored_under().items() if key == "conditions"]
        conditions += ["the images' own labels"] if "label" in req.task.reads and self.guidance != 0 else []
        return {
            "variance": self.variance,
            "evaluations": self.schedule.steps,
            "condition": " and ".join(conditions) or "none",
            "seed": req.seed,
        }

    def _check_shape(self, image: Tensor) -> None:
        """For sides whose number of channels is unknown before they are read."""
        shape = self.req.shape
        if tuple(image.shape[1:]) != shape:
            raise UserError(
                f"--ref: images are {tuple(image.shape[1:])} (channels, height, width), the model draws {shape}",
                "give images of the model's own size, such as the test split of its data",
            )


def check_options(options: SampleOptions) -> None:
    """Raises UserError for sampling options without effect on a bound: labels, guidance, sampler and steps."""
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
    """Whether a `--set` item changes the steps of sampling; variance and the place of an encoder do not."""
    return not (item.startswith("sampler.variance=") or moves_encoder(item))


def _chain(req: Request) -> tuple[DiscreteSchedule, Variance]:
    """The steps and the variance of the ancestral chain whose bound it is: that of --sampler ddpm, or what `auto` means there."""
    schedule, learned = req.task.denoiser.schedule, req.task.denoiser.learn_variance
    if not req.task.codec.exact:
        raise UserError(
            f"--metrics bpd: {req.model.path} diffuses latents, whose bound says nothing of the images that they are decoded to",
            "score a model of pixels, or use --metrics fid",
        )
    if not isinstance(schedule, DiscreteSchedule):
        kind = schedule.model_dump()["kind"]
        raise UserError(
            f"--metrics bpd: the {kind} schedule of {req.model.path} is continuous, the bound is a sum over steps",
            "score a model trained on a discrete schedule, such as cosine, or use --metrics fid",
        )
    chosen = req.sampler.variance if isinstance(req.sampler, Ddpm) else "auto"
    return schedule, ("learned" if learned else "small") if chosen == "auto" else chosen
