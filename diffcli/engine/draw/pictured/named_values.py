"""Conditions of a call from Python, by field: pictures in whatever form, tensors, and the samples of another model."""

from collections.abc import Iterable, Mapping
from typing import Any

from diffcli.config import UserError, did_you_mean
from diffcli.engine.arguments import pictures, rows_of
from diffcli.engine.draw.conditions import condition_specs
from diffcli.engine.draw.given import Value, from_files, from_stage, spec_of
from diffcli.engine.draw.pictured.unfolding import pictures_of
from diffcli.engine.model import Model
from diffcli.engine.samples import Samples


def named_values(
    model: Model,
    given: Mapping[str, Any],
    fields: Mapping[str, Any],
    parameters: Iterable[str],
) -> dict[str, Any]:
    """All conditions by field. Raises UserError for one that is given twice, and for a keyword that is none."""
    for name in fields:
        if name in given:
            raise UserError(f"'{name}' is given twice", f"leave it out of given, or leave out {name}")
        if name not in model.task.reads:
            raise UserError(
                f"{name} is no parameter, and {model.path} reads no field of that name",
                did_you_mean(name, [*parameters, *condition_specs(model)]),
            )
    return {**given, **fields}


def value_of(model: Model, name: str, value: Any, size: tuple[int, int] | None) -> Value:
    if isinstance(value, Samples):
        return from_stage(model, value.tensor, value.record, name)[name]
    rows = rows_of(value)
    if rows is None:
        spec_of(model, str(name))  # what nobody reads is told before what it is given as
        files = [each for path in pictures(f"given[{name!r}]", value) for each in pictures_of(name, path, notes=True)]
        return from_files(model, name, files, size)
    if not rows.ndim or not len(rows):
        raise UserError(
            f"given[{name!r}] has no rows", "give a tensor (K, ...) with a row for each image, or one for all"
        )
    return Value(rows, f"a tensor of {'x'.join(map(str, rows.shape))}")
