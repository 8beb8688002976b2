"""The evaluation of `diffcli fid`: check two sides, pass once over each, compute every metric, and describe what was compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diffcli.engine.distributed import Group
from diffcli.engine.score.cache import cache_file, cache_folder, read_cache, write_cache
from diffcli.engine.score.checks import Sides, check_needs
from diffcli.engine.score.onepass import Use, Watch, sweep
from diffcli.engine.score.report import Counted, Report, Result, size_text
from diffcli.engine.score.sides import Side
from diffcli.engine.score.sight.viewed import for_side
from diffcli.metrics.extractor import Extractor
from diffcli.metrics.keepers import MOMENTS
from diffcli.metrics.metric import ROLES, Metric, Role, empty_summaries
from diffcli.metrics.statistics import Statistics
from diffcli.metrics.summary import Summary

FEATURES = "features"


@dataclass
class Gathering:
    """Reading of sides, with the warnings about it."""

    extractors: Mapping[str, Extractor]
    group: Group
    batch_size: int
    watch: Watch | None
    cache: Path
    warnings: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)  # rows that an extractor with a limit looked at, by its name

    def gather(self, role: Role, side: Side, own: dict[str, Summary]) -> Counted:
        """Fills a side's summaries, by extractor: from statistics, the cache or its rows. Complete on the leading process."""
        if side.statistics is not None:
            own.update(dict.fromkeys(own, Summary.from_statistics(side.statistics)))
            return Counted(side.name, side.statistics.n)
        whole = self._whole(side, own)
        if whole is not None and own[FEATURES].keeps == {MOMENTS}:
            own[FEATURES] = Summary.from_statistics(whole)
            if len(own) == 1:
                return Counted(side.name, whole.n, given=True)
        counted = self._read(role, side, {name: part for name, part in own.items() if part.given is None}, own)
        if whole is not None:
            own[FEATURES].given = whole
        return replace(counted, given=whole is not None)

    def _whole(self, side: Side, own: Mapping[str, Summary]) -> Statistics | None:
        """The statistics beside a side's images, if a metric needs them and they belong to the same extractor."""
        if side.whole is None or FEATURES not in own or MOMENTS not in own[FEATURES].keeps:
            return None
        described, dim = self.extractors[FEATURES].describe(), self.extractors[FEATURES].gives[FEATURES][-1]
        stated = (side.whole.features, side.whole.layer)
        if len(side.whole.mu) == dim and (stated[0] is None or stated == (described["name"], described["layer"])):
            if stated[0] is None:
                self.warnings.append(
                    f"{side.name} does not say which extractor its statistics are of; {described['name']} is assumed"
                )
            return side.whole
        self.warnings.append(
            f"{side.name} holds statistics (mu, sigma) of other features than {described['name']}; its images are used"
        )
        return None

    def _read(self, role: Role, side: Side, wanted: dict[str, Summary], own: dict[str, Summary]) -> Counted:
        """Fills the requested summaries in `own`, from the cache or the rows."""
        path = self._cache_file(side, wanted) if role == "reference" else None
        found = (
            read_cache(path, wanted[FEATURES].keeps, self.extractors[FEATURES].gives[FEATURES][-1]) if path else None
        )
        cached = self.group.agreed(found is not None)
        seen = for_side(self.extractors, side)
        uses = {name: Use(seen[name], wanted[name]) for name in wanted if not (cached and name == FEATURES)}
        shape = sweep(side, uses, self.group, self.batch_size, self.watch) if uses else None
        if found is not None:
            own[FEATURES] = found
        elif path and own[FEATURES].n >= 2:
            self.warnings += write_cache(path, own[FEATURES])
        for name, use in uses.items():
            self._about_limit(name, side, use)
        looked = [side.size or 0 if name not in uses else uses[name].rows_of(side) for name in wanted]
        units = [self.extractors[name].unit for name in wanted]
        unit = next(iter(units), "images")
        clip = side.fields.get("clip") if unit == "clips" else None
        frames = clip.shape[1] if clip and clip.shape else None
        return Counted(side.name, max(looked, default=side.size), shape, cached, unit, frames)

    def _cache_file(self, side: Side, own: Mapping[str, Summary]) -> Path | None:
        """The cache file for the features of a reference; None on processes that do not lead."""
        if FEATURES not in own or not self.group.leads:
            return None
        described = self.extractors[FEATURES].describe()
        return cache_file(side.fingerprint, described["name"], described["layer"], self.cache)

    def _about_limit(self, name: str, side: Side, use: Use) -> None:
        limit = use.extractor.limit
        if limit is None:
            return
        self.counts[name] = use.rows_of(side)
        if self.counts[name] < limit:
            self.warnings.append(f"{side.name} has {side.size} {use.extractor.unit}, fewer than the {limit} of --n")


