"""The models that `guide` names: loading them, and checking that they fit the model that draws."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffcli import checkpoint
from diffcli.config import UserError
from diffcli.engine.model import Model, load_model, resized
from diffcli.fields import listed
from diffcli.preset import AnyTask
from diffcli.tasks.classifier import ClassifierConfig, ClassifierTask
from diffcli.tasks.codecs.latent import LatentCodecConfig
from diffcli.tasks.diffusion import DiffusionTask
from diffcli.tasks.diffusion_config import DiffusionConfig
from diffcli.tasks.guide import Guide, Guiding


def check_named(named: Mapping[str, Path]) -> None:
    """Raises UserError if a checkpoint that a key of a preset names is missing or damaged; loads no weights."""
    for key, path in named.items():
        try:
            checkpoint.read_record(checkpoint.locate(path.expanduser()))
        except UserError as error:
            raise UserError(
                f"{key}: {error.problem}", f"name a run or checkpoint that is there, or leave {key} out"
            ) from None


def load_guides(guide: Guide, model: Model, overrides: Sequence[str] = ()) -> dict[str, Model]:
    """The checkpoints of `guide` by key, on the model's device. Raises UserError where one cannot guide the model.

    overrides: see `load_model`; a weaker model has the conditions of the model, so encoders that moved have moved for both. It
    draws images of the model's size, whatever its own is.
    """
    check_named({f"guide.{key}": path for key, path in guide.models.items()})
    checks: dict[str, Callable[[Model, Model], None]] = {"weaker": check_weaker, "classifier": check_classifier}
    found = {}
    for key, path in guide.models.items():
        moved = overrides if key == "weaker" else ()
        loaded = load_model(path, model.device, overrides=moved, precision=model.precision)
        if key == "weaker" and isinstance(loaded.task, DiffusionTask):
            loaded = resized(loaded, model.size)
        checks[key](loaded, model)
        found[key] = loaded
    return found


def guiding(guide: Guide, models: Mapping[str, Model]) -> Guiding:
    """The guide of the task: the settings and the modules."""
    weaker, classifier = (models[key].task if key in models else None for key in ("weaker", "classifier"))
    assert weaker is None or isinstance(weaker, DiffusionTask)
    assert classifier is None or isinstance(classifier, ClassifierTask)
    return Guiding(guide, weaker, classifier)


def describe(guide: Guide, models: Mapping[str, Model]) -> dict[str, Any]:
    """The entry of the sidecar: settings, and the record of each model."""
    return guide.model_dump(mode="json", exclude_none=True) | {key: m.describe() for key, m in models.items()}


def check_weaker(weaker: Model, model: Model) -> None:
    """Raises UserError if two models differ in more than network and training."""
    hint = "name a weaker model of the same data and schedule, for example an early checkpoint of the same run"
    if not isinstance(weaker.preset.task, DiffusionConfig):
        raise UserError(f"guide.weaker {weaker.path}: was trained as {weaker.preset.task.noun}", hint)
    pairs = {
        "images of": (_shape(m) for m in (weaker, model)),
        "the schedule": (_task(m).schedule.kind for m in (weaker, model)),
        "schedule keys": (_task(m).schedule for m in (weaker, model)),
        "the codec": (_task(m).codec for m in (weaker, model)),
        "the classes": (class_count(_task(m)) for m in (weaker, model)),
        "the conditions": (
            ", ".join(sorted(m.task.reads.keys() - {m.preset.task.models})) or "none" for m in (weaker, model)
        ),
    }
    for what, (one, other) in pairs.items():
        if one != other:
            raise UserError(f"guide.weaker {weaker.path}: has {what} {one}, but {model.path} has {other}", hint)
    check_class_names("guide.weaker", weaker, model, hint)


def check_classifier(classifier: Model, model: Model) -> None:
    """Raises UserError if a classifier was trained on clean images, or on other images or classes than the model."""
    task = classifier.preset.task
    hint = "train one: diffcli train --preset digits-noisy-classifier, with the data of the model"
    if not isinstance(task, ClassifierConfig):
        raise UserError(f"guide.classifier {classifier.path}: was trained as {task.noun}", hint)
    if task.schedule is None:
        raise UserError(f"guide.classifier {classifier.path}: was trained on clean images, not on noisy ones", hint)
    if isinstance(_task(model).codec, LatentCodecConfig):
        raise UserError(
            f"guide.classifier {classifier.path}: judges noisy images, but {model.path} diffuses latents",
            "leave guide.classifier out, and use --guidance",
        )
    shapes = [_shape(m) for m in (classifier, model)]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"guide.classifier {classifier.path}: has images of {shapes[0]}, {model.path} of {shapes[1]}", hint
        )
    count = class_count(_task(model))
    if count not in (None, task.num_classes):
        raise UserError(
            f"guide.classifier {classifier.path}: knows {task.num_classes} classes, {model.path} has {count}", hint
        )
    check_class_names("guide.classifier", classifier, model, hint)


def check_class_names(key: str, other: Model, model: Model, hint: str) -> None:
    """Raises UserError where a class of one number has two names: it would guide to another class than is asked for."""
    if other.classes is None or model.classes is None or class_count(model.preset.task) is None:
        return
    for number, names in enumerate(zip(other.classes, model.classes, strict=False)):
        if names[0] != names[1]:
            problem = (
                f"{key} {other.path}: its class {number} is '{names[0]}', but that of {model.path} is '{names[1]}'"
            )
            raise UserError(problem, hint)


def class_count(task: AnyTask) -> int | None:
    """The number of classes that a model is conditioned on or predicts; None if it has none."""
    if isinstance(task, ClassifierConfig):
        return task.num_classes
    conditioners = task.conditioners if isinstance(task, DiffusionConfig) else ()
    return next((c.num_classes for c in conditioners if c.kind == "class"), None)


def _shape(model: Model) -> str:
    """The shape of the images that a model draws or classifies."""
    field = model.preset.task.models
    assert field is not None
    return listed(model.task.reads[field].shape)


def _task(model: Model) -> DiffusionConfig:
    assert isinstance(model.preset.task, DiffusionConfig)
    return model.preset.task
