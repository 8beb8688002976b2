"""The report of scores with everything needed to interpret them, as lines for people and as JSON for programs.

    {"schema": 1, "scores": {NAME: number}, "metrics": {KIND: options that differ from the defaults},
     "extractors": {NAME: what its values depend on}, "images": {"name", "n"} or null, "reference": {"name", "n"},
     "warnings": [...], and details such as checkpoint, sampler, steps, nfe, seed, or the terms of a bound}

With the extractor `features` its name and layer stand as `features` and `layer`, too.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from diffcli.config import ImageShape
from diffcli.metrics.metric import Metric

SCHEMA = 1


@dataclass(frozen=True)
class Counted:
    """A side with the number of its scored images."""

    name: str
    n: int | None  # None where statistics do not say
    shape: ImageShape | None = None  # None for statistics and cached references
    cached: bool = False
    unit: str = "images"
    frames: int | None = None  # of each clip; None of images
    given: bool = False  # mean and covariance come from statistics in the file, not from its images

    def __str__(self) -> str:
        unit = self.unit.removesuffix("s") if self.n == 1 else self.unit
        count = f"an unknown number of {unit}" if self.n is None else f"{self.n} {unit}"
        size = f" of {frames_text(self.frames)}" if self.frames else ""
        size += f" of {size_text(self.shape)}" if self.shape else ""
        given = "; mean and covariance are those in the file" if self.given else ""
        return f"{self.name}, {count}{size}" + (" (cached)" if self.cached else "") + given

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {"name": self.name, "n": self.n, **({"statistics": "given"} if self.given else {})}


class Result(NamedTuple):
    """The result of one metric."""

    metric: Metric
    scores: dict[str, float]
    more: dict[str, Any]  # what it says beside its scores

    def lines(self) -> dict[str, str]:
        """For people: its scores, the first with the options that differ from the defaults."""
        found = self.metric.lines(self.scores, self.more)
        if options := ", ".join(f"{name} {value}" for name, value in self.metric.options.items()):
            first = next(iter(found))
            found[first] += f" ({options})"
        return found


@dataclass(frozen=True)
class Report:
    """Scores and everything needed to interpret them; `details` come from the caller (sampler, NFE, EMA, ...)."""

    results: Sequence[Result]
    extractors: dict[str, dict[str, Any]]  # what each describes of itself
    samples: Counted | None  # None where no metric looks at samples
    reference: Counted
    warnings: list[str] = field(default_factory=list)
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def scores(self) -> dict[str, float]:
        """The scores of all metrics, in the requested order."""
        return {name: value for result in self.results for name, value in result.scores.items()}

    def with_floors(self, kinds: Collection[str], floors: Sequence[Any], notes: Sequence[str] = ()) -> "Report":
        """The same report with floors, JSON values, beside the scores of the metrics of these kinds."""
        beside = {"floors": list(floors)}
        results = [r._replace(more=r.more | beside) if r.metric.kind in kinds else r for r in self.results]
        return replace(self, results=results, warnings=[*self.warnings, *notes])

    def lines(self) -> list[str]:
        """For people: one line for each score, then what was compared. The caller prints warnings."""
        facts = {name: line for result in self.results for name, line in result.lines().items()}
        if features := self.extractors.get("features"):
            facts["features"] = f"{features['name']}, layer {features['layer']}"
        if self.samples:
            facts["images"] = str(self.samples)
        facts["reference"] = str(self.reference)
        facts |= {name: str(value) for name, value in self.details.items()}
        width = max(map(len, facts))
        return [f"{name:<{width}}  {value}" for name, value in facts.items()]

    def as_dict(self) -> dict[str, Any]:
        """For programs: JSON values."""
        features = self.extractors.get("features")
        return {
            "schema": SCHEMA,
            "scores": self.scores,
            "metrics": {result.metric.kind: result.metric.options for result in self.results},
            "extractors": self.extractors,
            **({"features": features["name"], "layer": features["layer"]} if features else {}),
            "images": self.samples.as_dict() if self.samples else None,
            "reference": self.reference.as_dict(),
            **{name: value for result in self.results for name, value in result.more.items()},
            "warnings": list(self.warnings),
            **self.details,
        }


def frames_text(frames: int) -> str:
    """A number of frames, for messages."""
    return f"{frames} frame{'s' * (frames != 1)}"


def size_text(shape: ImageShape) -> str:
    """Width x height x channels, for messages."""
    return f"{shape.width}x{shape.height}x{shape.channels}"
