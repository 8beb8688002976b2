"""The contract of a metric: a config that declares its needs of each side, and computes scores from the summaries.

The sides are named `samples`, which are scored, and `reference`, which they are scored against.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

from diffcli.config import Config
from diffcli.metrics.extractor import Extractor
from diffcli.metrics.keepers import Keep
from diffcli.metrics.summary import Summary

Role = Literal["samples", "reference"]
ROLES: tuple[Role, ...] = ("samples", "reference")

Summaries = Mapping[tuple[Role, str], Summary]
"""The summaries, by side and name of the extractor."""


class Need(NamedTuple):
    """One need of a metric: a part of the summary of a side by an extractor."""

    side: Role
    extractor: str
    keep: Keep


class Metric(Config):
    """A rule that computes scores; its fields are the options of `--set metrics.KIND.OPTION=VALUE`."""

    kind: str
    needs: ClassVar[tuple[Need, ...]]
    least: ClassVar[int] = 2  # rows of a side that it needs
    best: ClassVar[float | None] = None  # its score for samples that are the reference; None where that says nothing

    @abstractmethod
    def compute(self, of: Summaries) -> dict[str, float]:
        """The scores by name; NAME_std is the spread of NAME."""

    def check(self, extractors: Mapping[str, Extractor]) -> None:
        """Raises UserError where an extractor is none that this metric is defined with."""

    def warnings(self, of: Summaries) -> list[str]:
        """Warnings about these summaries for readers of the scores."""
        return []

    def more(self, of: Summaries) -> dict[str, Any]:
        """Further values of the report, as JSON values."""
        return {}

    def lines(self, scores: Mapping[str, float], more: Mapping[str, Any]) -> dict[str, str]:
        """For people: scores of `compute` with their spread, and selected values of `more`."""
        spread = {name: f" +- {scores[f'{name}_std']:.3g}" if f"{name}_std" in scores else "" for name in scores}
        return {name: f"{value:.6g}{spread[name]}" for name, value in scores.items() if not name.endswith("_std")}

    @property
    def options(self) -> dict[str, Any]:
        """The options that differ from their defaults, as JSON values."""
        return self.model_dump(mode="json", exclude_defaults=True)


def of_both(extractor: str, *keeps: Keep) -> tuple[Need, ...]:
    """The same parts of both sides."""
    return tuple(Need(side, extractor, keep) for side in ROLES for keep in keeps)


def empty_summaries(metrics: Iterable[Metric]) -> dict[tuple[Role, str], Summary]:
    """Summaries to fill for these metrics, of the sides and extractors that any of them needs.

    Random samples of the two sides come from two streams: equal sides must not lead to equal samples of them.
    """
    needs = [need for metric in metrics for need in metric.needs]
    keys = dict.fromkeys((need.side, need.extractor) for need in needs)
    return {
        key: Summary((n.keep for n in needs if (n.side, n.extractor) == key), stream=int(key[0] == "samples"))
        for key in keys
    }
