"""The verb behind `diffcli fid`: stream two sides through an extractor, score one against the other, say what was compared.

The reference is summarised once and then cached under the extractor's name; a cache file that cannot be read is rebuilt.
"""

import hashlib
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diffcli.config import ImageShape, UserError
from diffcli.engine.score.features import size_text
from diffcli.engine.score.sides import Images, Source
from diffcli.metrics.extractors import Extractor
from diffcli.metrics.scores import Metric, Scorer, Side, metrics_by_name
from diffcli.metrics.summary import CAP, Part, Summary

Progress = Callable[[str, int, int | None], None]  # what is read, images done, images in all where that is known
CACHE_FORMAT = 1


@dataclass(frozen=True)
class Counted:
    """A side as it was scored."""

    name: str
    n: int | None  # None where statistics do not say
    shape: ImageShape | None = None  # None for statistics and cached references
    cached: bool = False

    def __str__(self) -> str:
        count = "an unknown number of images" if self.n is None else f"{self.n} images"
        size = f" of {size_text(self.shape)}" if self.shape else ""
        return f"{self.name}, {count}{size}" + (" (cached)" if self.cached else "")


@dataclass(frozen=True)
class Report:
    """Scores and everything that they mean nothing without; `details` come from the caller (sampler, NFE, EMA, ...)."""

    scores: dict[str, float]
    features: str
    layer: str
    real: Counted
    fake: Counted
    warnings: list[str] = field(default_factory=list)
    details: Mapping[str, Any] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """For people: a line a score, then what was compared. Warnings are left to the caller."""
        named = [(k, f"{v:.6g}" + self._spread(k)) for k, v in self.scores.items() if not k.endswith("_std")]
        facts = [("features", f"{self.features}, layer {self.layer}"), ("images", str(self.fake))]
        facts += [("reference", str(self.real)), *((k, str(v)) for k, v in self.details.items())]
        width = max(len(k) for k, _ in named + facts)
        return [f"{k:<{width}}  {v}" for k, v in named + facts]

    def as_dict(self) -> dict[str, Any]:
        """For programs: JSON values."""
        sides = {k: {"name": s.name, "n": s.n} for k, s in (("images", self.fake), ("reference", self.real))}
        known = {"scores": self.scores, "features": self.features, "layer": self.layer, **sides}
        return known | {"warnings": list(self.warnings), **self.details}

    def _spread(self, name: str) -> str:
        return f" +- {self.scores[f'{name}_std']:.3g}" if f"{name}_std" in self.scores else ""


def evaluate(
    real: Source,
    fake: Source,
    metrics: Sequence[str],
    extractor: Extractor | None,
    *,
    n: int | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
    details: Mapping[str, Any] | None = None,
    cache: Path | None = None,
) -> Report:
    """Score `fake` against the reference `real` by metrics of these names.

    extractor may be None where both sides are statistics. n: read at most so many images of `fake`; the reference is always
    read whole. cache: folder of reference summaries, by default that of the user. Raises UserError.
    """
    chosen = metrics_by_name(metrics)
    warnings = _check(real, fake, chosen, extractor)
    scorer = Scorer(chosen)
    counted: dict[Side, Counted] = {}
    sides: list[tuple[Side, Source]] = [("real", real), ("fake", fake)]
    for side, source in sides:
        if source.statistics is not None:
            scorer.sides[side] = Summary.from_statistics(source.statistics)
            counted[side] = Counted(source.name, source.statistics.n)
        elif not scorer.sides[side].parts:
            counted[side] = Counted(source.name, source.size)  # no metric looks at it
        else:
            assert extractor is not None
            counted[side] = _gather(scorer, side, source, extractor, n, batch_size, progress, cache, warnings)
        _enough(chosen, side, counted[side], scorer.sides[side])
    warnings += _about_sizes(counted["real"], counted["fake"], n)
    scores = scorer.compute()
    warnings += scorer.warnings() + (extractor.notes if extractor else [])
    features, layer = _used(real, fake, extractor)
    return Report(scores, features, layer, counted["real"], counted["fake"], warnings, details or {})


