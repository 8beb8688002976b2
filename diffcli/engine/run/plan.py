"""The plan of a run for `train --dry-run`: parameters, memory, arithmetic, epochs and paths."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffcli.config import UserError
from diffcli.data.images import ImageData
from diffcli.data.order import epoch_size
from diffcli.data.stream.stream_data import StreamData
from diffcli.ema import averages
from diffcli.engine import control_reading
from diffcli.engine.data_records import check_colours, described
from diffcli.engine.draw.guides import check_named
from diffcli.engine.run.origin.starting import planned
from diffcli.engine.run.personal import class_pictures
from diffcli.engine.run.phases import phases_of
from diffcli.engine.run.roles.parameter_roles import parts
from diffcli.engine.run.state import build_on_meta, unaveraged
from diffcli.engine.stage_reading import check_planned
from diffcli.engine.tuning import autocast
from diffcli.fields import stub, whole
from diffcli.noise import Domain, derive
from diffcli.preset import Preset, TrainConfig
from diffcli.tasks.conditioners.pretrained import PretrainedConditioner
from diffcli.tasks.task import Phase, Task

GIB = 2**30 / 4  # float32 values in one


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
    taken, warned = planned(preset, task, None if data is None else data.classes)
    frozen = running(task)
    parameters = sum(p.numel() for p in task.parameters())
    phases = phases_of(task, cfg)
    local = max(1, cfg.batch_size // (world * cfg.accumulate))
    flops, kept = measure(task, preset, phases)
    facts = {
        "parameters": f"{parameters:,}",
        "networks": "; ".join(roles(task, phases)),
        "flops": f"{flops / 1e9:.3g} GFLOP forward and backward an image, {flops * cfg.batch_size / 1e12:.3g} TFLOP a step",
        "parts": "; ".join(part_sizes(task)),
        "memory": memory(values_kept(task, phases, cfg) | {f"activations of {local} images": kept * local / 4}),
    }
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


def values_kept(task: Task, phases: tuple[Phase, ...], cfg: TrainConfig) -> dict[str, float]:
    """Numbers of float32 that a training keeps from step to step, by what they are for."""
    trained = [p for phase in phases for p in task.trained_in(phase.networks)]
    apart = {id(p) for p in task.parameters_of(unaveraged(task))}
    hidden, moments = task.hidden(), 0
    for phase in phases:
        assert phase.optimizer is not None
        moments += phase.optimizer.remembered(task.trained_in(phase.networks), hidden)
    learned = sum(p.numel() for p in trained)
    return {
        "trained weights": learned,
        "frozen weights": sum(p.numel() for p in task.parameters()) - learned,
        "gradients": learned,
        "optimizer": moments / 4,
        "averages": len(averages(cfg.ema)) * sum(p.numel() for p in trained if id(p) not in apart),
    }


def memory(values: Mapping[str, float]) -> str:
    """Numbers of float32 in GiB, all of them and each that is not 0: `about 1.5 GiB a process: gradients 0.5, ...`."""
    each = ", ".join(f"{name} {count / GIB:.2g}" for name, count in values.items() if count)
    return f"about {sum(values.values()) / GIB:.2g} GiB a process: {each}"


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
    """The training data, without decoding; if there are none, the reason."""
    try:
        return preset.data.model_copy(update={"in_memory": False}).build("train"), ""
    except UserError as error:
        return None, error.problem


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


def measure(task: Task, preset: Preset, phases: tuple[Phase, ...]) -> tuple[int, int]:
    """(FLOP forward and backward, bytes kept for the backward pass) of one image, counted on meta tensors.

    FLOP of all phases, each by how often it is due; bytes of the phase that keeps most. What of frozen weights is kept in half
    precision is none of an image: where there are any, the bytes are those that a second image adds.
    """
    flops, most = _kept(task, preset, phases, 1)
    if all(p.requires_grad for p in task.parameters()):
        return flops, most
    return flops, _kept(task, preset, phases, 2)[1] - most


def _kept(task: Task, preset: Preset, phases: tuple[Phase, ...], images: int) -> tuple[int, int]:
    """What `measure` tells of a batch of so many images."""
    told = {**task.reads, **task.trains_on}
    known = preset.specs  # what reads pictures of any size is trained with those that the data have
    read = {name: spec if spec.fixed else known.get(name, spec) for name, spec in told.items()}
    batch = {
        **{name: stub(whole(spec, preset.data.shape[1:]), images, "meta") for name, spec in read.items()},
        "position": torch.arange(images),
        "stream": derive(0, Domain.TRAIN, torch.arange(images)),
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
    return [m.encoder.config.model for m in task.modules() if isinstance(m, PretrainedConditioner) and m.in_steps]


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
    """Whether it is a parameter or a copy of one, for example in half precision, which is kept once and not for each image."""
    function = tensor.grad_fn
    while function is not None and len(function.next_functions) == 1:
        function = function.next_functions[0][0]
    made = function is not None and function.name().endswith("AccumulateGrad")
    return made or (tensor.is_leaf and tensor.requires_grad)
