"""Learning-rate curves, and optimizers that go on from their saved tensors bit for bit."""

import copy
import math
from importlib.util import find_spec
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from diffcli.config import UserError
from diffcli.fields import FieldSpec
from diffcli.noise import Noise
from diffcli.optim import (
    Adam,
    AdamW,
    AdamW8bit,
    AnyCurve,
    AnyOptimizer,
    Constant,
    CosineDecay,
    InverseSqrt,
    LinearDecay,
    Muon,
    OptimizerConfig,
    Sgd,
    Together,
    optimizer_tensors,
    restore_optimizer,
    scale_rates,
)
from diffcli.tasks.classifier import ClassifierConfig
from diffcli.tasks.diffusion_config import DiffusionConfig
from tests.diffusion.oracle import kind, members

CURVES = members(AnyCurve)
needs_bytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes, of the extra lowbit, is not installed"
)
OPTIMIZERS = [
    pytest.param(cls, marks=needs_bytes if cls is AdamW8bit else (), id=kind(cls)) for cls in members(AnyOptimizer)
]
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
    assert 0 <= cls().factor(150, 100) <= cls().factor(100, 100)  # a resumed run that is given fewer steps


def test_inverse_sqrt_is_its_formula_however_long_the_run() -> None:
    curve = InverseSqrt(warmup=10, ref=40)
    for step in (11, 40, 41, 160, 1000, 4000):
        for steps in (100, 4000):
            assert curve.factor(step, steps) == pytest.approx(math.sqrt(40 / max(step, 40)))
    assert curve.factor(160, 160) == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"warmup is 50.*ref 40; set train\.curve\.ref to 50"):
        InverseSqrt(warmup=50, ref=40)


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


def gradient(shape: tuple[int, ...], step: int) -> Tensor:
    return Noise([step], torch.device("cpu"))(torch.empty(1, *shape))[0]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_its_formula(momentum: float, nesterov: bool) -> None:
    if nesterov and not momentum:
        with pytest.raises(ValueError, match=r"nesterov is true but momentum is 0; set train\.optimizer\.momentum"):
            Sgd(momentum=momentum, nesterov=nesterov)
        return
    p = nn.Parameter(torch.ones(5))
    optimizer = Sgd(lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=0.01).build([p])
    w, velocity = p.detach().double().clone(), torch.zeros(5, dtype=torch.float64)
    for step in range(6):
        p.grad = gradient((5,), step)
        g = p.grad.double() + 0.01 * w
        velocity = momentum * velocity + g
        w = w - 0.1 * (g + momentum * velocity if nesterov else velocity)
        optimizer.step()
        torch.testing.assert_close(p.detach().double(), w, rtol=1e-5, atol=1e-6)


needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon since 2.9")


@needs_muon
def test_muon_moves_a_matrix_by_a_nearly_orthogonal_step_as_large_as_adamws_and_all_else_by_adamw() -> None:
    matrix, bias, other = (nn.Parameter(gradient(shape, 9)) for shape in ((24, 16), (16,), (16,)))
    with torch.no_grad():
        other.copy_(bias)
    muon = Muon(lr=0.01, weight_decay=0.1).build([matrix, bias], {matrix})
    adamw = AdamW(lr=0.01, weight_decay=0.1).build([other])
    for step in range(3):
        before = matrix.detach().clone()
        matrix.grad, bias.grad = gradient((24, 16), step), gradient((16,), step)
        other.grad = bias.grad.clone()
        muon.step()
        adamw.step()
        assert torch.equal(bias, other)
        moved = (before * (1 - 0.01 * 0.1) - matrix.detach()) / 0.01 / (0.2 * math.sqrt(24))
        singular = torch.linalg.svdvals(moved)
        assert singular.min() > 0.5  # Newton and Schulz leave them between about 0.7 and 1.2
        assert singular.max() < 1.5