def evaluate(
    metrics: Sequence[Metric],
    sides: Sides,
    extractors: Mapping[str, Extractor],
    group: Group,
    *,
    batch_size: int = 64,
    watch: Watch | None = None,
    details: Mapping[str, Any] | None = None,
    cache: Path | None = None,
) -> Report | None:
    """Scores `samples` against `reference` by all metrics; the report on the leading process, None on the others.

    sides: with `samples` where a metric needs them. extractors: those that the metrics name; `features` may be missing where both
    sides are statistics. cache: folder of reference summaries, by default that of the user. Raises UserError.
    """
    warnings = [*check_needs(metrics, sides, extractors), *(note for side in sides.values() for note in side.notes)]
    gathering = Gathering(extractors, group, batch_size, watch, cache or cache_folder(), warnings)
    summaries: dict[tuple[Role, str], Summary] = empty_summaries(metrics)
    counted: dict[Role, Counted] = {}
    for role in [role for role in reversed(ROLES) if role in sides]:
        own = {name: summary for (side, name), summary in summaries.items() if side == role}
        counted[role] = gathering.gather(role, sides[role], own)
        summaries |= {(role, name): summary for name, summary in own.items()}
    notes = group.collect([note for extractor in extractors.values() for note in extractor.notes])
    if not group.leads:
        return None
    results = [Result(metric, metric.compute(summaries), metric.more(summaries)) for metric in metrics]
    warnings += _about_sizes(counted) + _about_lengths(counted)
    warnings += [warning for metric in metrics for warning in metric.warnings(summaries)]
    warnings += dict.fromkeys(note for each in notes for note in each)
    described = _described(sides, extractors)
    for name, count in gathering.counts.items():
        described[name] |= {"n": count}
    return Report(results, described, counted.get("samples"), counted["reference"], warnings, details or {})


def _about_lengths(counted: Mapping[Role, Counted]) -> list[str]:
    lengths = [counted[role].frames for role in ("samples", "reference") if role in counted]
    if len(lengths) == 2 and lengths[0] and lengths[1] and lengths[0] != lengths[1]:
        told = " and ".join(map(str, lengths))
        return [f"the sides have clips of {told} frames: scores of whole clips compare between equal lengths alone"]
    return []


def _about_sizes(counted: Mapping[Role, Counted]) -> list[str]:
    shapes = [counted[role].shape for role in ("samples", "reference") if role in counted]
    if len(shapes) == 2 and shapes[0] and shapes[1] and shapes[0][1:] != shapes[1][1:]:
        sizes = ", ".join(size_text(shape) for shape in shapes if shape)
        return [f"the sides differ in size ({sizes}); each is resized alone"]
    return []


def _described(sides: Sides, extractors: Mapping[str, Extractor]) -> dict[str, dict[str, Any]]:
    """The description of each extractor; for statistics alone, the description that they hold."""
    found = {name: extractor.describe() for name, extractor in extractors.items()}
    if found:
        return found
    given = [sides[role].statistics for role in reversed(ROLES)]
    named = next((g for g in given if g is not None and g.features is not None), None)
    name, layer = (named.features, named.layer) if named else ("unknown", "unknown")
    return {FEATURES: {"name": name, "layer": layer}}
