"""Control: equal to its base where it starts and where its scale is 0; gradients, memory and layouts."""

import pytest
import torch
from torch import Tensor, nn

from diffcli.config import ImageShape
from diffcli.engine.tuning import compile_network
from diffcli.networks.conditioning import Conditioning, CondShape, Hint
from diffcli.networks.control import Controlled, HintEncoder, build_branch, strides_of
from diffcli.networks.dit import DiTConfig
from diffcli.networks.unet import UNetConfig
from tests.networks.test_compile import Graphs
from tests.networks.waking import normal, wake

SHAPE, COND = ImageShape(3, 8, 8), CondShape(vector=8, tokens=6, spatial=1)
CONFIGS = {
    "unet": UNetConfig(
        width=16, mult=(1, 2), blocks=("res", "attention"), attend_at=(8,), middle=("cross_attention",), head_dim=8
    ),
    "folded unet": UNetConfig(
        width=16, mult=(1, 1.5), blocks=("res",), attend_at=(), middle=("res", "cross_attention"), head_dim=8, fold=2
    ),
    "dit": DiTConfig(patch=2, width=32, depth=3, heads=2),
}
EVERY = pytest.mark.parametrize("name", CONFIGS)


def built(name: str, branches: int = 1, pixels: int = 1, **changes: object) -> Controlled:
    """A base with random weights and branches that begin as it."""
    config = CONFIGS[name].model_copy(update=changes)
    base = wake(config.build(SHAPE, 6, COND)).requires_grad_(False)
    made = Controlled(base, [build_branch(config, SHAPE, COND, 2, pixels) for _ in range(branches)])
    made.begin_as_base()
    return made


def inputs(n: int = 2, scale: float = 1.0, branches: int = 1, pixels: int = 1) -> tuple[Tensor, Tensor, Conditioning]:
    hints = tuple(Hint(normal(n, 2, 8 * pixels, 8 * pixels, seed=9 + i), scale) for i in range(branches))
    cond = Conditioning(normal(n, 8, seed=1), normal(n, 5, 6, seed=2), normal(n, 1, 8, 8, seed=3), hints=hints)
    return normal(n, *SHAPE), torch.linspace(1, 900, n), cond


def step(network: Controlled, optimizer: torch.optim.Optimizer) -> None:
    """Leaves the gradients of an update before it, so that they can be looked at."""
    optimizer.zero_grad()
    (network(*inputs()) - 1).square().mean().backward()
    optimizer.step()


def rouse(network: Controlled) -> Controlled:
    """Random numbers for the layers that begin at zero."""
    for branch in network.branches:
        wake(branch.zeros)
        wake(branch.hint)
    return network


@EVERY
@pytest.mark.parametrize("pixels", [1, 8])
def test_control_that_was_not_trained_is_its_base_bit_for_bit(name: str, pixels: int) -> None:
    network = built(name, branches=2, pixels=pixels)
    x, time, cond = inputs(branches=2, pixels=pixels)
    assert torch.equal(network(x, time, cond), network.base(x, time, cond._replace(hints=None)))


@EVERY
def test_control_at_scale_0_and_without_hints_is_its_base_bit_for_bit(name: str) -> None:
    network = rouse(built(name))
    x, time, cond = inputs(scale=0.0)
    plain = network.base(x, time, cond._replace(hints=None))
    assert not torch.equal(network(*inputs()), plain)
    for hints in (cond.hints, None, (None,)):
        assert torch.equal(network(x, time, cond._replace(hints=hints)), plain)


@EVERY
def test_branches_add_up_and_each_counts_by_its_scale(name: str) -> None:
    network = rouse(built(name, branches=2))
    x, time, cond = inputs(branches=2)
    found, told = [], cond._replace(hints=None)
    for branch, hint, scale in zip(network.branches, cond.hints, (0.5, 2.0), strict=True):
        found.append([scale * each for each in branch(x, time, told, hint.picture)])
    summed = told._replace(residuals=tuple(a + b for a, b in zip(*found, strict=True)))
    scaled = tuple(Hint(hint.picture, scale) for hint, scale in zip(cond.hints, (0.5, 2.0), strict=True))
    torch.testing.assert_close(network(x, time, cond._replace(hints=scaled)), network.base(x, time, summed))


