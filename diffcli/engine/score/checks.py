"""Checks before any row is read: metrics whose needs no side, extractor or statistics can meet are refused."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from diffcli.config import UserError
from diffcli.engine.score.sides import Side
from diffcli.lookup.plain_yaml import parsed
from diffcli.metrics.extractor import Extractor
from diffcli.metrics.keepers import MOMENTS
from diffcli.metrics.metric import Metric, Need, Role

OPTION = "metrics."  # how a --set item begins that is for a metric

Sides = Mapping[Role, Side]


def check_needs(metrics: Sequence[Metric], sides: Sides, extractors: Mapping[str, Extractor]) -> list[str]:
    """Warnings about statistics. Raises UserError for the first need that cannot be met."""
    warnings = []
    for side in sides.values():
        if side.statistics is not None:
            warnings += _check_statistics(side, extractors.get("features"))
    for metric in metrics:
        metric.check(extractors)
        for need in metric.needs:
            if need.side not in sides:
                raise UserError(
                    f"--metrics {metric.kind} needs {need.side}, and there are none", "give A B, or --ckpt RUN"
                )
            _check_need(metric, need, sides[need.side], extractors)
    if all(side.statistics is not None for side in sides.values()):
        _check_same(sides["reference"], sides["samples"])
    for role, side in sides.items():
        _check_count(metrics, role, side)
    return warnings


def _check_need(metric: Metric, need: Need, side: Side, extractors: Mapping[str, Extractor]) -> None:
    if side.statistics is not None:
        if need.keep != MOMENTS:
            problem = f"--metrics {metric.kind}: needs images, but {side.name} is statistics (mu, sigma)"
            raise UserError(problem, "use --metrics fid, or give the images themselves")
        return
    extractor = extractors.get(need.extractor)
    if extractor is None and need.extractor == "features":
        raise UserError(f"{side.name} is images, but there is no feature extractor", "add --features inception")
    if extractor is None:
        has = ", ".join(extractors) or "none"
        problem = f"--metrics {metric.kind} needs the extractor '{need.extractor}' of {need.side}; there is {has}"
        raise UserError(problem, "choose metrics of those, or give --ckpt of a model that has it")
    extractor.check(side.name, side.fields)
    for value in need.keep.of:
        _check_value(metric, value, side, need.extractor, extractor)


def _check_value(metric: Metric, value: str, side: Side, kind: str, extractor: Extractor) -> None:
    name = extractor.describe().get("name", kind)
    if value == "label":
        _check_labels(metric, side, extractor)
    elif value == "logits" and value not in extractor.gives:
        problem = f"--metrics {metric.kind}: {name} is no classifier"
        raise UserError(problem, "use --features inception, or a classifier")
    elif value not in extractor.gives and value not in side.fields:
        gives = ", ".join([*extractor.gives, *side.fields])
        problem = f"--metrics {metric.kind} needs '{value}', but {name} and {side.name} give only: {gives}"
        raise UserError(problem, "choose another extractor or side, or leave the metric out")


def _check_labels(metric: Metric, side: Side, extractor: Extractor) -> None:
    name, classes = extractor.describe().get("name"), extractor.classes
    if classes is None:
        problem = f"--metrics {metric.kind}: the classes of {name} are not those of the images"
        raise UserError(problem, "use --features RUN, a classifier of these classes trained by diffcli")
    if "label" not in side.fields:
        problem = f"--metrics {metric.kind}: {side.name} has no labels"
        raise UserError(problem, f"leave {metric.kind} out, or give .npz samples with arr_1")
    if side.classes is not None and tuple(side.classes) != tuple(classes):
        found = [", ".join(c[:3]) + ", ..." for c in (side.classes, classes)]
        problem = f"--metrics {metric.kind}: {side.name} has the classes {found[0]} but {name} has {found[1]}"
        raise UserError(problem, "use a classifier trained on the same classes")


def _check_statistics(side: Side, extractor: Extractor | None) -> list[str]:
    given = side.statistics
    assert given is not None
    if extractor is None:
        return []
    described, dim = extractor.describe(), extractor.gives["features"][-1]
    name, layer = described["name"], described["layer"]
    if len(given.mu) != dim:
        problem = f"{side.name}: statistics of {len(given.mu)} features, but {name} has {dim}"
        raise UserError(problem, "choose the --features that the statistics were made with")
    if given.features is None:
        return [f"{side.name} does not say which extractor its statistics are of; {name} is assumed"]
    if (given.features, given.layer) != (name, layer):
        problem = f"{side.name}: statistics of {given.features}, {given.layer}, not of {name}, {layer}"
        raise UserError(problem, "choose the --features (and --weights) that the statistics were made with")
    return []


def _check_same(one: Side, other: Side) -> None:
    a, b = one.statistics, other.statistics
    assert a is not None
    assert b is not None
    known = a.features is not None and b.features is not None
    if len(a.mu) != len(b.mu) or (known and (a.features, a.layer) != (b.features, b.layer)):
        labels = [f"{s.features or 'unnamed'} ({len(s.mu)})" for s in (a, b)]
        problem = f"{one.name} and {other.name}: statistics of different features, {labels[0]} and {labels[1]}"
        raise UserError(problem, "compare statistics made with the same --features")


def _check_count(metrics: Sequence[Metric], role: Role, side: Side) -> None:
    if side.size is None or side.statistics is not None:
        return
    used = [metric for metric in metrics if any(need.side == role for need in metric.needs)]
    least = max((metric.least for metric in used), default=0)
    if side.size < least:
        names = ", ".join(metric.kind for metric in used if metric.least > side.size)
        problem = f"{side.name}: {side.size} image{'s' * (side.size != 1)} cannot be scored by {names}"
        raise UserError(problem, f"give at least {least} images, thousands for a score that means something")


def metric_options(overrides: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`metrics.KIND.OPTION=VALUE` of --set items, VALUE in YAML, by kind. Raises UserError for what has another form."""
    found: dict[str, dict[str, Any]] = {}
    for item in overrides:
        if not item.startswith(OPTION):
            continue
        key, _, text = item.partition("=")
        _, kind, *option = key.split(".")
        if "=" not in item or len(option) != 1 or not option[0]:
            raise UserError(f"--set {item}: has no KEY=VALUE", "write for example --set metrics.kid.subset_size=500")
        try:
            found.setdefault(kind, {})[option[0]] = parsed(text)
        except yaml.YAMLError:
            raise UserError(f"--set {key}: {text!r} is not a YAML value", "write a number or a word") from None
    return found
