"""`diffcli fid` put together: which two sides, which extractor, and samples of a checkpoint as one of the sides."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffcli.config import UserError
from diffcli.engine.distributed import Group
from diffcli.engine.draw import guides
from diffcli.engine.draw.rows import told_fields
from diffcli.engine.draw.sample import Model, Request, SampleOptions, draw, load_model, request
from diffcli.engine.score import bound, prior_scores
from diffcli.engine.score.evaluate import Progress, Report, evaluate
from diffcli.engine.score.features import extractor_for
from diffcli.engine.score.sides import Images, Source, own_source, resolve
from diffcli.metrics.scores import metrics_by_name
from diffcli.tasks.guide import Guide


@dataclass(frozen=True)
class Job:
    """What the command line asks for. `sides`: A B, or none where `ckpt` is sampled and compared with `ref`."""

    sides: Sequence[str]
    ckpt: Path | None
    ref: str | None
    options: SampleOptions
    metrics: Sequence[str]
    features: str | None  # None is inception
    weights: Path | None
    ema: bool

    def check(self) -> None:
        """Raises UserError for options that contradict each other, before anything is loaded."""
        if bound.wanted(self.metrics):
            bound.check(self.metrics, self.ckpt, self.options)
            bound.check_features(self.features, self.weights)
        elif prior_scores.wanted(self.metrics):
            idle = {"--features": self.features, "--weights": self.weights}
            prior_scores.check(self.metrics, self.ckpt, self.options, idle)
        else:
            metrics_by_name(self.metrics)
        if self.ckpt is None and len(self.sides) != 2:
            raise UserError(
                f"fid compares two sides, {len(self.sides)} given"
                + (f" ({', '.join(self.sides)})" if self.sides else ""),
                "type diffcli fid A B, or diffcli fid --ckpt RUN --ref B",
            )
        if self.ckpt is not None and self.sides:
            raise UserError(
                f"fid takes either A B or --ckpt, both given: {' '.join(self.sides)}", "use --ref for the reference"
            )
        if self.ckpt is None and self.ref is not None:
            raise UserError(f"--ref {self.ref} goes with --ckpt", "type diffcli fid A B, the reference second")

    def run(
        self, group: Group, progress: Progress | None = None
    ) -> Report | bound.Bound | prior_scores.Comparison | None:
        """The report, on the leading rank; the others help to sample and return None."""
        if self.ckpt is None:
            return (
                self._compared(resolve(self.sides[0]), resolve(self.sides[1]), group, progress) if group.leads else None
            )
        model = load_model(self.ckpt, group.device, self.ema, self.options.overrides)
        if prior_scores.wanted(self.metrics):
            return prior_scores.compare(model, self.options, self.metrics, self.ref, group, progress)
        telling = self._reference(model) if told_fields(model) else None
        req = request(model, self.options, telling)
        if bound.wanted(self.metrics):
            return bound.bound(req, telling or self._reference(model), self.options.guidance, group, progress)
        fake = samples(req, group)
        if not group.leads:
            assert fake.batches is not None
            for _ in fake.batches(req.batch_size):
                pass
            return None
        details = describe(req)
        report = self._compared(fake, telling or self._reference(model), group, progress, req.n, details)
        report.warnings.extend(req.given.notes(req.n) if req.given else [])
        if details["nfe"] is None:
            details["nfe"] = int(req.tally)  # counted while the images were drawn
        return report

    def _compared(
        self,
        fake: Source,
        real: Source,
        group: Group,
        progress: Progress | None,
        n: int | None = None,
        details: dict[str, Any] | None = None,
    ) -> Report:
        needed = fake.statistics is None or real.statistics is None
        extractor = extractor_for(self.features or "inception", self.weights, group.device) if needed else None
        size = self.options.batch_size
        return evaluate(real, fake, self.metrics, extractor, n=n, batch_size=size, progress=progress, details=details)

    def _reference(self, model: Model) -> Source:
        if self.ref:
            return resolve(self.ref)
        return own_source(model, "train")


def describe(req: Request) -> dict[str, Any]:
    """Of a report: which model drew the samples, and how."""
    return {
        "checkpoint": f"{req.model.path} (step {req.model.step})",
        "ema": req.model.ema,
        "sampler": req.sampler.name,
        "steps": req.sampler.steps,
        "nfe": req.sampler.nfe,
        "guidance": req.guidance,
        **({"conditions": req.given.describe()} if req.given else {}),
        **({"prior": req.prior.describe()} if req.prior else {}),
        **({"guide": guides.describe(req.guide, req.models)} if req.guide != Guide() else {}),
        "seed": req.seed,
    }


def samples(req: Request, group: Group) -> Source:
    """The images of a request as a side; drawn while they are read, never held whole."""

    def batches(batch_size: int) -> Iterator[Images]:
        for drawn in draw(req, group):
            yield drawn.images, drawn.labels

    labelled = req.labels is not None
    return Source(f"samples of {req.model.path}", batches, req.n, labelled, req.model.classes)