@EVERY
def test_zero_layers_get_gradients_in_the_first_step_and_everything_in_the_third(name: str) -> None:
    """The zero layers of the residuals first; then that of the hint and the copies; then the encoder of the hint."""
    network = built(name)
    trained = list(network.branches.parameters())
    optimizer = torch.optim.SGD(trained, lr=0.1)
    (branch,) = network.branches
    step(network, optimizer)
    assert all(layer.weight.grad.abs().sum() > 0 for layer in branch.zeros)
    assert all(not p.grad.any() for p in branch.copied.parameters() if p.grad is not None)
    step(network, optimizer)
    silent = [n for n, p in branch.copied.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    assert branch.hint.leave.weight.grad.abs().sum() > 0
    step(network, optimizer)
    assert all(p.grad.any() for p in trained)


@EVERY
def test_the_base_keeps_no_gradient_and_of_a_unets_encoder_no_activation(name: str) -> None:
    network = built(name)
    before = {key: value.clone() for key, value in network.base.state_dict().items()}
    optimizer = torch.optim.AdamW(network.branches.parameters(), lr=0.01)
    for _ in range(2):
        step(network, optimizer)
    assert all(p.grad is None for p in network.base.parameters())
    assert all(torch.equal(value, before[key]) for key, value in network.base.state_dict().items())
    if name == "dit":
        return
    x, time, cond = inputs()
    kept = network.base.encode(x, network.base.signal(time, cond), cond)
    assert not any(h.requires_grad for h in kept)


@EVERY
def test_saving_memory_gives_the_same_gradients_and_keeps_less(name: str) -> None:
    def gradients(save_memory: bool) -> tuple[list[Tensor], int]:
        torch.manual_seed(1)
        network, kept = rouse(built(name, save_memory=save_memory)), [0]

        def pack(tensor: Tensor) -> Tensor:
            kept[0] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = network(*inputs()).square().sum()
        return list(torch.autograd.grad(loss, list(network.branches.parameters()))), kept[0]

    plain, saved = gradients(False), gradients(True)
    assert all(torch.equal(a, b) for a, b in zip(plain[0], saved[0], strict=True))
    assert saved[1] < plain[1]


@pytest.mark.parametrize(
    "name", ["unet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("folded unet", "dit"))]
)
def test_a_controlled_network_compiles_as_one_graph_and_gives_the_same(name: str) -> None:
    torch._dynamo.reset()
    network, graphs = rouse(built(name)).eval(), Graphs()
    with torch.no_grad():
        expected = {n: network(*inputs(n)) for n in (2, 3)}
        compile_network(network, backend=graphs)
        for n, value in expected.items():
            torch.testing.assert_close(network(*inputs(n)), value, rtol=1e-4, atol=1e-4)
    assert graphs.compiled == 1
    torch._dynamo.reset()


def test_a_controlled_network_gives_the_same_in_channels_last() -> None:
    network = rouse(built("unet"))
    x, time, cond = inputs()
    expected = network(x, time, cond)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    found = network(x.contiguous(memory_format=torch.channels_last), time, cond)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("factor", "strides"), [(1, [1]), (2, [2]), (8, [2, 2, 2]), (12, [2, 2, 3])])
def test_a_hint_is_brought_to_the_size_of_the_stem(factor: int, strides: list[int]) -> None:
    assert strides_of(factor) == strides
    encoder = HintEncoder(1, [4] * (len(strides) + 1), strides, 5)
    assert not encoder(normal(1, 1, 4 * factor, 6 * factor)).any()
    assert wake(encoder)(normal(1, 1, 4 * factor, 6 * factor)).shape == (1, 5, 4, 6)


def test_no_pixel_beyond_the_reach_of_an_encoder_has_a_part_in_a_position() -> None:
    for factor in (1, 2, 8):
        strides = strides_of(factor)
        encoder = wake(HintEncoder(1, [2] * (len(strides) + 1), strides, 1)).double()
        picture = torch.zeros(1, 1, 16 * factor, 16 * factor, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(encoder(picture)[0, 0, 8, 8], picture)
        seen = gradient[0, 0].any(0).nonzero()[:, 0]
        centre = 8 * factor
        assert centre - int(seen[0]) <= encoder.reach
        assert int(seen[-1]) - (centre + factor - 1) <= encoder.reach
        assert centre - int(seen[0]) > encoder.reach - factor


def test_windows_cut_hints_where_the_pixels_of_their_positions_lie() -> None:
    picture = torch.arange(2 * 1 * 16 * 16).view(2, 1, 16, 16).float()
    cond = Conditioning(hints=(Hint(picture, 0.5), None))
    cut = cond.windows([(1, (slice(2, 4), slice(0, 2)))], pixels=4)
    assert torch.equal(cut.hints[0].picture, picture[1:, :, 8:16, 0:8])
    assert (cut.hints[0].scale, cut.hints[1]) == (0.5, None)
    assert torch.equal(cond.rows(0, 1).hints[0].picture, picture[:1])
