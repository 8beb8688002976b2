import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from diffcli.config import UserError
from diffcli.networks.conditioning import Conditioning, CondShape
from diffcli.networks.conv_blocks import StandardizedConv
from diffcli.networks.dit import DiTConfig
from diffcli.networks.lora import GROUPS, Lora, LoraConfig, attach, low_rank, matched, merged, of_change
from diffcli.networks.unet import UNetConfig
from tests.networks.waking import wake

TOKENS = Conditioning(tokens=torch.linspace(-1, 1, 2 * 3 * 6).view(2, 3, 6))
TIME = torch.tensor([3.0, 700.0])
EVERY = LoraConfig(rank=3, alpha=6, targets=("all",))


def unet(resample: str = "conv") -> nn.Module:
    """A U-Net of every layer that a change can be given, on the way down and up, awake."""
    config = UNetConfig(
        width=8, mult=(1, 2), blocks=("res", "attention"), middle=("res", "spatial_transformer", "res"), attend_at=(8,),
        head_dim=4, resample=resample,
    )  # fmt: skip
    return wake(config.build((3, 8, 8), 3, CondShape(tokens=6)))


def dit() -> nn.Module:
    return wake(DiTConfig(width=16, depth=1, heads=2, patch=2).build((3, 8, 8), 3, CondShape(tokens=6)))


MODELS = {"conv": lambda: unet("conv"), "residual": lambda: unet("residual"), "dit": dit}


