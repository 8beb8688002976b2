"""The memory that a training needs, counted on the meta device: what it keeps from step to step, and what one step keeps.

The bytes of a step are those of the tensors that autograd keeps for the way back.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from diffcli.config import UserError
from diffcli.ema import averages
from diffcli.engine.run.phases import phases_of
from diffcli.engine.run.state import build_on_meta, unaveraged
from diffcli.engine.tuning import HALVES
from diffcli.fields import Specs, stub, whole
from diffcli.networks.lora import LoraConfig
from diffcli.noise import Domain, derive
from diffcli.optim import AdamW, AdamW8bit
from diffcli.preset import Preset, TrainConfig
from diffcli.tasks.diffusion_config import DiffusionConfig
from diffcli.tasks.task import Phase, Task

GIB = 2**30 / 4  # float32 values in one
RANK = 8  # of the low-rank changes that a plan speaks of


class StepBytes(NamedTuple):
    """Bytes that the way back of a step needs of an image, and of the weights."""

    an_image: int
    weights: int  # in half precision or folded, whatever the number of images


def needed(
    task: Task, phases: tuple[Phase, ...], cfg: TrainConfig, measured: StepBytes, images: int
) -> dict[str, float]:
    """Numbers of float32 that fill the memory of a training, by what they are for; images: of one forward, or clips."""
    of_step = {
        "copies of weights": measured.weights / 4,
        f"activations of {images} {task.unit}": measured.an_image * images / 4,
    }
    return values_kept(task, phases, cfg) | of_step


def otherwise(preset: Preset, specs: Specs | None, measured: StepBytes, images: int) -> Iterator[tuple[str, str]]:
    """(`key=value`, `1.5 GiB`) of each single change of a preset that would need more or less memory, built on meta.

    measured: of the preset as it is. What cannot be built is passed over.
    """
    for key, changed in _changes(preset):
        with suppress(UserError):
            task = build_on_meta(changed.model_copy(update={"task": changed.task.valueless()}), specs).train()
            phases = phases_of(task, changed.train)
            same = changed.task == preset.task and changed.train.lora == preset.train.lora
            found = measured if same else measure(task, changed, phases)
            yield key, f"{sum(needed(task, phases, changed.train, found, images).values()) / GIB:.2g} GiB"


def _changes(preset: Preset) -> Iterator[tuple[str, Preset]]:
    """What can be chosen otherwise, and the preset with it."""
    task, cfg = preset.task, preset.train
    network = getattr(task, "network", None)
    saving = getattr(network, "save_memory", None)
    if network is not None and saving is not None:
        other = network.model_copy(update={"save_memory": not saving})
        key = f"task.network.save_memory={'false' if saving else 'true'}"
        yield key, preset.model_copy(update={"task": task.model_copy(update={"network": other})})
    chosen = cfg.optimizer
    if isinstance(chosen, AdamW | AdamW8bit):
        kind = AdamW8bit if isinstance(chosen, AdamW) else AdamW
        made = kind(lr=chosen.lr, betas=chosen.betas, eps=chosen.eps, weight_decay=chosen.weight_decay)
        yield f"train.optimizer.kind={made.kind}", _trained(preset, optimizer=made)
    if cfg.lora is not None:
        yield "train.lora=null", _trained(preset, lora=None)
    elif preset.origin is not None and isinstance(task, DiffusionConfig) and not task.control:
        lora = LoraConfig(rank=RANK, targets=("all",))
        yield f"train.lora={{rank: {RANK}, targets: [all]}}", _trained(preset, lora=lora)


def _trained(preset: Preset, **changes: object) -> Preset:
    return preset.model_copy(update={"train": preset.train.model_copy(update=changes)})


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


def arithmetic(task: Task, preset: Preset, phases: tuple[Phase, ...]) -> int:
    """FLOP forward and backward of an image, of a task on the meta device: of all phases, each by how often it is due."""
    flops = 0.0
    for phase in phases:
        with task.only(phase.networks), FlopCounterMode(display=False) as counter:
            _loss(task, preset, phase, 1).backward()
        flops += counter.get_total_flops() / phase.every
    return round(flops)


def measure(task: Task, preset: Preset, phases: tuple[Phase, ...]) -> StepBytes:
    """What a step of a task on the meta device keeps: bytes of the phase that keeps most.

    A second image tells what each adds.
    """
    cast = CastOnMeta(HALVES.get(preset.train.precision))
    found = []
    for phase in phases:  # without the way back, on which layers that are computed again would be cast by no one
        kept = []
        for images in (1, 2):
            with task.only(phase.networks), kept_bytes(task.parameters()) as counted, cast:
                _loss(task, preset, phase, images)
            kept.append(counted)
        (one, copies), (two, _) = kept
        found.append((two - one, copies + max(0, 2 * one - two)))
    return StepBytes(*max(found))


def _loss(task: Task, preset: Preset, phase: Phase, images: int) -> torch.Tensor:
    """The loss of a phase on the meta device."""
    told = {**task.reads, **task.trains_on}
    known = preset.specs  # what reads pictures of any size is trained with those that the data have
    read = {name: spec if spec.fixed else known.get(name, spec) for name, spec in told.items()}
    batch = {
        **{name: stub(whole(spec, preset.data.shape[1:]), images, "meta") for name, spec in read.items()},
        "position": torch.arange(images),
        "stream": derive(0, Domain.TRAIN, torch.arange(images)),
    }
    loss: torch.Tensor = task(batch, phase.name, preset.train.steps)["loss"]
    return loss


class CastOnMeta(TorchFunctionMode):
    """Casts as autocast of CUDA does, which takes no notice of meta tensors; half: None does nothing."""

    def __init__(self, half: torch.dtype | None) -> None:
        super().__init__()
        self.wanted = {} if half is None else {**dict.fromkeys(IN_HALF, half), **dict.fromkeys(IN_FULL, torch.float32)}

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        wanted = self.wanted.get(func)
        kwargs = kwargs or {}
        if wanted is None:
            return func(*args, **kwargs)

        def cast(x: Any) -> Any:
            return x.to(wanted) if isinstance(x, torch.Tensor) and x.is_floating_point() else x

        return func(*map(cast, args), **{name: cast(value) for name, value in kwargs.items()})


IN_HALF = (
    *(torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
    *(functional.linear, functional.scaled_dot_product_attention),
    *(torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.mm, torch.bmm, torch.baddbmm, torch.addmm),
)
IN_FULL = (
    *(functional.group_norm, functional.layer_norm, functional.rms_norm, functional.softmax, functional.mse_loss),
    *(torch.group_norm, torch.layer_norm, torch.rms_norm, torch.softmax, torch.Tensor.softmax),
)


@contextmanager
def kept_bytes(parameters: Iterable[torch.Tensor]) -> Iterator[list[int]]:
    """Counts the bytes of distinct tensors that autograd keeps within it: [of all others, of copies of the parameters]."""
    total, seen = [0, 0], {p.untyped_storage()._cdata for p in parameters}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            total[1 if of_parameter(tensor) else 0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total


def of_parameter(tensor: torch.Tensor) -> bool:
    """Whether it is a copy of a parameter, for example in half precision, which is kept once and not for each image."""
    function = tensor.grad_fn
    while function is not None and len(function.next_functions) == 1:
        function = function.next_functions[0][0]
    return function is not None and function.name().endswith("AccumulateGrad")
