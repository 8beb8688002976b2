"""A commented preset that trains a model on with somebody's own pictures: `diffcli presets new NAME --data DIR --from CKPT`.

Its task is that of the model, for the classes of the pictures; its size is the model's. A model that is trained already needs
fewer steps, a smaller rate, so that it does not forget all at once, and an average that is not longer than the run.
"""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from diffcli.config import UserError
from diffcli.engine.model import Model
from diffcli.engine.run.new_preset import COLOUR, FEW, Findings, heading, mirrored, shown, write
from diffcli.engine.run.origin.source_reading import described
from diffcli.tasks.codecs.latent import LatentCodecConfig
from diffcli.tasks.conditioners.registry import AnyConditioner
from diffcli.tasks.diffusion_config import DiffusionConfig
from diffcli.tasks.starting_point import StartingPoint
from diffcli.tasks.task_config import TaskConfig

SLOWER = 0.3  # of the rate that the model was trained with
STEPS, MORE_STEPS = 300, 1000  # for fewer than 1000 pictures, and for more
BATCH = 16
EXPLICIT = ("kind", "target", "schedule")  # written even where they are the default


def write_continued(name: str, data: Path, start: Path, kind: str | None) -> tuple[Path, Findings]:
    """Writes NAME.yaml, a preset that trains a model on with the pictures in `data`; returns its path and what was found.

    Raises UserError as `continued` and `new_preset.write` do.
    """
    return write(name, data, lambda name, found: continued(name, found, start, kind))


def continued(name: str, found: Findings, start: Path, kind: str | None) -> tuple[str, Findings]:
    """The preset as commented YAML, and the pictures as the model takes them, with notes.

    kind: of task that was asked for, None: the model's. Raises UserError where there is no such model, or it takes no pictures.
    """
    model = described(StartingPoint(path=start))
    if kind not in (None, model.preset.task.kind):
        raise UserError(
            f"--task {kind}: {model.path} is {model.preset.task.noun}", "leave --task out: it is that of --from"
        )
    shape = model.trained_on.get(model.preset.task.models or "image")
    if shape is None or shape.kind != "image" or len(shape.sides) != 3:
        raise UserError(
            f"--from {start}: {model.path} is {model.preset.task.noun} that is not trained on pictures",
            "name a model that draws or reads pictures",
        )
    notes = list(found.notes)
    channels, height, width = shape.sides
    if found.shape[0] != channels:
        notes.append(f"the model takes {'grey' if channels == 1 else 'colour'} pictures: yours are turned into such")
    told = [line for line in found.lines if not line.startswith("pixels:")]
    told.append(f"from:     {model.path}, which takes images of {height}x{width} (HxW)")
    found = found._replace(shape=(channels, height, width), lines=tuple(told))
    task, more = fitted(model.preset.task, found)
    found = found._replace(notes=(*notes, *more))
    use = f"diffcli sample runs/{name}" if isinstance(task, DiffusionConfig) else f"diffcli info runs/{name}"
    lines = heading(name, found, use, mirrored(found)).splitlines()
    if channels != COLOUR:
        lines.insert(lines.index(f"  channels: {channels}  # 3: colour, 1: grey") + 1, "  grey: true")
    place = next(i for i, line in enumerate(lines) if line.startswith("data:"))
    lines.insert(
        place, f"from: {_yaml(str(start))}  # step {model.step:,}; its weights are read once, when the run begins"
    )
    body = [*lines, *_section("task", written(task)), *training(model, found, name)]
    if isinstance(task, DiffusionConfig):
        body += _section("sampler", written(model.preset.sampler))
        body.append(f"guidance: {model.preset.guidance if task.guided else 1.0:g}")
    return "\n".join(body) + "\n", found


def fitted(task: TaskConfig, found: Findings) -> tuple[TaskConfig, list[str]]:
    """The model's task for the classes of these pictures, and what a person should know of it."""
    if not isinstance(task, DiffusionConfig):
        classes = found.classes
        if task.kind == "classifier" and classes:
            return task.model_copy(update={"num_classes": len(classes)}), []
        return task, []
    notes: list[str] = []
    conditioners: list[AnyConditioner] = []
    for each in task.conditioners:
        if each.kind == "class" and not found.classes:
            notes.append("the pictures have no classes, which the model knows: it is trained on without that condition")
            continue
        conditioners.append(_for_classes(each, found))
    if found.classes and not any(c.kind == "class" for c in conditioners):
        notes.append(f"the model knows no classes, so that the {len(found.classes)} of the pictures are not told to it")
    if any(c.kind in ("text", "pretrained") for c in conditioners) and found.longest is None:
        notes.append(
            "the model reads texts, and the pictures have none: write one into NAME.txt beside each NAME.jpg before you train"
        )
    changed: dict[str, Any] = {"conditioners": tuple(conditioners)}
    if isinstance(task.codec, LatentCodecConfig):  # that of the model
        changed["codec"] = task.codec.model_copy(update={"source": None, "first_stage": None})
    if not any(c.droppable for c in conditioners):
        changed["drop_condition"] = 0.0
    return task.model_copy(update=changed), notes


def _for_classes(conditioner: AnyConditioner, found: Findings) -> AnyConditioner:
    if conditioner.kind != "class":
        return conditioner
    return conditioner.model_copy(update={"num_classes": len(found.classes or ())})


def training(model: Model, found: Findings, name: str) -> list[str]:
    """The section `train` of a continuation."""
    train = model.preset.train
    optimizer = train.optimizer.model_copy(update={"lr": float(f"{train.optimizer.lr * SLOWER:.2g}")})
    steps = STEPS if found.number < FEW else MORE_STEPS
    options = yaml.safe_dump({"optimizer": written(optimizer)}, default_flow_style=None, width=10**6, sort_keys=False)
    return [
        "train:",
        f"  steps: {steps}  # few, so that it learns the new without losing the old; more: diffcli resume RUN --steps N",
        f"  batch_size: {min(BATCH, train.batch_size, max(1, found.number))}  # images in a step",
        *(f"  {line}" for line in options.splitlines()),
        f"  # lr is {SLOWER:g} of the model's own; single parts: lr_scale: {{network.up: 0.5}}, freeze: [network.down]",
        "  # small changes alone (LoRA), in checkpoints of a few MB: lora: {rank: 8, targets: [all]}, and ten times this lr",
        "  curve: {kind: cosine, warmup: 20, floor: 0.1}  # the rate rises for 20 steps, then falls to a tenth",
        "  ema: 0.99  # an average of the last 100 steps or so",
        f"  every: {{log: 20, preview: 100, save: 100}}  # steps; {shown(('previews are in runs/' + name + '/previews',))}",
    ]


def written(config: BaseModel) -> dict[str, Any]:
    """A config as a person would write it: without what is as it is by default, but for what a model is defined by."""
    found: dict[str, Any] = {}
    for name, field in sorted(type(config).model_fields.items(), key=lambda item: item[0] != "kind"):
        value = getattr(config, name)
        if name in EXPLICIT or value != field.get_default(call_default_factory=True):
            found[field.alias or name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return written(value)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return str(value) if isinstance(value, Path) else value


def _section(key: str, tree: dict[str, Any]) -> list[str]:
    return yaml.safe_dump({key: tree}, default_flow_style=None, width=110, sort_keys=False).splitlines()


def _yaml(text: str) -> str:
    return yaml.safe_dump(text, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
