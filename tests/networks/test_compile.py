"""torch.compile takes each network whole: one graph, which batches of every size share, and the numbers of before."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from diffcli.config import ImageShape
from diffcli.engine.tuning import compile_network
from diffcli.networks.conditioning import Conditioning, CondShape
from diffcli.networks.dit import DiTConfig
from diffcli.networks.unet import UNetConfig
from tests.networks.waking import normal, wake

SHAPE, COND = ImageShape(3, 8, 8), CondShape(vector=8, tokens=6)
NETWORKS = {
    "unet": UNetConfig(
        width=16,
        mult=(1,),
        blocks=("res", "attention"),
        attend_at=(8,),
        middle=("cross_attention",),
        head_dim=8,
        dropout=0.2,
    ),
    "unet, plain": UNetConfig(
        width=16,
        mult=(1, 2),
        blocks=("res",),
        attend_at=(),
        middle=(),
        dropout=0.2,
        resample="conv",
        embed="add",
        groups=4,
    ),
    "dit": DiTConfig(patch=2, width=32, depth=2, heads=2, dropout=0.2),
    "dit, rotary": DiTConfig(patch=2, width=32, depth=2, heads=2, dropout=0.2, positions="rotary", qk_norm=True),
}


class Graphs:
    """A backend that runs what it is given as it is, and counts it."""

    def __init__(self) -> None:
        self.compiled = 0

    def __call__(self, graph: GraphModule, inputs: list[Tensor]) -> Any:
        self.compiled += 1
        return graph.forward


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def given(n: int) -> tuple[Tensor, Tensor, Conditioning]:
    mask = torch.ones(n, 5, dtype=torch.bool)
    mask[0, 3:] = False
    cond = Conditioning(normal(n, 8, seed=1), normal(n, 5, 6, seed=2), None, torch.arange(n) * 7919, mask)
    return normal(n, *SHAPE), torch.linspace(1, 900, n), cond


def built(name: str) -> nn.Module:
    return wake(NETWORKS[name].build(SHAPE, 3, COND if "plain" not in name else CondShape(vector=8)))


def run(network: nn.Module, n: int, bf16: bool, training: bool) -> tuple[Tensor, ...]:
    """The output for n samples and, in training, the gradients of all parameters."""
    x, time, cond = given(n)
    with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        y = network(x, time, cond)
    if not training:
        return (y,)
    return (y.detach(), *torch.autograd.grad(y.square().sum(), list(network.parameters())))


def assert_close(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], bf16: bool) -> None:
    """Each tensor to so many parts of the largest of its values' size; rounding is in bf16, or only sums are in another order."""
    largest = max(float(b.abs().max()) for b in theirs)
    for a, b in zip(ours, theirs, strict=True):
        most = max(float(b.abs().max()), 1e-2 * largest)
        torch.testing.assert_close(a, b, rtol=0, atol=(0.1 if bf16 else 1e-4) * most)


@pytest.mark.parametrize(
    ("name", "bf16", "training"),
    [
        ("unet", True, True),
        ("dit, rotary", False, False),
        pytest.param("dit", True, True, marks=pytest.mark.slow),
        pytest.param("unet, plain", False, False, marks=pytest.mark.slow),
    ],
)
def test_a_network_is_one_graph_for_batches_of_every_size(name: str, bf16: bool, training: bool) -> None:
    """It was 20 graphs in bf16: the attention switched torch's kernels, and each layer compiled by itself."""
    network, graphs = built(name).train(training), Graphs()
    plain = {n: run(network, n, bf16, training) for n in (4, 3, 7)}
    compile_network(network, backend=graphs)
    for n, expected in plain.items():
        assert_close(run(network, n, bf16, training), expected, bf16)
    assert graphs.compiled == 1


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True], ids=["sampling", "training"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["unet", "dit"])
def test_inductor_gives_the_same_numbers(name: str, bf16: bool, training: bool) -> None:
    network = built(name).train(training)
    plain = {n: run(network, n, bf16, training) for n in (4, 3)}
    compile_network(network)
    for n, expected in plain.items():
        assert_close(run(network, n, bf16, training), expected, bf16)
