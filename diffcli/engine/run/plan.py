"""The plan of a run for `train --dry-run`: parameters, memory, arithmetic, epochs and paths."""

from collections.abc import Iterator
from pathlib import Path

import torch

from diffcli.config import UserError
from diffcli.data.images import ImageData
from diffcli.data.order import epoch_size
from diffcli.data.stream.stream_data import StreamData
from diffcli.engine import control_reading
from diffcli.engine.data_records import check_colours, described
from diffcli.engine.draw.guides import check_named
from diffcli.engine.run.origin.starting import planned
from diffcli.engine.run.personal import class_pictures
from diffcli.engine.run.phases import phases_of
from diffcli.engine.run.roles.needed_memory import arithmetic, measure, memory, needed, otherwise
from diffcli.engine.run.roles.parameter_roles import parts
from diffcli.engine.run.state import build_on_meta
from diffcli.engine.stage_reading import check_planned
from diffcli.preset import Preset
from diffcli.tasks.conditioners.pretrained import PretrainedConditioner
from diffcli.tasks.task import Phase, Task


def plan(preset: Preset, run: Path, world: int) -> dict[str, str]:
    """Facts about a resolved preset, by name; estimates are for one process. Builds the task on the meta device."""
    cfg = preset.train
    check_named(preset.drawing.named)
    control_reading.check_planned(preset)
    class_pictures.check_preserving(preset)
    data, lacking = _data(preset)
    specs = None if data is None else data.specs
    task = build_on_meta(preset.model_copy(update={"task": preset.task.valueless()}), specs).train()
    if data is not None:
        task.check(data.specs)
        check_colours(preset.data, task, data)
        check_planned(preset, task, data)
        check_first(task, data)
    taken, warned = planned(preset, task, None if data is None else data.classes)
    frozen = running(task)
    parameters = sum(p.numel() for p in task.parameters())
    phases = phases_of(task, cfg)
    learned = sum(p.numel() for p in task.parameters() if p.requires_grad)
    local = max(1, cfg.batch_size // (world * cfg.accumulate))
    flops, measured = arithmetic(task, preset, phases), measure(task, preset, phases)
    facts = {
        "parameters": f"{parameters:,}",
        **({"trained": f"{learned:,} of them"} if learned < parameters else {}),
        "networks": "; ".join(roles(task, phases)),
        "flops": f"{flops / 1e9:.3g} GFLOP forward and backward an image, "
        f"{flops * cfg.batch_size / 1e12:.3g} TFLOP a step",
        "parts": "; ".join(part_sizes(task)),
        "memory": memory(needed(task, phases, cfg, measured, local)),
    }
    if choices := list(otherwise(preset, specs, measured, local)):
        facts["memory otherwise"] = ", ".join(f"{key} {total}" for key, total in choices)
    if frozen:
        facts["encoder"] = (
            f"{', '.join(frozen)}: runs in every step, is not counted above; with cached: true the conditioner reads what "
            "`prep-data shards --embed` stored of the captions"
        )
    facts |= {**taken, **class_pictures.planned(preset)}
    facts |= {"images": f"unknown: {lacking}"} if data is None else amounts(data, cfg.batch_size, cfg.steps)
    if data is not None:
        holds = described(preset.data, data)
        facts |= holds.facts
        if advice := [*holds.remarks, *task.advice(data.specs), *warned]:
            facts["note"] = "; ".join(advice)
    return facts | {
        "run directory": str(run),
        "log": f"{run}/log.jsonl, {run}/tensorboard/",
        "previews": f"{run}/previews/step-{cfg.every.preview:08d}.png ..." if cfg.every.preview else "never",
        "checkpoints": f"{run}/checkpoints/step-{cfg.every.save or cfg.steps:08d} ..., the last {cfg.keep_last} kept",
    }


def part_sizes(task: Task) -> Iterator[str]:
    """The modules that `train.freeze` and `train.lr_scale` may name, with their parameters and those that are frozen."""
    sizes: dict[str, tuple[int, int]] = {}
    for name, p in task.named_parameters():
        (part,) = parts([name])
        whole, frozen = sizes.get(part, (0, 0))
        sizes[part] = whole + p.numel(), frozen + (0 if p.requires_grad else p.numel())
    for part, (whole, frozen) in sizes.items():
        yield f"{part} {whole:,}" + (" (frozen)" if frozen == whole else f" ({frozen:,} frozen)" if frozen else "")


def amounts(data: ImageData, batch_size: int, steps: int) -> dict[str, str]:
    """The amount of training data, and how often the run sees it."""
    facts = {"shards": f"{len(data.urls):,}"} if isinstance(data, StreamData) else {}
    try:
        images = data.count if isinstance(data, StreamData) and data.count else len(data)
    except UserError as error:  # a stream that nothing tells the size of
        return facts | {"images": f"unknown: {error.problem}"}
    epoch = images if isinstance(data, StreamData) else epoch_size(data, batch_size)
    every = f"{epoch / batch_size:.4g} steps an epoch, {steps * batch_size / epoch:.4g} epochs in all"
    return facts | {"images": f"{images:,}", "epochs": every}


def _data(preset: Preset) -> tuple[ImageData | None, str]:
    """The training data, without decoding; if none are there, the reason. Raises UserError for what is there and is refused."""
    try:
        return preset.data.model_copy(update={"in_memory": False}).build("train"), ""
    except UserError as error:
        if any(path.exists() for path in preset.data.paths):
            raise
        return None, error.problem


def check_first(task: Task, data: ImageData) -> None:
    """Raises UserError where not even the first sample can be read, of data that are read by random access."""
    if not isinstance(data, StreamData):
        data.select(task.reads).knowing(task.reads).read(torch.zeros(1, dtype=torch.int64))


def roles(task: Task, phases: tuple[Phase, ...]) -> Iterator[str]:
    """Each network that has weights: name, number of parameters, and role in the run."""
    trained = {name: phase.name for phase in phases for name in phase.networks}
    for network in task.networks:
        count = sum(p.numel() for p in network.module.parameters())
        if count:
            fixed = sum(p.numel() for p in network.module.parameters() if not p.requires_grad)
            by = f"trained by {trained[network.name]}" if network.name in trained else "frozen"
            by += f" but for {fixed:,}" if fixed and network.name in trained else ""
            averaged = ", not averaged" if network.name in trained and network.samples and not network.averaged else ""
            yield f"{network.name} {count:,} ({by}{averaged}{'' if network.samples else ', not sampled from'})"


def running(task: Task) -> list[str]:
    """The models of the frozen encoders that run in every step, which are not loaded to plan."""
    return [m.encoder.config.model for m in task.modules() if isinstance(m, PretrainedConditioner) and m.in_steps]
