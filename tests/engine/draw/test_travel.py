"""How images travel: bytes made on the device, one copy to the CPU, one state of a walk, no batch of one when compiled."""

import copy
import dataclasses
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffcli.diffusion.samplers import Ddpm
from diffcli.engine.distributed import Group
from diffcli.engine.draw.sample import Model, SampleOptions, draw, frames, load_model, request, sampled
from diffcli.tasks.diffusion import DiffusionTask
from diffcli.tasks.prior import DiffusionPriorConfig, PriorConfig

CPU = torch.device("cpu")
ALONE = Group(0, 1, CPU)


@pytest.fixture
def model(trained: Path) -> Model:
    return load_model(trained, CPU)


@contextmanager
def living(module: nn.Module) -> Iterator[list[int]]:
    """The number of inputs of a module that are alive at once, one entry for each of its calls."""
    seen: list[weakref.ref[Tensor]] = []
    counts: list[int] = []

    def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(weakref.ref(args[0]))
        counts.append(sum(reference() is not None for reference in seen))

    handle = module.register_forward_pre_hook(look)
    try:
        yield counts
    finally:
        handle.remove()


def sampled_once(model: Model, steps: int) -> None:
    list(draw(request(model, SampleOptions(n=4, batch_size=2, sampler="ddpm", steps=steps, guidance=1.0)), ALONE))


def animated(model: Model, steps: int) -> None:
    req = request(model, SampleOptions(n=2, sampler="ddpm", steps=steps, guidance=1.0))
    for _ in frames(req, "x0", ALONE):
        pass


def previewed(model: Model, steps: int) -> None:
    assert isinstance(model.task, DiffusionTask)
    batch = {"image": torch.zeros(2, 1, 8, 8), "label": torch.tensor([1, 2])}
    model.task.preview(batch, Ddpm(steps=steps), 1.0)


@pytest.mark.parametrize("work", [sampled_once, animated, previewed])
def test_the_memory_of_a_walk_does_not_grow_with_its_steps(model: Model, work: Callable[[Model, int], None]) -> None:
    assert isinstance(model.task, DiffusionTask)
    most = {}
    for steps in (5, 60):
        with living(model.task.denoiser) as counts:
            work(model, steps)
        assert len(counts) >= steps
        most[steps] = max(counts)
    assert most[5] == most[60] <= 3


def test_the_memory_of_a_priors_walk_does_not_grow_with_its_steps() -> None:
    prior = PriorConfig(dim=4, network=DiffusionPriorConfig(width=8, depth=1)).build({})
    with living(prior.diffusion.denoiser) as counts, torch.no_grad():
        prior.translate(torch.randn(2, 4), [0, 1], Ddpm(steps=60), 1.0)
    assert len(counts) == 60
    assert max(counts) <= 3


def test_images_are_bytes_before_they_leave_the_device(model: Model) -> None:
    """On the meta device a copy to the CPU is an error."""
    there = dataclasses.replace(model, task=copy.deepcopy(model.task).to("meta"))
    req = request(there, SampleOptions(n=3, sampler="ddpm", steps=2))
    with torch.no_grad():
        levels = sampled(req, range(3))
    assert (levels.device.type, levels.dtype, levels.shape) == ("meta", torch.uint8, (3, 1, 8, 8))


def test_one_process_gathers_nothing(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gather", "all_gather", "all_reduce", "broadcast"):
        monkeypatch.setattr(torch.distributed, name, lambda *args, **more: pytest.fail("a collective of one process"))
    req = request(model, SampleOptions(n=3, sampler="ode", steps=1, batch_size=2))
    assert sum(len(part.images) for part in draw(req, ALONE)) == 3
    assert len(list(frames(req, "x", ALONE))) == 2


@pytest.mark.parametrize("show", [None, "x0"])
def test_a_compiled_network_sees_no_batch_of_one_and_no_image_changes(model: Model, show: str | None) -> None:
    options = SampleOptions(n=7, batch_size=3, sampler="ddpm", steps=2)
    sizes: list[int] = []

    def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        sizes.append(len(args[0]))

    def images(model: Model) -> Tensor:
        req = request(model, options)
        if show is None:
            return torch.cat([part.images for part in draw(req, ALONE)])
        return torch.stack(list(frames(req, "x0", ALONE)))

    plain = images(model)
    handle = model.task.network_to_compile.register_forward_pre_hook(look)
    compiled = images(dataclasses.replace(model, compiled=True))
    handle.remove()
    assert set(sizes) == {6, 4}, "both branches of three images, and of two where one would be alone"
    assert compiled.shape == plain.shape
    assert (compiled.int() - plain.int()).abs().max() <= 1


def test_few_images_are_not_padded_to_a_whole_batch(model: Model) -> None:
    sizes: list[int] = []
    model.task.network_to_compile.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    list(draw(request(dataclasses.replace(model, compiled=True), SampleOptions(n=2, steps=1, guidance=1.0)), ALONE))
    assert sizes == [2]