def cache_folder() -> Path:
    """DIFFCLI_CACHE, else XDG_CACHE_HOME/diffcli, else ~/.cache/diffcli."""
    if own := os.environ.get("DIFFCLI_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffcli"


def _gather(
    scorer: Scorer,
    side: Side,
    source: Source,
    extractor: Extractor,
    n: int | None,
    batch_size: int,
    progress: Progress | None,
    cache: Path | None,
    warnings: list[str],
) -> Counted:
    """Fill a side from the cache (the reference) or by streaming its images through the extractor."""
    path = _cache_path(source, extractor, cache or cache_folder()) if side == "real" else None
    wanted = scorer.sides[side].parts
    kept = _read_cache(path, wanted, extractor) if path else None
    if kept is not None:
        scorer.sides[side] = kept
        return Counted(source.name, kept.n, cached=True)
    summary, shape = scorer.sides[side], None
    limit = n if side == "fake" else None
    total = source.size if limit is None or source.size is None else min(limit, source.size)
    for images, labels in _limited(source, batch_size, limit):
        shape = shape or ImageShape(*images.shape[1:])
        scorer.update(side, extractor(images), labels)
        if progress:
            progress(source.name, summary.n, total)
    if path and summary.n >= 2:
        warnings += _write_cache(path, summary)
    return Counted(source.name, summary.n, shape)


def _limited(source: Source, batch_size: int, limit: int | None) -> Iterator[Images]:
    assert source.batches is not None
    done = 0
    for images, labels in source.batches(batch_size):
        if limit is not None and done + len(images) >= limit:
            keep = limit - done
            yield images[:keep], None if labels is None else labels[:keep]
            return
        done += len(images)
        yield images, labels


def _check(real: Source, fake: Source, metrics: list[Metric], extractor: Extractor | None) -> list[str]:
    """What can be refused or said before any image is read."""
    warnings = []
    for side, source in (("real", real), ("fake", fake)):
        if source.statistics is None:
            if extractor is None:
                raise UserError(
                    f"{source.name} is images, but there is no feature extractor", "add --features inception"
                )
            continue
        for metric in metrics:
            if (metric.keeps_real if side == "real" else metric.keeps_fake) - {Part.MOMENTS}:
                problem = f"--metrics {metric.kind}: needs images, but {source.name} is statistics (mu, sigma)"
                raise UserError(problem, "use --metrics fid, or give the images themselves")
        warnings += _check_statistics(source, extractor)
    if all(s.statistics is not None for s in (real, fake)):
        _check_same(real, fake)
    for metric in metrics:
        _check_logits(metric, fake, extractor)
    return warnings


def _check_statistics(source: Source, extractor: Extractor | None) -> list[str]:
    given = source.statistics
    assert given is not None
    if extractor is None:
        return []
    if len(given.mu) != extractor.dim:
        problem = f"{source.name}: statistics of {len(given.mu)} features, but {extractor.name} has {extractor.dim}"
        raise UserError(problem, "choose the --features that the statistics were made with")
    if given.features is None:
        return [f"{source.name} does not say which extractor its statistics are of; {extractor.name} is assumed"]
    if (given.features, given.layer) != (extractor.name, extractor.layer):
        problem = (
            f"{source.name}: statistics of {given.features}, {given.layer}, not of {extractor.name}, {extractor.layer}"
        )
        raise UserError(problem, "choose the --features (and --weights) that the statistics were made with")
    return []


def _check_same(real: Source, fake: Source) -> None:
    a, b = real.statistics, fake.statistics
    assert a is not None
    assert b is not None
    known = a.features is not None and b.features is not None
    if len(a.mu) != len(b.mu) or (known and (a.features, a.layer) != (b.features, b.layer)):
        labels = [f"{s.features or 'unnamed'} ({len(s.mu)})" for s in (a, b)]
        problem = f"{real.name} and {fake.name}: statistics of different features, {labels[0]} and {labels[1]}"
        raise UserError(problem, "compare statistics made with the same --features")


def _check_logits(metric: Metric, fake: Source, extractor: Extractor | None) -> None:
    name = metric.kind
    if extractor is not None and Part.SPLITS in metric.keeps_fake and extractor.num_logits is None:
        raise UserError(
            f"--metrics {name}: {extractor.name} is no classifier", "use --features inception, or a classifier"
        )
    if extractor is None or Part.HITS not in metric.keeps_fake:
        return
    if extractor.classes is None:
        problem = f"--metrics {name}: the classes of {extractor.name} are not those of the images"
        raise UserError(problem, "use --features RUN, a classifier of these classes trained by diffcli")
    if not fake.labelled:
        raise UserError(
            f"--metrics {name}: {fake.name} has no labels", f"leave {name} out, or give .npz samples with arr_1"
        )
    if fake.classes is not None and tuple(fake.classes) != tuple(extractor.classes):
        classes = [", ".join(c[:3]) + ", ..." for c in (fake.classes, extractor.classes)]
        problem = f"--metrics {name}: {fake.name} has the classes {classes[0]} but {extractor.name} has {classes[1]}"
        raise UserError(problem, "use a classifier trained on the same classes")


def _enough(metrics: list[Metric], side: Side, counted: Counted, summary: Summary) -> None:
    used = [m for m in metrics if (m.keeps_real if side == "real" else m.keeps_fake)]
    least = max((m.least for m in used), default=0)
    if counted.n is not None and counted.n < least and summary.given is None:
        names = ", ".join(m.kind for m in used if m.least > counted.n)
        problem = f"{counted.name}: {counted.n} image{'s' * (counted.n != 1)} cannot be scored by {names}"
        raise UserError(problem, f"give at least {least} images, thousands for a score that means something")


def _about_sizes(real: Counted, fake: Counted, n: int | None) -> list[str]:
    found = []
    if n is not None and fake.n is not None and fake.n < n:
        found.append(f"{fake.name} has {fake.n} images, fewer than the {n} of --n")
    if real.shape and fake.shape and real.shape[1:] != fake.shape[1:]:
        found.append(
            f"the sides differ in size ({size_text(fake.shape)}, {size_text(real.shape)}); each is resized alone"
        )
    return found


def _used(real: Source, fake: Source, extractor: Extractor | None) -> tuple[str, str]:
    if extractor is not None:
        return extractor.name, extractor.layer
    given = [s.statistics for s in (real, fake) if s.statistics is not None and s.statistics.features is not None]
    return (str(given[0].features), str(given[0].layer)) if given else ("unknown", "unknown")


def _cache_path(source: Source, extractor: Extractor, folder: Path) -> Path | None:
    if source.fingerprint is None:
        return None
    key = f"{CACHE_FORMAT}\0{CAP}\0{extractor.name}\0{extractor.layer}\0{source.fingerprint}"
    return folder / f"{extractor.name}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"


def _read_cache(path: Path, wanted: frozenset[Part], extractor: Extractor) -> Summary | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            summary = Summary.from_arrays({name: file[name] for name in file.files})
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None  # not there, or damaged: the images tell it again
    fits = summary.given is None or len(summary.given.mu) == extractor.dim
    return summary if fits and wanted <= summary.parts and summary.n >= 2 else None


def _write_cache(path: Path, summary: Summary) -> list[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
            partial = Path(file.name)
        try:
            with partial.open("wb") as file:
                arrays: dict[str, Any] = dict(summary.arrays())
                np.savez(file, **arrays)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        return [f"the reference could not be cached in {path.parent} ({error.strerror or error})"]
    return []
