"""The U-Net: any size, width and order of blocks; known answers; the published architecture."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffcli import preset as presets
from diffcli.config import ImageShape, UserError
from diffcli.networks.blocks import BLOCKS, stages
from diffcli.networks.conditioning import Conditioning, CondShape
from diffcli.networks.resampling import RESAMPLERS
from diffcli.networks.unet import UNet, UNetConfig
from tests.networks.waking import normal, wake

SMALL = UNetConfig(width=16, mult=(1, 2), blocks=("res", "attention"), attend_at=(4,), head_dim=8)
SHAPE = ImageShape(3, 8, 8)
TIME = torch.tensor([0.0, 500.0])


def run(network: UNet, x: Tensor, **slots: Tensor) -> Tensor:
    return network(x, torch.linspace(0, 999, len(x)), Conditioning(**slots))


@pytest.mark.parametrize("resample", sorted(RESAMPLERS))
@pytest.mark.parametrize("vector", [0, 6])
def test_the_untrained_network_returns_zero(resample: str, vector: int) -> None:
    network = SMALL.model_copy(update={"resample": resample}).build(SHAPE, 5, CondShape(vector=vector))
    told = {"vector": normal(2, vector)} if vector else {}
    assert torch.equal(run(network, normal(2, 3, 8, 8), **told), torch.zeros(2, 5, 8, 8))


def test_a_folded_network_is_the_plain_one_on_folded_pixels() -> None:
    torch.manual_seed(0)
    folded = wake(SMALL.model_copy(update={"fold": 2, "attend_at": (2,)}).build(SHAPE, 6, CondShape(spatial=1)))
    plain = SMALL.model_copy(update={"attend_at": (2,)}).build(ImageShape(12, 4, 4), 24, CondShape(spatial=4))
    plain.load_state_dict(folded.state_dict())
    x, spatial = normal(2, 3, 8, 8), normal(2, 1, 8, 8)
    fold = torch.nn.functional.pixel_unshuffle
    expected = run(plain, fold(x, 2), spatial=fold(spatial, 2))
    assert torch.equal(fold(run(folded, x, spatial=spatial), 2), expected)


def test_a_folded_network_takes_multiples_of_the_fold_and_is_moved_by_those_of_its_coarsest_grid() -> None:
    config = SMALL.model_copy(update={"fold": 2, "mult": (1, 1, 1)})
    assert (config.multiple, config.shift) == (2, 8)
    assert (SMALL.multiple, SMALL.shift) == (1, 1 << (len(SMALL.mult) - 1))


def test_a_fold_that_does_not_divide_the_image_is_refused() -> None:
    with pytest.raises(UserError, match="fold 3"):
        SMALL.model_copy(update={"fold": 3}).build(SHAPE, 3, CondShape())


@given(
    blocks=st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=4),
    size=st.tuples(st.integers(2, 11), st.integers(2, 11)),
    mult=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    channels=st.integers(1, 4),
    vector=st.sampled_from([0, 5]),
    resample=st.sampled_from(sorted(RESAMPLERS)),
    activation=st.sampled_from(["silu", "gelu", "leaky_relu"]),  # with no half where all is 0
    embed=st.sampled_from(["scale_shift", "add"]),
)
@settings(max_examples=8, deadline=None)
def test_any_size_channels_and_order_of_blocks_work_and_every_parameter_receives_a_gradient(
    blocks: list[str],
    size: tuple[int, int],
    mult: list[int],
    channels: int,
    vector: int,
    resample: str,
    activation: str,
    embed: str,
) -> None:
    attends = any(BLOCKS[name].heads for name in blocks)
    config = UNetConfig(
        width=6,
        mult=tuple(mult),
        blocks=tuple(blocks),
        attend_at=(8,) if attends else (),
        head_dim=2,
        resample=resample,
        activation=activation,
        embed=embed,
        groups=2,  # with one channel a group, a norm takes away the bias before it: its gradient would be rounding
    )
    reads = 3 if any(BLOCKS[name].tokens for name in blocks) else 0
    network = wake(config.build(ImageShape(channels, 8, 8), 2 * channels, CondShape(vector=vector, tokens=reads)))
    told = {"vector": normal(2, vector, seed=1)} if vector else {}
    if reads:
        told["tokens"] = normal(2, 4, reads, seed=3)
    out = run(network, normal(2, channels, *size), **told)
    assert out.shape == (2, 2 * channels, *size)
    (out * normal(*out.shape, seed=2)).sum().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without, without


@pytest.mark.parametrize(
    "blocks", [("attention",), ("attention", "res"), ("res", "attention", "attention", "res"), ("res",)]
)
def test_one_image_alone_gives_what_it_gives_in_a_batch(blocks: tuple[str, ...]) -> None:
    config = SMALL.model_copy(update={"blocks": blocks, "attend_at": (4,) if "attention" in blocks else ()})
    network = wake(config.build(SHAPE, 3, CondShape(vector=4))).eval()
    x, vector, time = normal(3, 3, 8, 8), normal(3, 4, seed=1), torch.tensor([1.0, 500.0, 999.0])
    whole = network(x, time, Conditioning(vector=vector))
    alone = network(x[1:2], time[1:2], Conditioning(vector=vector[1:2]))
    torch.testing.assert_close(whole[1:2], alone, atol=1e-5, rtol=1e-5)


def test_channels_last_gives_the_same() -> None:
    network, x = wake(SMALL.build(SHAPE, 3, CondShape())), normal(2, 3, 8, 8)
    plain = network(x, TIME)
    last = network.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last), TIME)
    torch.testing.assert_close(last, plain, atol=1e-5, rtol=1e-5)


def test_the_output_depends_on_time_and_on_each_condition() -> None:
    network = wake(SMALL.build(SHAPE, 3, CondShape(vector=4, spatial=2)))
    x, vector, spatial = normal(2, 3, 8, 8), normal(2, 4, seed=1), normal(2, 2, 8, 8, seed=2)
    told = network(x, TIME, Conditioning(vector=vector, spatial=spatial))
    assert not torch.allclose(network(x, TIME + 300, Conditioning(vector=vector, spatial=spatial)), told)
    assert not torch.allclose(network(x, TIME, Conditioning(vector=-vector, spatial=spatial)), told)
    assert not torch.allclose(network(x, TIME, Conditioning(vector=vector, spatial=-spatial)), told)


def test_nearby_times_give_nearby_outputs() -> None:
    network, x = wake(SMALL.build(SHAPE, 3, CondShape())), normal(1, 3, 8, 8).expand(4, -1, -1, -1)
    out = network(x, torch.tensor([500.0, 501.0, 900.0, 0.0]))
    near, *far = ((out[i] - out[0]).norm() for i in (1, 2, 3))
    assert all(near < d / 4 for d in far)


def test_bf16_autocast_stays_near_float32() -> None:
    network, x = wake(SMALL.build(SHAPE, 3, CondShape())), normal(2, 3, 8, 8)
    full = network(x, TIME)
    with torch.autocast("cpu", torch.bfloat16):
        low = network(x, TIME)
    assert low.dtype == torch.bfloat16
    assert (low.float() - full).norm() < 0.03 * full.norm()


def test_dropout_follows_from_each_samples_seed() -> None:
    network = wake(SMALL.model_copy(update={"dropout": 0.3}).build(SHAPE, 3, CondShape()))
    x, seeds = normal(1, 3, 8, 8).expand(3, -1, -1, -1), torch.tensor([7, 8, 7])
    out = network(x, torch.zeros(3), Conditioning(seeds=seeds))
    torch.testing.assert_close(out[0], out[2])
    assert not torch.allclose(out[0], out[1])
    quiet = network.eval()(x, torch.zeros(3))
    torch.testing.assert_close(quiet[0], quiet[1])


def test_a_state_dict_from_one_network_fills_another_built_on_meta() -> None:
    network, x = wake(SMALL.build(SHAPE, 3, CondShape())), normal(2, 3, 8, 8)
    with torch.device("meta"):
        empty = SMALL.build(SHAPE, 3, CondShape())
    empty.load_state_dict(network.state_dict(), assign=True)
    assert torch.equal(empty(x, TIME), network(x, TIME))


def test_stages_start_at_every_block_that_can_change_the_width() -> None:
    assert stages(("res", "attention", "res", "attention")) == [["res", "attention"], ["res", "attention"]]
    assert stages(("attention", "res", "attention")) == [["attention"], ["res", "attention"]]
    assert stages(("attention",)) == [["attention"]]


@pytest.mark.parametrize(
    ("change", "cond", "words"),
    [
        ({"attend_at": (16, 5)}, CondShape(), ["attend_at", "16", "8, 4"]),
        ({"head_dim": 64}, CondShape(), ["head_dim", "64", "32", "head_dim=32"]),
        ({"head_dim": 12}, CondShape(), ["head_dim", "12", "head_dim=8"]),
        ({"mult": (1, 0)}, CondShape(), ["mult", "[1, 0]"]),
        (
            {"middle": ("res", "patch_attention"), "blocks": ("res",), "attend_at": (), "head_dim": 12},
            CondShape(),
            ["head_dim", "patch_attention"],
        ),
        (
            {"middle": ("cross_attention",), "blocks": ("res",), "attend_at": (), "head_dim": 12},
            CondShape(tokens=3),
            ["head_dim", "cross_attention"],
        ),
        (
            {"middle": ("spatial_transformer",), "blocks": ("res",), "attend_at": (), "head_dim": 12},
            CondShape(tokens=3),
            ["12", "spatial_transformer"],
        ),
        (
            {"middle": ("patch_attention",), "patch": 4},
            CondShape(),
            ["network.patch is 4", "patch_attention", "below 4"],
        ),
        (
            {"blocks": ("res", "patch_attention"), "attend_at": (8,), "middle": ("patch_attention",), "patch": 3},
            CondShape(),
            ["network.patch is 3", "8x8", "1, 2; or leave patch_attention out"],
        ),
        (
            {"blocks": ("res", "patch_attention"), "attend_at": ()},
            CondShape(),
            ["blocks names patch_attention", "attend_at", "[]", "8, 4"],
        ),
        (
            {"blocks": ("res", "class_attention")},
            CondShape(),
            ["attend_at is [4]", "'class_attention'", "attend_at=[]"],
        ),
        ({"middle": (), "blocks": ("attention",), "resample": "conv"}, CondShape(), ["['attention']", "time", "res,"]),
        ({"embed": "add"}, CondShape(), ["embed is 'add'", "32 channels", "scale_shift"]),
        ({}, CondShape(tokens=77), ["tokens 77 wide", "no block", "cross_attention or spatial_transformer"]),
        (
            {"blocks": ("res", "cross_attention")},
            CondShape(),
            ["network.blocks", "cross_attention", "task.conditioners"],
        ),
        ({"middle": ("spatial_transformer",)}, CondShape(vector=4), ["middle", "spatial_transformer", "tokens"]),
        ({"blocks": ("res",), "attend_at": ()}, CondShape(tokens=3), ["no block", "attend_at"]),
    ],
)
def test_what_cannot_be_built_is_the_users_error(change: dict, cond: CondShape, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        SMALL.model_copy(update=change).build(SHAPE, 3, cond)
    told = f"{caught.value.problem}\n{caught.value.hint}"
    assert not [word for word in words if word not in told], told


def test_patches_must_tile_both_sides_of_the_training_size_and_may_leave_a_rest_at_others() -> None:
    config = SMALL.model_copy(update={"blocks": ("res", "patch_attention"), "middle": ("res",)})
    network = wake(config.build(ImageShape(3, 4, 8), 3, CondShape()))  # maps of 2x4
    assert run(network, normal(2, 3, 5, 11)).isfinite().all()  # maps of 3x6
    with pytest.raises(UserError, match=r"patch is 2, .* 4x3 at the training size\n.*maps: 1;"):
        config.build(ImageShape(3, 6, 8), 3, CondShape())


def test_the_preset_of_blocks_is_imagenet64_in_all_but_its_blocks() -> None:
    plain, blocks = (presets.load(name).model_dump() for name in ("imagenet64", "imagenet64-blocks"))
    assert blocks["task"]["network"]["blocks"] == ("res", "res", "class_attention", "channel_attention")
    assert blocks["task"]["learn_variance"]
    for tree in (plain, blocks):
        del tree["name"], tree["task"]["network"]["blocks"], tree["task"]["network"]["attend_at"]
    assert plain == blocks


def test_an_added_embedding_and_another_activation_are_diffusers_with_its_weights() -> None:
    check_against_diffusers(embed="add", activation="gelu")


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_every_block_may_stand_alone_and_in_the_middle_and_starts_at_zero(name: str) -> None:
    at = (4,) if BLOCKS[name].heads else ()
    config = SMALL.model_copy(update={"blocks": (name,), "middle": (name, name), "attend_at": at})
    if BLOCKS[name].hears:  # else residual resampling is what hears the time
        config = config.model_copy(update={"resample": "pool"})
    reads = 3 if BLOCKS[name].tokens else 0
    network = config.build(SHAPE, 3, CondShape(vector=4, tokens=reads))
    told = {"vector": normal(2, 4, seed=1)} | ({"tokens": normal(2, 5, reads, seed=2)} if reads else {})
    x = normal(2, 3, 7, 12)
    assert torch.equal(run(network, x, **told), torch.zeros_like(x))
    assert len(network.middle.blocks) == 2
    changed = run(wake(network), x, **told | {"vector": -told["vector"]}) - run(network, x, **told)
    assert changed.abs().max() > 1e-4


def test_the_middle_may_be_empty() -> None:
    network = SMALL.model_copy(update={"middle": ()}).build(SHAPE, 3, CondShape())
    assert not [name for name in network.state_dict() if name.startswith("middle")]
    assert wake(network)(normal(2, 3, 8, 8), TIME).isfinite().all()


def test_the_network_of_imagenet64_has_the_shape_that_was_published() -> None:
    """Improved DDPM's ImageNet 64: 128 channels x (1, 2, 3, 4), three blocks a level, attention at 16 and 8."""
    config = UNetConfig(width=128, mult=(1, 2, 3, 4), blocks=("res", "attention") * 3, attend_at=(16, 8))
    with torch.device("meta"):
        network = config.build(ImageShape(3, 64, 64), 6, CondShape(vector=512))
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    assert 115 < millions < 130  # 121 M in Nichol & Dhariwal 2021, table 8


