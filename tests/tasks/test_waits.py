"""Inside a step and an evaluation nothing waits for the device: counted on the meta device, and on a GPU told by CUDA itself."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from diffcli.diffusion.likelihood import bits_per_dim
from diffcli.diffusion.samplers import (
    Ab4,
    Ddim,
    Ddpm,
    DpmPlusPlus2M,
    DpmPlusPlus2MSde,
    DpmPlusPlus3M,
    EdmHeun,
    Heun,
    Ode,
    Plms,
    Sampler,
    UniPc,
    last,
)
from diffcli.diffusion.schedule import Cosine, DiscreteSchedule
from diffcli.fields import FieldSpec
from diffcli.networks.convnet import ConvNetConfig
from diffcli.noise import Noise
from diffcli.tasks.classifier import ClassifierConfig, ClassifierTask
from diffcli.tasks.diffusion import DiffusionTask
from diffcli.tasks.diffusion_config import DiffusionConfig
from diffcli.tasks.guide import Guide, Guiding
from tests.counting import META, count
from tests.diffusion.oracle import kind
from tests.ranks import Alone

SHAPE, N = (1, 8, 8), 4
SPECS = {"image": FieldSpec("image", SHAPE)}
UNET = {
    "kind": "unet",
    "width": 8,
    "mult": [1],
    "blocks": ["res"],
    "attend_at": [],
    "middle": ["attention"],
    "head_dim": 8,
}
DIT = {"kind": "dit", "patch": 2, "width": 16, "depth": 2, "heads": 2}
LITTLE = DIT | {"depth": 1}  # where the sampler is what is looked at
CLASSES = {"kind": "class", "num_classes": 10, "dim": 8}
TEXT = {"kind": "text", "width": 16, "depth": 1, "heads": 2, "length": 16, "gives": "vector"}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "eps": {"target": "eps"},
    "x0": {"target": "x0", "weight": {"kind": "min_snr"}},
    "v, log-normal": {"target": "v", "times": {"kind": "log_normal_sigma"}, "schedule": {"kind": "edm"}},
    "flow, logit-normal": {"target": "flow", "times": {"kind": "logit_normal"}, "schedule": {"kind": "flow"}},
    "shifted": {"target": "flow", "times": {"kind": "shifted", "stratified": True}, "schedule": {"kind": "flow"}},
    "stratified, huber": {"times": {"kind": "stratified"}, "distance": {"kind": "huber"}},
    "learned variance": {"learn_variance": True},
    "loss-aware": {"learn_variance": True, "times": {"kind": "loss_aware"}},
    "dropout": {"network": UNET | {"dropout": 0.1}},
    "transformer": {"network": DIT | {"dropout": 0.1}},
    "text": {"conditioners": [TEXT]},
}
SAMPLERS: tuple[Sampler, ...] = (
    Ddim(steps=5),
    Ddim(steps=5, eta=0.5),
    Ddpm(steps=5),
    Ddpm(steps=5, variance="large"),
    Heun(steps=5),
    EdmHeun(steps=5, s_churn=4),
    Plms(steps=5),
    Ab4(steps=5),
    DpmPlusPlus2M(steps=5),
    DpmPlusPlus2MSde(steps=5),
    DpmPlusPlus3M(steps=5),
    UniPc(steps=5),
)


def built(device: torch.device, **keys: Any) -> DiffusionTask:
    config = DiffusionConfig.model_validate({"network": UNET, "conditioners": [CLASSES], "drop_condition": 0.1} | keys)
    with device:
        return config.build(SPECS)


def classifier(device: torch.device) -> ClassifierTask:
    with device:
        return ClassifierConfig(num_classes=10, network=ConvNetConfig(width=8), schedule=Cosine()).build(SPECS)


def batch(device: torch.device) -> dict[str, Any]:
    """As the loader gives it: fields on the device, what the step follows from on the CPU."""
    fields = {"image": torch.zeros(N, *SHAPE, device=device), "label": torch.zeros(N, dtype=torch.int64, device=device)}
    return fields | {"text": ["a", "b", "b", ""], "position": torch.arange(N), "stream": torch.arange(N)}


def condition(device: torch.device) -> dict[str, Any]:
    return {"label": torch.zeros(N, dtype=torch.int64, device=device)}


def step(task: DiffusionTask, fields: dict[str, Any]) -> Tensor:
    """A training step without the optimizer."""
    terms = task(fields, "main")
    terms["loss"].backward()
    task.after_update(Alone())
    return terms["loss"].detach()


@pytest.mark.parametrize("keys", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_a_training_step_neither_copies_in_the_way_nor_reads(keys: dict[str, Any]) -> None:
    task, fields = built(META, **keys).train(), batch(META)
    counts = count(lambda: step(task, fields))
    assert not counts.blocking
    assert not counts.reads
    assert len(counts.copies) <= 8


def test_optimal_transport_reads_its_distances_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no meta device
    task, fields = built(META, coupling="optimal_transport").train(), batch(META)
    counts = count(lambda: step(task, fields))
    assert (counts.blocking, len(counts.reads)) == ([], 1)


@pytest.mark.parametrize(
    ("sampler", "scale"),
    [*((sampler, 1.0) for sampler in SAMPLERS), (Ddim(steps=5), 3.0), (Heun(steps=5), 3.0)],
    ids=kind,
)
@torch.no_grad()
def test_five_steps_of_sampling_neither_copy_in_the_way_nor_read(sampler: Sampler, scale: float) -> None:
    """More than any sampler looks back; of each step nothing is copied, or there would be more copies than these."""
    task, fields = built(META, network=UNET if scale > 1 else LITTLE).eval(), condition(META)
    counts = count(lambda: last(task.trajectory(fields, range(N), sampler, scale)))
    assert not counts.blocking
    assert not counts.reads
    assert len(counts.copies) <= 3, "seeds of images and of conditions, and which rows are of which branch"


GUIDES: dict[str, dict[str, Any]] = {
    "interval": {"interval": (0.3, 3.0)},
    "rescale": {"rescale": 0.7},
    "threshold": {"threshold": 0.9},
    "classifier": {"classifier": "nowhere", "classifier_scale": 2.0},
    "weaker": {"weaker": "nowhere"},
}


@pytest.mark.parametrize("keys", GUIDES.values(), ids=GUIDES.keys())
@torch.no_grad()
def test_no_way_of_guiding_waits(keys: dict[str, Any]) -> None:
    task, fields, guide = built(META).eval(), condition(META), Guide.model_validate(keys)
    guiding = Guiding(
        guide, built(META).eval() if guide.weaker else None, classifier(META) if guide.classifier else None
    )
    schedule, sampler = task.denoiser.schedule, Ddim(steps=5)

    def work() -> None:
        x, noise = task.start(range(N))
        last(sampler.trajectory(task.denoise(fields, 3.0, N, guiding), schedule, x, noise))

    counts = count(work)
    assert not counts.blocking
    assert not counts.reads


@torch.no_grad()
def test_learned_variance_and_the_bound_do_not_wait() -> None:
    task, fields = built(META, learn_variance=True, schedule={"kind": "cosine", "steps": 4}).eval(), batch(META)
    sampling = count(lambda: last(task.trajectory(condition(META), range(N), Ddpm(steps=4), 1.0)))
    assert not sampling.blocking
    assert not sampling.reads
    schedule = task.denoiser.schedule
    assert isinstance(schedule, DiscreteSchedule)
    denoise, noise = task.branch(condition(META), N), Noise(range(N), META)
    bound = count(lambda: list(bits_per_dim(denoise, schedule, fields["image"], noise, "learned")))
    assert not bound.blocking
    assert not bound.reads


@torch.no_grad()
def test_the_adaptive_sampler_reads_once_a_step() -> None:
    """Its step control is arithmetic of the host; a step is six evaluations."""
    task, fields = built(META, network=LITTLE).eval(), condition(META)
    ends = []
    counts = count(lambda: ends.append(last(task.trajectory(fields, range(N), Ode(steps=2), 1.0))))
    (end,) = ends
    assert end.evaluations is not None
    assert not counts.blocking
    assert len(counts.reads) == int(end.evaluations.max()) // 6


def test_a_noise_aware_classifier_trains_without_waiting() -> None:
    task, fields = classifier(META).train(), batch(META)
    counts = count(lambda: task(fields, "main")["loss"].backward())
    assert not counts.blocking
    assert not counts.reads


@contextmanager
def errors_where_cuda_waits() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("keys", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_cuda_does_not_wait_in_a_training_step(keys: dict[str, Any]) -> None:
    device = torch.device("cuda")
    task, fields = built(torch.device("cpu"), **keys).to(device).train(), batch(device)
    step(task, fields)  # fills caches, loads kernels
    torch.cuda.synchronize()
    with errors_where_cuda_waits():
        loss = step(task, fields)
    assert loss.isfinite()


@pytest.mark.gpu
@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=kind)
@torch.no_grad()
def test_cuda_does_not_wait_in_sampling(sampler: Sampler, scale: float) -> None:
    device = torch.device("cuda")
    task, fields = built(torch.device("cpu")).to(device).eval(), condition(device)
    last(task.trajectory(fields, range(N), sampler, scale))
    torch.cuda.synchronize()
    with errors_where_cuda_waits():
        end = last(task.trajectory(fields, range(N), sampler, scale))
    assert end.x.isfinite().all()
