"""What a run would do, without doing it: parameters, memory, arithmetic, epochs and paths, for `train --dry-run`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffcli.config import UserError
from diffcli.data.images import ImageData
from diffcli.data.order import epoch_size
from diffcli.data.stream.stream_data import StreamData
from diffcli.ema import averages
from diffcli.engine.data_records import check_colours, described
from diffcli.engine.draw.guides import check_named
from diffcli.engine.run.phases import phases_of
from diffcli.engine.run.state import build_on_meta, unaveraged
from diffcli.engine.stage_reading import check_planned
from diffcli.engine.tuning import autocast
from diffcli.fields import stub, whole
from diffcli.noise import Domain, derive
from diffcli.preset import Preset
from diffcli.tasks.conditioners.pretrained import PretrainedConditioner
from diffcli.tasks.task import Phase, Task

COPIES = 4  # float32 values a trained parameter, beside its averages: itself, its gradient, two moments of Adam


def plan(preset: Preset, run: Path, world: int) -> dict[str, str]:
    """Facts about a resolved preset, by name; estimates are for one process. Builds the task on the meta device."""
    cfg = preset.train
    check_named(preset.drawing.named)
    data, lacking = _data(preset)
    specs = None if data is None else data.specs
    task = build_on_meta(preset.model_copy(update={"task": preset.task.valueless()}), specs).train()
    if data is not None:
        task.check(data.specs)
        check_colours(preset.data, task, data)
        check_planned(preset, task, data)
    frozen = running(task)
    parameters = sum(p.numel() for p in task.parameters())
    phases = phases_of(task, cfg)
    trained = sum(p.numel() for phase in phases for p in task.parameters_of(phase.networks))
    averaged = trained - sum(p.numel() for p in task.parameters_of(unaveraged(task)) if p.requires_grad)
    local = max(1, cfg.batch_size // (world * cfg.accumulate))
    flops, kept = measure(task, preset, phases)
    values = parameters + (COPIES - 1) * trained + len(averages(cfg.ema)) * averaged
    state, activations = values * 4, kept * local
    facts = {
        "parameters": f"{parameters:,}",
        "networks": "; ".join(roles(task, phases)),
        "flops": f"{flops / 1e9:.3g} GFLOP forward and backward an image, {flops * cfg.batch_size / 1e12:.3g} TFLOP a step",
        "memory": f"about {(state + activations) / 2**30:.2g} GiB a process: weights, gradients, moments and averages "
        f"{state / 2**30:.2g}, activations of {local} images {activations / 2**30:.2g}",
    }
    if frozen:
        facts["encoder"] = f"{', '.join(frozen)}: runs in every step, is not counted above"
    facts |= {"images": f"unknown: {lacking}"} if data is None else amounts(data, cfg.batch_size, cfg.steps)
    if data is not None:
        holds = described(preset.data, data)
        facts |= holds.facts
        if advice := [*holds.remarks, *task.advice(data.specs)]:
            facts["note"] = "; ".join(advice)
    return facts | {
        "run directory": str(run),
        "log": f"{run}/log.jsonl, {run}/tensorboard/",
        "previews": f"{run}/previews/step-{cfg.every.preview:08d}.png ..." if cfg.every.preview else "never",
        "checkpoints": f"{run}/checkpoints/step-{cfg.every.save or cfg.steps:08d} ..., the last {cfg.keep_last} kept",
    }


def amounts(data: ImageData, batch_size: int, steps: int) -> dict[str, str]:
    """What there is to train on, and how often the run sees it."""
    facts = {"shards": f"{len(data.urls):,}"} if isinstance(data, StreamData) else {}
    try:
        images = data.count if isinstance(data, StreamData) and data.count else len(data)
    except UserError as error:  # a stream that nothing tells the size of
        return facts | {"images": f"unknown: {error.problem}"}
    epoch = images if isinstance(data, StreamData) else epoch_size(data, batch_size)
    every = f"{epoch / batch_size:.4g} steps an epoch, {steps * batch_size / epoch:.4g} epochs in all"
    return facts | {"images": f"{images:,}", "epochs": every}


def _data(preset: Preset) -> tuple[ImageData | None, str]:
    """The training data, to be counted and not decoded, and where there are none, why not."""
    try:
        return preset.data.model_copy(update={"in_memory": False}).build("train"), ""
    except UserError as error:
        return None, error.problem


def roles(task: Task, phases: tuple[Phase, ...]) -> Iterator[str]:
    """Each network that has weights: its name, their number, and what a run does with it."""
    trained = {name: phase.name for phase in phases for name in phase.networks}
    for network in task.networks:
        count = sum(p.numel() for p in network.module.parameters())
        if count:
            by = f"trained by {trained[network.name]}" if network.name in trained else "frozen"
            averaged = ", not averaged" if network.name in trained and network.samples and not network.averaged else ""
            yield f"{network.name} {count:,} ({by}{averaged}{'' if network.samples else ', not sampled from'})"


def measure(task: Task, preset: Preset, phases: tuple[Phase, ...]) -> tuple[int, int]:
    """(FLOP forward and backward, bytes kept for the backward pass) of one image, counted on meta tensors.

    FLOP of all phases, each by how often it is due; bytes of the phase that keeps most.
    """
    told = preset.specs  # what reads pictures of any size is trained with those that the data have
    read = {name: spec if spec.fixed else told.get(name, spec) for name, spec in task.reads.items()}
    batch = {
        **{name: stub(whole(spec, preset.data.shape[1:]), 1, "meta") for name, spec in read.items()},
        "position": torch.zeros(1, dtype=torch.int64),
        "stream": derive(0, Domain.TRAIN, torch.zeros(1, dtype=torch.int64)),
    }
    flops, most = 0.0, 0
    for phase in phases:
        with (
            task.only(phase.networks),
            FlopCounterMode(display=False) as counter,
            kept_bytes() as kept,
            autocast(torch.device("cpu"), preset.train.precision),
        ):
            task(batch, phase.name, preset.train.steps)["loss"].backward()
        flops, most = flops + counter.get_total_flops() / phase.every, max(most, kept[0])
    return round(flops), most


def running(task: Task) -> list[str]:
    """The models of the frozen encoders that run in every step, which are not loaded to plan."""
    return [m.encoder.config.model for m in task.modules() if isinstance(m, PretrainedConditioner)]


@contextmanager
def kept_bytes() -> Iterator[list[int]]:
    """Counts the bytes of distinct tensors that autograd keeps within it, in a list of one number; parameters apart."""
    total, seen = [0], set()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if not of_parameter(tensor) and storage._cdata not in seen:
            seen.add(storage._cdata)
            total[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total


def of_parameter(tensor: torch.Tensor) -> bool:
    """Whether it is a parameter or made of one alone, as a copy in half precision: kept once, and not for each image."""
    function = tensor.grad_fn
    while function is not None and len(function.next_functions) == 1:
        function = function.next_functions[0][0]
    made = function is not None and function.name().endswith("AccumulateGrad")
    return made or (tensor.is_leaf and tensor.requires_grad)
