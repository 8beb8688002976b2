"""Learning-rate curves, and optimizers that go on from their saved tensors bit for bit."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from diffcli.config import UserError
from diffcli.noise import Noise
from diffcli.optim import (
    Adam,
    AdamW,
    AnyCurve,
    AnyOptimizer,
    Constant,
    CosineDecay,
    LinearDecay,
    OptimizerConfig,
    optimizer_tensors,
    restore_optimizer,
)
from tests.diffusion.oracle import kind, members

CURVES = members(AnyCurve)
OPTIMIZERS = members(AnyOptimizer)
FORMATS = [torch.contiguous_format, torch.channels_last]


def network(memory_format: torch.memory_format = torch.contiguous_format) -> nn.Module:
    """Convolution, norm with buffers, and a linear layer; its weights depend on nothing else."""
    module = nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 4, 3))
    draw = Noise([1], torch.device("cpu"))
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(draw(p[None])[0] * 0.2)
    return module.to(memory_format=memory_format)


def names(module: nn.Module) -> dict[nn.Parameter, str]:
    return {p: name for name, p in module.named_parameters()}


def update(module: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    x = Noise([step], torch.device("cpu"))(torch.empty(1, 6 * 2 * 4 * 4)).view(6, 2, 4, 4)
    optimizer.zero_grad()
    module(x).square().mean().backward()
    optimizer.step()


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("cls", CURVES, ids=kind)
def test_warm_up_rises_linearly_and_its_first_step_is_not_zero(cls):
    curve = cls(warmup=10)
    assert [curve.factor(step, 100) for step in range(1, 11)] == pytest.approx([k / 10 for k in range(1, 11)])


@pytest.mark.parametrize("cls", CURVES, ids=kind)
@pytest.mark.parametrize("warmup", [0, 1, 7, 100, 500])
def test_factors_lie_in_zero_to_one_and_never_rise_after_the_warm_up(cls, warmup):
    factors = [cls(warmup=warmup).factor(step, 100) for step in range(1, 101)]
    assert all(0 <= factor <= 1 for factor in factors)
    assert factors[0] > 0
    after = factors[warmup:]
    assert all(a >= b for a, b in pairwise(after))


def test_curves_have_their_shapes():
    assert {Constant().factor(step, 100) for step in (1, 50, 100)} == {1.0}
    linear = LinearDecay(warmup=20, floor=0.1)
    assert [linear.factor(step, 100) for step in (20, 60, 100)] == pytest.approx([1, 0.55, 0.1])
    cosine = CosineDecay(warmup=20, floor=0.1)
    expected = [1, 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2, 0.55, 0.1]
    assert [cosine.factor(step, 100) for step in (20, 40, 60, 100)] == pytest.approx(expected)


@pytest.mark.parametrize("cls", CURVES, ids=kind)
def test_a_run_of_one_step_and_steps_past_the_end_have_a_rate(cls):
    assert 0 <= cls().factor(1, 1) <= 1
    assert cls().factor(150, 100) == cls().factor(100, 100)  # a resumed run that is given fewer steps


@pytest.mark.parametrize(("cls", "reference"), [(Adam, torch.optim.Adam), (AdamW, torch.optim.AdamW)])
def test_hyper_parameters_reach_the_optimizer(cls, reference):
    config = cls(lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    ours, theirs = network(), network()
    one = config.build(list(ours.parameters()))
    other = reference(theirs.parameters(), lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    for step in range(5):
        update(ours, one, step)
        update(theirs, other, step)
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=0, atol=2e-4)  # a fused kernel rounds otherwise


def built(config: OptimizerConfig, module: nn.Module, fused: bool) -> torch.optim.Optimizer:
    optimizer = config.build(list(module.parameters()))
    for group in optimizer.param_groups:
        group["fused"] = fused
    return optimizer


@pytest.mark.parametrize("cls", OPTIMIZERS, ids=kind)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("memory_format", FORMATS, ids=["contiguous", "channels_last"])
def test_an_optimizer_goes_on_from_its_tensors_bit_for_bit(cls, fused, memory_format):
    """Files hold contiguous tensors; a fused kernel walks memory, so moments must take the layout of their parameter."""
    config = cls(lr=0.01, weight_decay=0.1)
    whole = network(memory_format)
    optimizer = built(config, whole, fused)
    for step in range(3):
        update(whole, optimizer, step)
    saved = {name: value.clone().contiguous() for name, value in optimizer_tensors(optimizer, names(whole)).items()}
    other = network(memory_format)
    other.load_state_dict({name: value.contiguous() for name, value in whole.state_dict().items()})
    resumed = built(config, other, fused)
    restore_optimizer(resumed, names(other), saved)
    for step in range(3, 6):
        update(whole, optimizer, step)
        update(other, resumed, step)
    assert torch.equal(weights(whole), weights(other))
    after = optimizer_tensors(resumed, names(other))
    for name, value in optimizer_tensors(optimizer, names(whole)).items():
        assert torch.equal(after[name], value)
        assert after[name].dtype == value.dtype


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("memory_format", FORMATS, ids=["contiguous", "channels_last"])
def test_an_optimizer_goes_on_from_its_tensors_on_a_gpu(memory_format):
    whole = nn.Conv2d(4, 8, 3).cuda().to(memory_format=memory_format)
    optimizer = AdamW(lr=0.01).build(list(whole.parameters()))

    def step(module: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        draw = Noise([seed], torch.device("cuda"))
        for p in module.parameters():
            p.grad = torch.empty_like(p).copy_(draw(p.detach()[None])[0])
        optimizer.step()

    step(whole, optimizer, 1)
    saved = {name: value.cpu().contiguous() for name, value in optimizer_tensors(optimizer, names(whole)).items()}
    other = copy.deepcopy(whole)
    resumed = AdamW(lr=0.01).build(list(other.parameters()))
    restore_optimizer(resumed, names(other), saved)
    for module, its in ((whole, optimizer), (other, resumed)):
        step(module, its, 2)
    assert torch.equal(weights(whole), weights(other))


def test_restored_tensors_are_copies():
    module = network()
    optimizer = AdamW().build(list(module.parameters()))
    update(module, optimizer, 0)
    saved = {name: value.clone() for name, value in optimizer_tensors(optimizer, names(module)).items()}
    kept = {name: value.clone() for name, value in saved.items()}
    other = network()
    resumed = AdamW().build(list(other.parameters()))
    restore_optimizer(resumed, names(other), saved)
    update(other, resumed, 1)
    assert all(torch.equal(saved[name], kept[name]) for name in saved)


def test_parameters_that_were_never_updated_have_no_state():
    module = network()
    optimizer = AdamW().build(list(module.parameters()))
    assert optimizer_tensors(optimizer, names(module)) == {}
    module[3].requires_grad_(False)
    update(module, optimizer, 0)
    assert {name.rpartition(":")[0] for name in optimizer_tensors(optimizer, names(module))} == {
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
    }


@pytest.mark.parametrize(
    "tensors",
    [
        {"9.weight:exp_avg": torch.zeros(3)},
        {"0.weight:exp_avg": torch.zeros(8, 2, 3, 4)},
        {"0.bias:exp_avg": torch.zeros(9)},
        {"nonsense": torch.zeros(())},
    ],
    ids=["no such parameter", "other shape", "other size", "no key"],
)
def test_state_that_fits_no_parameter_is_refused(tensors):
    module = network()
    with pytest.raises(UserError, match="fits no parameter of this preset"):
        restore_optimizer(AdamW().build(list(module.parameters())), names(module), tensors)


@pytest.mark.parametrize("betas", [(1.0, 0.999), (0.9, 1.0), (-0.1, 0.999), (0.9, 1.5)])
def test_a_moment_that_never_forgets_or_grows_is_refused_before_training(betas):
    with pytest.raises(ValueError, match=r"betas\.[01]"):
        AdamW(betas=betas)
