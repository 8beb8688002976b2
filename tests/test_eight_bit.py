"""AdamW with moments in bytes: near AdamW, exact where it is saved, the same in every memory format and group."""

import sys
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn

from diffcli.config import UserError
from diffcli.eight_bit import BLOCK, LEAST, EightBitAdamW
from diffcli.noise import Noise
from diffcli.optim import AdamW, AdamW8bit, optimizer_tensors, restore_optimizer, scale_rates

installed = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes, of the extra lowbit, is not installed"
)
SHAPE = (24, 20, 3, 3)  # 4,320 values, whose last block is not whole
SETTINGS = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1}


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return Noise([seed], torch.device("cpu"))(torch.empty(1, *shape))[0]


def parameter(memory_format: torch.memory_format = torch.contiguous_format) -> nn.Parameter:
    return nn.Parameter(drawn(SHAPE, 1).to(memory_format=memory_format))


def update(p: nn.Parameter, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    """Steps with gradients that are noise about a mean; drawn in the order of the shape, stored as the parameter is."""
    for step in range(first, last):
        p.grad = torch.empty_like(p).copy_(drawn(SHAPE, 100 + step) + drawn(SHAPE, 9))
        optimizer.step()


def built(p: nn.Parameter) -> torch.optim.Optimizer:
    return AdamW8bit.model_validate(SETTINGS).build([p])


@installed
def test_it_moves_weights_nearly_as_adamw_does() -> None:
    ours, theirs = parameter(), parameter()
    update(ours, built(ours), 0, 20)
    update(theirs, AdamW.model_validate(SETTINGS).build([theirs]), 0, 20)
    moved, wanted = ours.detach() - drawn(SHAPE, 1), theirs.detach() - drawn(SHAPE, 1)
    assert (moved - wanted).square().mean().sqrt() < 0.05 * wanted.square().mean().sqrt()
    assert not torch.equal(ours, theirs)


@installed
@pytest.mark.parametrize(
    "resumed_as", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"]
)
def test_a_run_is_the_same_in_any_memory_format_and_goes_on_in_another_to_the_bit(
    resumed_as: torch.memory_format,
) -> None:
    whole = parameter(torch.channels_last)
    optimizer = built(whole)
    update(whole, optimizer, 0, 3)
    assert whole.is_contiguous(memory_format=torch.channels_last)
    saved = {key: value.clone().contiguous() for key, value in optimizer_tensors(optimizer, {whole: "w"}).items()}
    resumed = nn.Parameter(whole.detach().clone().contiguous().to(memory_format=resumed_as))
    other = built(resumed)
    restore_optimizer(other, {resumed: "w"}, saved)
    update(whole, optimizer, 3, 6)
    update(resumed, other, 3, 6)
    assert torch.equal(whole, resumed)
    after = optimizer_tensors(other, {resumed: "w"})
    assert all(torch.equal(after[key], value) for key, value in optimizer_tensors(optimizer, {whole: "w"}).items())


@installed
def test_a_rate_of_its_own_acts_as_if_the_parameter_were_alone_at_it() -> None:
    one, other, alone = parameter(), parameter(), parameter()
    optimizer = AdamW8bit.model_validate(SETTINGS).build([one, other])
    scale_rates(optimizer, {other: 0.5})
    for group in optimizer.param_groups:
        group["lr"] = 0.01 * group["scale"]
    one.grad, other.grad, alone.grad = (drawn(SHAPE, 3) for _ in range(3))
    optimizer.step()
    AdamW8bit.model_validate(SETTINGS | {"lr": 0.005}).build([alone]).step()
    assert torch.equal(other, alone)
    assert not torch.equal(one, alone)


@installed
def test_a_value_of_large_parameters_takes_two_bytes_and_small_ones_are_adamws_to_the_bit() -> None:
    large, small, alone = parameter(), nn.Parameter(drawn((50,), 2)), nn.Parameter(drawn((50,), 2))
    config = AdamW8bit.model_validate(SETTINGS)
    optimizer = config.build([large, small])
    for p in (large, small, alone):
        p.grad = drawn(tuple(p.shape), 4)
    optimizer.step()
    AdamW.model_validate(SETTINGS).build([alone]).step()
    assert torch.equal(small, alone)
    kept = sum(value.nbytes for value in optimizer.state[large].values() if value.ndim)
    assert kept == 2 * (large.numel() + 4 * 17)
    assert config.remembered([large, small]) == kept + 2 * 4 * 50


@installed
def test_the_device_is_not_asked_for_the_step() -> None:
    p = parameter()
    optimizer = built(p)
    update(p, optimizer, 0, 1)
    saved = optimizer_tensors(optimizer, {p: "w"})
    again = parameter()
    resumed = built(again)
    restore_optimizer(resumed, {again: "w"}, saved)
    for each, of in ((optimizer, p), (resumed, again)):
        assert each.state[of]["step"].device.type == "cpu"  # the host counts, whatever device the weights are on


@installed
@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_scale", "exp_avg_byte"])
def test_a_state_of_other_moments_or_another_size_is_refused(key: str) -> None:
    p = parameter()
    with pytest.raises(UserError, match="fits no parameter"):
        restore_optimizer(built(p), {p: "w"}, {f"w:{key}": torch.zeros(3, 4)})


@installed
def test_a_device_without_kernels_is_refused_with_a_way_out() -> None:
    with pytest.raises(UserError, match="meta") as caught:
        EightBitAdamW([nn.Parameter(torch.empty(LEAST, device="meta"))], 0.1, (0.9, 0.9), 1e-8, 0.0)
    assert "train.optimizer.kind=adamw" in caught.value.hint


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"train\.optimizer\.kind is 'adamw8bit'.*bitsandbytes") as caught:
        AdamW8bit().check([parameter()], torch.device("cpu"))
    AdamW8bit().check([nn.Parameter(torch.zeros(LEAST - 1))], torch.device("cpu"))  # which needs no kernel
    assert "pip install 'diffcli[lowbit]'" in caught.value.hint
    assert "train.optimizer.kind=adamw" in caught.value.hint


def test_blocks_are_those_of_the_kernels() -> None:
    sizes = [LEAST, LEAST + 1, LEAST + BLOCK]
    found = [AdamW8bit().remembered([nn.Parameter(torch.empty(n, device="meta"))]) for n in sizes]
    assert found == [2 * (n + 4 * blocks) for n, blocks in zip(sizes, (16, 17, 17), strict=True)]
