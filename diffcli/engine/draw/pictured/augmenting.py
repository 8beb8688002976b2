"""`--augment LEVEL`: noise on the pictures that condition a model, at a level that the network reads."""

from collections.abc import Iterator
from contextlib import contextmanager

from diffcli.config import UserError
from diffcli.engine.model import Model
from diffcli.tasks.conditioners.spatial import SpatialConditioner
from diffcli.tasks.task import Task


def augmenting(task: Task) -> list[SpatialConditioner]:
    """The conditioners that were trained with noise on their pictures."""
    return [each for each in task.modules() if isinstance(each, SpatialConditioner) and each.config.augment]


def check_augment(model: Model, level: float | None) -> None:
    """Raises UserError if no condition of the model was trained with noise, or only with less."""
    if level is None:
        return
    most = min((each.config.augment for each in augmenting(model.task)), default=None)
    if most is None:
        raise UserError(
            f"--augment {level}: no condition of {model.path} was trained with noise",
            "leave --augment out; train with task.conditioners.0.augment to use it",
        )
    if level > most:
        raise UserError(
            f"--augment {level}: {model.path} was trained with noise up to a level of {most}",
            f"use --augment {most} or less",
        )


@contextmanager
def at_level(task: Task, level: float | None) -> Iterator[None]:
    """Context in which conditioners add noise of this level to their pictures; None: no noise."""
    found = augmenting(task)
    before = [each.level for each in found]
    for each in found:
        each.level = level or 0.0
    try:
        yield
    finally:
        for each, value in zip(found, before, strict=True):
            each.level = value