@pytest.fixture(params=MODELS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    return MODELS[request.param]()


def predicted(network: nn.Module, size: tuple[int, int] = (8, 8)) -> Tensor:
    x = torch.linspace(-1, 1, 2 * 3 * size[0] * size[1]).view(2, 3, *size)
    return network(x, TIME, TOKENS)


def stir(network: nn.Module) -> None:
    """Random numbers in every B, so that no change is 0."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if of_change(name):
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))


def changes(network: nn.Module) -> Iterator[Lora]:
    return (module for module in network.modules() if isinstance(module, Lora))


def test_at_first_a_model_is_its_base_to_the_bit_and_keeps_its_names(network: nn.Module) -> None:
    before, names = predicted(network), set(network.state_dict())
    assert attach({"net": network}, EVERY)
    assert predicted(network).equal(before)
    assert {name for name in network.state_dict() if not of_change(name)} == names


@pytest.mark.parametrize("size", [(8, 8), (6, 10)])
def test_merged_weights_are_the_changed_model(network: nn.Module, size: tuple[int, int]) -> None:
    """Up to the order of sums in float32: either is as far from its own values in float64 as from the other."""
    base = copy.deepcopy(network)
    before = predicted(base, size)
    attach({"net": network}, EVERY)
    stir(network)
    changed, state = predicted(network, size), network.state_dict()
    base.load_state_dict(merged(state, low_rank(state)))
    assert (changed - before).abs().max() > 0.01
    off = predicted(base, size) - changed
    assert off.abs().max() < 2e-6
    assert off.norm() < 1e-6 * changed.norm()


def test_in_float64_merged_weights_are_the_changed_model_to_1e_12(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # what is computed in float32 at least
    base = copy.deepcopy(network.double())
    attach({"net": network}, EVERY)
    stir(network.double())
    changed, state = exactly(network), network.state_dict()
    base.load_state_dict(merged(state, low_rank(state)))
    assert changed.dtype == torch.float64
    torch.testing.assert_close(exactly(base), changed, rtol=0, atol=1e-12)


def exactly(network: nn.Module) -> Tensor:
    x = torch.linspace(-1, 1, 2 * 3 * 8 * 8, dtype=torch.float64).view(2, 3, 8, 8)
    return network(x, TIME.double(), Conditioning(tokens=TOKENS.tokens.double()))


def test_every_layer_that_a_group_names_is_really_used(network: nn.Module) -> None:
    """None has its weight read past its forward, where a change would never be seen."""
    attach({"net": network}, EVERY)
    stir(network)
    predicted(network).square().sum().backward()
    dead = [name for name, p in network.named_parameters() if of_change(name) and (p.grad is None or not p.grad.any())]
    assert not dead


def test_after_one_step_every_change_has_moved_from_0(network: nn.Module) -> None:
    attach({"net": network}, EVERY)
    network.requires_grad_(False)
    for change in changes(network):
        change.requires_grad_(True)
    predicted(network).square().sum().backward()
    assert all(change.up.weight.grad.any() for change in changes(network))
    assert all(p.grad is None for name, p in network.named_parameters() if not of_change(name))


def test_a_change_grows_with_alpha_over_rank() -> None:
    found = []
    for alpha in (1.0, 4.0):
        layer = nn.Linear(5, 4)
        attach({"": nn.Sequential(layer)}, LoraConfig(rank=2, alpha=alpha, targets=("0",)))
        with torch.no_grad():
            layer.lora.down.weight.fill_(1)
            layer.lora.up.weight.fill_(1)
        found.append(layer(torch.ones(1, 5)) - nn.functional.linear(torch.ones(1, 5), layer.weight, layer.bias))
    torch.testing.assert_close(found[0], torch.full((1, 4), 5 * 2 * 1 / 2))
    torch.testing.assert_close(found[1], 4 * found[0])
    assert LoraConfig(rank=2).strength == 2


def test_scales_of_several_changes_add_up(network: nn.Module) -> None:
    attach({"net": network}, EVERY)
    stir(network)
    state = network.state_dict()
    base = {name: tensor for name, tensor in state.items() if not of_change(name)}
    twice = merged(merged(base, low_rank(state), 0.5), low_rank(state), 0.25)
    for name, tensor in merged(base, low_rank(state), 0.75).items():
        torch.testing.assert_close(twice[name], tensor, rtol=0, atol=1e-6)
    assert all(tensor.equal(base[name]) for name, tensor in merged(base, low_rank(state), 0).items())


def test_a_deep_copy_has_changes_of_its_own(network: nn.Module) -> None:
    attach({"net": network}, EVERY)
    before = predicted(network)
    other = copy.deepcopy(network)
    stir(other)
    assert predicted(network).equal(before)
    assert not predicted(other).equal(before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conv", "dit"])
def test_compiled_it_is_the_same(name: str) -> None:
    network = MODELS[name]()
    attach({"net": network}, EVERY)
    stir(network)
    expected = predicted(network)
    network.compile(backend="aot_eager")
    torch.testing.assert_close(predicted(network), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["conv", "residual"])
def test_groups_leave_the_ends_out_and_make_up_all(name: str) -> None:
    network = MODELS[name]()
    found = {group: set(matched({"net": network}, (group,))) for group in GROUPS}
    assert found["linear"] | found["convolution"] == found["all"]
    assert not found["linear"] & found["convolution"]
    assert found["attention"] < found["linear"]
    assert not {"net.stem", "net.head"} & found["all"]
    assert set(matched({"net": network}, ("stem", "head"))) == {"net.stem", "net.head"}


def test_a_pattern_is_a_name_its_end_or_has_stars() -> None:
    network = dit()
    whole = matched({"net": network}, ("net.blocks.0.attn.qkv",))
    assert list(whole) == list(matched({"net": network}, ("attn.qkv",))) == list(matched({"net": network}, ("*.qk?",)))


def test_what_matches_nothing_is_told_with_what_there_is() -> None:
    with pytest.raises(UserError) as error:
        matched({"net": dit()}, ("qvk",))
    assert "'qvk'" in error.value.problem
    assert "did you mean 'qkv'" in error.value.problem
    assert "attention (5 layers)" in error.value.hint
    assert "net.x_embedder.proj" in error.value.hint
    with pytest.raises(UserError, match="'convolution'") as error:
        matched({"net": dit()}, ("convolution",))
    assert "linear" in error.value.hint


def test_a_rank_above_the_smaller_side_is_refused_before_anything_changes() -> None:
    network = dit()
    with pytest.raises(UserError) as error:
        attach({"net": network}, LoraConfig(rank=7, targets=("attention",)), "train.lora")
    assert "train.lora.rank is 7" in error.value.problem
    assert "kv_linear is 32x6" in error.value.problem
    assert "6 or less" in error.value.hint
    assert not list(changes(network))


def test_layers_that_compute_with_another_weight_are_refused_by_name_and_left_out_of_groups() -> None:
    net = nn.ModuleDict({"a": StandardizedConv(4, 4), "b": nn.Conv2d(4, 4, 3, groups=4), "c": nn.Conv2d(4, 4, 3)})
    assert list(matched({"net": net}, ("all",))) == ["net.c"]
    for name in "ab":
        with pytest.raises(UserError, match=f"net.{name}"):
            matched({"net": net}, (f"net.{name}",))