def test_equal_to_diffusers_with_its_weights() -> None:
    check_against_diffusers(embed="scale_shift", activation="silu")


def check_against_diffusers(embed: str, activation: str) -> None:
    """The same architecture, weight for weight; diffusers leaves out the norm of the middle attention, so give it one."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=16,
        resnet_time_scale_shift="scale_shift" if embed == "scale_shift" else "default",
        act_fn=activation,
    )
    theirs.mid_block.attentions[0].group_norm = torch.nn.GroupNorm(32, 64)
    wake(theirs).eval()
    config = UNetConfig(
        width=32,
        mult=(1, 2),
        blocks=("res", "attention") * 2,
        attend_at=(4,),
        head_dim=16,
        resample="conv",
        embed=embed,
        activation=activation,
    )
    ours = config.build(SHAPE, 3, CondShape()).eval()
    adopt(ours, theirs)
    x, time = normal(2, 3, 8, 8), torch.tensor([3, 777])
    with torch.no_grad():
        torch.testing.assert_close(ours(x, time), theirs(x, time).sample, atol=2e-5, rtol=2e-5)


def adopt(ours: UNet, theirs: torch.nn.Module) -> None:
    """Copies every weight of a diffusers UNet2DModel."""
    copy = [
        (ours.embedding.time[0], theirs.time_embedding.linear_1),
        (ours.embedding.time[2], theirs.time_embedding.linear_2),
        (ours.stem, theirs.conv_in),
        (ours.norm, theirs.conv_norm_out),
        (ours.head, theirs.conv_out),
    ]
    sides = [*zip(ours.down, theirs.down_blocks, strict=True), *zip(ours.up, theirs.up_blocks, strict=True)]
    for mine, other in sides:
        resampler = getattr(other, "downsamplers", None) or getattr(other, "upsamplers", None)
        if mine.resample is not None:
            copy.append((mine.resample.conv, resampler[0].conv))
        attentions = getattr(other, "attentions", None) or [None] * len(other.resnets)
        for stage, res, attention in zip(mine.stages, other.resnets, attentions, strict=True):
            copy += [
                pair for block, part in zip(stage.blocks, (res, attention), strict=False) for pair in match(block, part)
            ]
    middle = theirs.mid_block
    for block, part in zip(
        ours.middle.blocks, (middle.resnets[0], middle.attentions[0], middle.resnets[1]), strict=True
    ):
        copy += match(block, part)
    with torch.no_grad():
        for mine, other in copy:
            mine.weight.copy_(other.weight.view(mine.weight.shape))
            mine.bias.copy_(other.bias)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def match(block: torch.nn.Module, part: torch.nn.Module) -> list[tuple]:
    """Pairs of (our layer, diffusers' layer) of a residual or attention block."""
    if hasattr(block, "conv1"):
        pairs = [(block.norm1, part.norm1), (block.conv1, part.conv1), (block.modulate, part.time_emb_proj)]
        pairs += [(block.norm2, part.norm2), (block.conv2, part.conv2)]
        return pairs if part.conv_shortcut is None else [*pairs, (block.skip, part.conv_shortcut)]
    qkv, three = torch.nn.Linear(1, 1), (part.to_q, part.to_k, part.to_v)
    for name in ("weight", "bias"):
        by_head = [getattr(layer, name).unflatten(0, (block.heads, -1)) for layer in three]
        setattr(qkv, name, torch.nn.Parameter(torch.stack(by_head, dim=1).flatten(0, 2)))
    return [(block.norm, part.group_norm), (block.qkv, qkv), (block.out, part.to_out[0])]