@needs_muon
@pytest.mark.parametrize(
    "network",
    [
        {"kind": "unet", "width": 8, "mult": [1], "blocks": ["res"], "attend_at": [], "head_dim": 8},
        {"kind": "dit", "patch": 4, "width": 16, "depth": 1, "heads": 2},
    ],
    ids=["unet", "dit"],
)
def test_muon_turns_hidden_matrices_and_leaves_tables_and_the_output_to_adamw(network: dict) -> None:
    classes = {"kind": "class", "num_classes": 3, "dim": 8}
    config = DiffusionConfig.model_validate({"network": network, "conditioners": [classes]})
    task = config.build({"image": FieldSpec("image", (1, 8, 8))})
    optimizer = Muon().build(task.parameters_of(["denoiser", "conditioners"]), task.hidden())
    assert isinstance(optimizer, Together)
    by_adamw, by_muon = ({names(task)[p] for g in part.param_groups for p in g["params"]} for part in optimizer.parts)
    linear = {f"{name}.weight" for name, m in task.named_modules() if isinstance(m, nn.Linear)}
    last = {"denoiser.network.final_layer.linear.weight"} & linear
    assert by_muon == linear - last
    assert by_muon
    assert {"conditioners.0.embedding.weight", *last} <= by_adamw
    assert by_adamw | by_muon == set(names(task).values())


@needs_muon
def test_muon_of_a_classifier_leaves_the_logits_to_adamw() -> None:
    config = ClassifierConfig.model_validate(
        {"num_classes": 3, "network": {"width": 4}, "schedule": {"kind": "cosine"}}
    )
    task = config.build({"image": FieldSpec("image", (1, 8, 8))})
    turned = {names(task)[p] for p in task.hidden()}
    assert "network.head.weight" not in turned
    assert "network.time.time.0.weight" in turned


@needs_muon
def test_the_learning_rate_and_the_gradients_of_muon_are_those_of_both_its_parts() -> None:
    module = network()
    optimizer = Muon(lr=0.01).build(list(module.parameters()), {module[3].weight})
    in_groups = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in in_groups} == {id(p) for p in module.parameters()}
    update(module, optimizer, 0)
    optimizer.zero_grad()
    assert all(p.grad is None for p in module.parameters())
    before = weights(module)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    update(module, optimizer, 1)
    assert torch.equal(weights(module), before)


def test_muon_without_a_torch_that_has_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(UserError, match=r"train\.optimizer\.kind is 'muon'") as caught:
        Muon().check(list(network().parameters()), torch.device("cpu"))
    assert "2.9" in caught.value.hint
    assert "adamw" in caught.value.hint


def built(config: OptimizerConfig, module: nn.Module, fused: bool) -> torch.optim.Optimizer:
    optimizer = config.build(list(module.parameters()), {module[3].weight})
    for group in optimizer.param_groups:
        group["fused"] = fused
    return optimizer


@pytest.mark.parametrize("cls", OPTIMIZERS)
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


@pytest.mark.parametrize("choice", OPTIMIZERS)
def test_groups_with_factors_step_as_if_each_were_alone_at_its_own_rate(choice: type[OptimizerConfig]) -> None:
    """And the optimizer keeps, beside counters, as many bytes as its config says."""
    config = choice()

    def stepped(factor: float, scaled: bool) -> tuple[nn.Module, int]:
        module = network()
        parameters, hidden = list(module.parameters()), {p for p in module.parameters() if p.ndim == 2}
        optimizer = config.build(parameters, hidden)
        if scaled:
            scale_rates(optimizer, dict.fromkeys(parameters[::2], factor))
        for _ in range(3):
            for p in parameters:
                p.grad = torch.sin(torch.arange(p.numel(), dtype=torch.float32)).view_as(p) + 0.1 * p.detach()
            for group in optimizer.param_groups:
                group["lr"] = config.lr * (group["scale"] if scaled else factor)
            optimizer.step()
        kept = sum(v.nbytes for state in optimizer.state.values() for v in state.values() if v is not None and v.ndim)
        assert kept == config.remembered(parameters, hidden)
        return module, kept

    mixed, slow, fast = stepped(0.5, True)[0], stepped(0.5, False)[0], stepped(1.0, False)[0]
    for i, (p, one, other) in enumerate(zip(mixed.parameters(), slow.parameters(), fast.parameters(), strict=True)):
        assert torch.equal(p, other if i % 2 else one)
        assert not torch.equal(one, other)
