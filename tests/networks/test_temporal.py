"""Layers over time: the network of images on every frame at first, whatever the blocks, and what they may and may not do."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from diffcli.config import UserError
from diffcli.engine.tuning import compile_network
from diffcli.networks import temporal
from diffcli.networks.blocks import BLOCKS
from diffcli.networks.conditioning import Conditioning, CondShape
from diffcli.networks.dit import DiTConfig
from diffcli.networks.lora import LoraConfig, attach
from diffcli.networks.resampling import RESAMPLERS
from diffcli.networks.temporal import FARTHEST, Across, ConvTemporalConfig, FrameAttention, TemporalConfig
from diffcli.networks.unet import UNetConfig
from tests.networks.waking import normal, wake

COND = CondShape(vector=5, tokens=6, spatial=1)
UNET = UNetConfig(
    width=12,
    mult=(1, 2),
    blocks=("res", "attention"),
    middle=("res", "spatial_transformer"),
    attend_at=(4,),
    head_dim=4,
)
DIT = DiTConfig(patch=2, width=16, depth=2, heads=2)
OFF = {"attention": False, "convolution": None}
NETWORKS: dict[str, tuple[UNetConfig | DiTConfig, TemporalConfig]] = {
    "unet": (UNET, ConvTemporalConfig()),
    "unet, full, rotary": (UNET, ConvTemporalConfig(convolution="full", positions="rotary", heads=1)),
    "dit": (DIT, TemporalConfig()),
    "dit, rotary": (
        DIT.model_copy(update={"positions": "rotary", "qk_norm": True}),
        TemporalConfig(positions="rotary", heads=2),
    ),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def of_images(config: UNetConfig | DiTConfig) -> nn.Module:
    return wake(config.build((3, 8, 8), 3, COND))


def of_clips(config: UNetConfig | DiTConfig, over: TemporalConfig, images: nn.Module | None = None) -> nn.Module:
    """The network with layers over time, as they begin, and in all else the weights of one of images."""
    network = config.model_copy(update={"temporal": over}).build((3, 4, 8, 8), 3, COND)
    if images is not None:
        missing, unexpected = network.load_state_dict(images.state_dict(), strict=False)
        assert not unexpected
        assert missing
        assert all(".temporal." in name for name in missing)
    return network


def clip(frames: int, n: int = 2) -> Tensor:
    return normal(n, 3, 17, 8, 8, seed=7)[:, :, :frames]


def told(frames: int, n: int = 2) -> Conditioning:
    mask = torch.arange(4) < torch.tensor([[3], [4]])[:n]
    spatial = normal(n, 1, 17, 8, 8, seed=3)[:, :, :frames]
    return Conditioning(normal(n, 5, seed=1), normal(n, 4, 6, seed=2), spatial, torch.arange(n) + 7, mask)


def frame(cond: Conditioning, i: int) -> Conditioning:
    assert cond.spatial is not None
    return cond._replace(spatial=cond.spatial[:, :, i])


TIME = torch.tensor([10.0, 700.0])


def frame_by_frame(images: nn.Module, x: Tensor, cond: Conditioning) -> Tensor:
    return torch.stack([images(x[:, :, i], TIME, frame(cond, i)) for i in range(x.shape[2])], dim=2)


def train_one_step(network: nn.Module, x: Tensor, cond: Conditioning) -> None:
    """A step of gradient descent on a loss that is not the same for every frame."""
    y = network(x, TIME, cond)
    (y * normal(*y.shape, seed=9)).sum().backward()
    with torch.no_grad():
        for p in network.parameters():
            p.sub_(0.1 * (torch.zeros_like(p) if p.grad is None else p.grad))


@every_network
@pytest.mark.parametrize("frames", [1, 8])
def test_at_first_a_clip_goes_through_it_as_its_frames_through_the_network_of_images(name: str, frames: int) -> None:
    config, over = NETWORKS[name]
    images = of_images(config).eval()
    clips = of_clips(config, over, images).eval()
    x, cond = clip(frames), told(frames)
    with torch.no_grad():
        torch.testing.assert_close(clips(x, TIME, cond), frame_by_frame(images, x, cond), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "dit"])
def test_compiled_it_is_the_same(name: str) -> None:
    config, over = NETWORKS[name]
    images = of_images(config).eval()
    clips, woken = of_clips(config, over, images).eval(), wake(of_clips(config, over)).eval()
    with torch.no_grad():
        as_it_is = {frames: woken(clip(frames), TIME, told(frames)) for frames in (1, 2, 8, 16)}
        torch._dynamo.reset()
        compile_network(clips)
        compile_network(woken)
        for frames in (1, 2, 8, 16):
            x, cond = clip(frames), told(frames)
            torch.testing.assert_close(clips(x, TIME, cond), frame_by_frame(images, x, cond), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(woken(x, TIME, cond), as_it_is[frames], atol=1e-5, rtol=1e-5)
    torch._dynamo.reset()


@every_network
def test_whatever_it_has_learned_an_image_is_a_clip_of_one_frame(name: str) -> None:
    config, over = NETWORKS[name]
    clips = wake(of_clips(config, over)).eval()
    images = of_images(config).eval()
    images.load_state_dict({key: value for key, value in clips.state_dict().items() if ".temporal." not in key})
    x, cond = clip(1), told(1)
    alone = images(x[:, :, 0], TIME, frame(cond, 0))
    assert torch.equal(clips(x, TIME, cond)[:, :, 0], alone)
    assert torch.equal(clips(x[:, :, 0], TIME, frame(cond, 0)), alone)


@every_network
def test_with_layers_over_time_off_permuted_frames_give_permuted_output_and_else_they_do_not(name: str) -> None:
    config, over = NETWORKS[name]
    order, x, cond = torch.tensor([3, 0, 4, 1, 2]), clip(5), told(5)
    assert cond.spatial is not None
    other = cond._replace(spatial=cond.spatial[:, :, order])
    keys = OFF if isinstance(over, ConvTemporalConfig) else {"attention": False}
    for which, same in ((over.model_copy(update=keys), True), (over, False)):
        network = wake(of_clips(config, which)).eval()
        permuted = network(x[:, :, order], TIME, other)
        assert torch.allclose(permuted, network(x, TIME, cond)[:, :, order], atol=1e-5) == same


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_of_the_registry_sees_time_and_begins_as_it_is_for_images(block: str) -> None:
    kind = BLOCKS[block]
    keys: dict[str, Any] = {
        "blocks": (block,),
        "middle": ("vgg",),
        "attend_at": (8,) if kind.heads else (),
        "mult": (1,),
    }
    cond = CondShape(vector=5, tokens=6 if kind.tokens else 0)
    config = UNET.model_copy(update=keys | {"groups": 4})
    images = wake(config.build((3, 8, 8), 3, cond))
    over = ConvTemporalConfig(attention=kind.mixes)
    clips = config.model_copy(update={"temporal": over}).build((3, 4, 8, 8), 3, cond)
    clips.load_state_dict(images.state_dict(), strict=False)
    x, given = clip(3), told(3)._replace(spatial=None)
    given = given if kind.tokens else given._replace(tokens=None, mask=None)
    each = torch.stack([images(x[:, :, i], TIME, given) for i in range(3)], dim=2)
    torch.testing.assert_close(clips(x, TIME, given), each, atol=1e-5, rtol=1e-5)
    followed = [
        name for name, _ in clips.named_parameters() if ".temporal." in name and name.startswith(("down", "up"))
    ]
    assert bool(followed) == (kind.changes_width or kind.mixes)
    y = wake(clips)(x, TIME, given)
    (y * normal(*y.shape, seed=9)).sum().backward()
    size = {n: 0.0 if p.grad is None else float(p.grad.abs().max()) for n, p in clips.named_parameters()}
    assert not [n for n, most in size.items() if most < 1e-7 * max(size.values())], size


@pytest.mark.parametrize("resample", sorted(RESAMPLERS))
def test_what_resamples_with_a_convolution_sees_time(resample: str) -> None:
    config = UNET.model_copy(update={"resample": resample, "temporal": ConvTemporalConfig()})
    network = config.build((3, 4, 8, 8), 3, COND)
    there = [name for name, _ in network.named_parameters() if "resample.temporal" in name]
    assert bool(there) == (resample != "pool")


@every_network
def test_every_layer_over_time_is_the_identity_at_first_and_learns_from_the_second_step_on(name: str) -> None:
    config, over = NETWORKS[name]
    clips = of_clips(config, over, of_images(config))
    layers = [m for m in clips.modules() if isinstance(m, temporal.LAYERS)]
    assert layers
    seen: list[bool] = []
    hooks = [m.register_forward_hook(lambda _, inputs, y: seen.append(torch.equal(inputs[0], y))) for m in layers]
    train_one_step(clips, clip(4), told(4))
    assert seen == [True] * len(layers)
    for hook in hooks:
        hook.remove()
    first = {id(p): p.grad is not None and bool(p.grad.any()) for p in clips.parameters()}
    assert all(any(first[id(p)] for p in layer.parameters()) for layer in layers)
    clips.zero_grad()
    train_one_step(clips, clip(4), told(4))
    still = [n for n, p in clips.named_parameters() if ".temporal." in n and (p.grad is None or not p.grad.any())]
    assert not still


@every_network
def test_an_image_teaches_no_layer_over_time_and_a_clip_every_parameter(name: str) -> None:
    config, over = NETWORKS[name]
    clips = wake(of_clips(config, over))
    y = clips(clip(1), TIME, told(1))
    (y * normal(*y.shape, seed=9)).sum().backward()
    assert {n for n, p in clips.named_parameters() if p.grad is None} == {
        n for n, _ in clips.named_parameters() if ".temporal." in n
    }
    clips.zero_grad()
    y = clips(clip(3), TIME, told(3))
    (y * normal(*y.shape, seed=9)).sum().backward()
    assert not [n for n, p in clips.named_parameters() if p.grad is None or not p.grad.any()]


class Sizes(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that is made."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else [made]:
            if isinstance(each, Tensor):
                self.largest = max(self.largest, each.numel())
        return made


@every_network
def test_no_layer_makes_a_square_of_all_positions_of_a_clip(name: str) -> None:
    """Also where torch makes all products of queries and keys, as it does for a bias that learns."""
    config, over = NETWORKS[name]
    clips = wake(of_clips(config, over))
    x, cond, positions = clip(17, n=1), told(17, n=1), 17 * 4 * 4  # of the smallest map
    with sdpa_kernel(SDPBackend.MATH), Sizes() as sizes:
        clips(x, TIME[:1], cond).sum().backward()
    assert 0 < sizes.largest < positions**2


@every_network
def test_a_clip_does_not_depend_on_its_batch_and_in_bf16_stays_near_float32(name: str) -> None:
    config, over = NETWORKS[name]
    clips = wake(of_clips(config.model_copy(update={"dropout": 0.3}), over))
    x, cond = clip(4), told(4)
    whole = clips(x, TIME, cond)
    torch.testing.assert_close(clips(x[1:], TIME[1:], cond.rows(1, 2)), whole[1:], atol=1e-5, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        low = clips(x, TIME, cond)
    assert (low.float() - whole).norm() < 0.05 * whole.norm()


@every_network
def test_a_frame_drops_what_it_drops_in_a_clip_of_any_length_and_no_two_frames_drop_alike(name: str) -> None:
    config, over = NETWORKS[name]
    keys = OFF if isinstance(over, ConvTemporalConfig) else {"attention": False}
    loud = config.model_copy(update={"dropout": 0.5})
    clips = wake(of_clips(loud, over.model_copy(update=keys)))
    still = normal(2, 3, 1, 8, 8).expand(-1, -1, 6, -1, -1)
    cond = told(1)
    assert cond.spatial is not None

    def drawn(frames: int) -> Tensor:
        spatial = cond.spatial.expand(-1, -1, frames, -1, -1)
        return clips(still[:, :, :frames], TIME, cond._replace(spatial=spatial))

    long = drawn(6)
    for frames in (1, 2, 5):
        torch.testing.assert_close(drawn(frames), long[:, :, :frames], atol=1e-5, rtol=1e-5)
    assert not any(torch.allclose(long[:, :, 0], long[:, :, i], atol=1e-3) for i in range(1, 6))


@pytest.mark.parametrize("name", ["unet", "unet, full, rotary"])
def test_channels_last_gives_the_same(name: str) -> None:
    network, x, cond = wake(of_clips(*NETWORKS[name])).eval(), clip(3), told(3)
    plain = network(x, TIME, cond)
    last = network.to(memory_format=torch.channels_last)(x, TIME, cond)
    torch.testing.assert_close(last, plain, atol=1e-5, rtol=1e-5)


@every_network
def test_saving_memory_changes_no_gradient(name: str) -> None:
    config, over = NETWORKS[name]
    found = []
    for save in (False, True):
        clips = wake(of_clips(config.model_copy(update={"save_memory": save, "dropout": 0.3}), over))
        clips(clip(3), TIME, told(3)).square().sum().backward()
        found.append([p.grad for p in clips.parameters()])
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*found, strict=True))


def test_attention_takes_rows_in_portions_without_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    clips, x, cond = wake(of_clips(*NETWORKS["dit"])).eval(), clip(3), told(3)
    whole = clips(x, TIME, cond)
    monkeypatch.setattr(temporal, "ROWS", 5)
    torch.testing.assert_close(clips(x, TIME, cond), whole, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("distance", [-2, 0, 1, 3])
def test_the_bias_is_that_of_a_distance_in_frames_in_clips_of_any_length(distance: int) -> None:
    layer = wake(FrameAttention(4, 1, 4, "relative"))
    with torch.no_grad():
        assert layer.bias is not None
        layer.bias.zero_()[:, FARTHEST + distance] = 1e4
        layer.out.weight.copy_(torch.eye(4))
        layer.out.bias.zero_()
        for frames in (5, 40):
            x = normal(2, frames, 4)
            values = layer.qkv(x)[..., 8:]
            read = layer(x, temporal.Frames(frames))
            there = range(max(0, -distance), min(frames, frames - distance))
            for i in there:
                torch.testing.assert_close(read[:, i], values[:, i + distance])


def test_rotary_products_depend_on_the_distance_alone() -> None:
    turn = temporal.turning(9, 8, torch.device("cpu"))
    q, k = (temporal.rotate(normal(1, 8, seed=seed).expand(9, 8), turn) for seed in (1, 2))
    products = q @ k.T
    for distance in range(-8, 9):
        along = products.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along))


@pytest.mark.parametrize("many", [32, 4])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_convolution_of_each_channel_is_the_one_of_torch_and_so_is_its_gradient(
    many: int, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(temporal, "MANY", many)
    monkeypatch.setattr(temporal, "LARGE", many)
    x = normal(2 * 5, 3, 2, 4).double().contiguous(memory_format=layout).requires_grad_()
    taps = normal(3, 3, seed=2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, taps: Across.apply(x, taps, 5), (x, taps))
    lines = x.detach().unflatten(0, (2, 5)).permute(0, 3, 4, 2, 1).flatten(0, 2)  # (B H W, C, T)
    each = torch.nn.functional.conv1d(lines, taps.detach().T[:, None], padding=1, groups=3)
    expected = each.unflatten(0, (2, 2, 4)).permute(0, 4, 3, 1, 2).flatten(0, 1)
    torch.testing.assert_close(Across.apply(x, taps, 5).detach(), expected)


def test_low_rank_changes_of_attention_reach_that_over_time() -> None:
    clips = of_clips(*NETWORKS["unet"])
    names = attach({"network": clips}, LoraConfig(rank=1))
    assert [n for n in names if ".temporal." in n]
    wake(clips)
    clips(clip(2), TIME, told(2)).square().sum().backward()
    assert all(clips.get_parameter(f"{n.removeprefix('network.')}.lora.up.weight").grad is not None for n in names)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"blocks": ("res",), "attend_at": (), "middle": ("res",), "temporal": ConvTemporalConfig()},
            "attention=false",
        ),
        ({"middle": (), "head_dim": 3, "temporal": ConvTemporalConfig(positions="rotary")}, "positions=relative"),
    ],
)
def test_attention_that_finds_no_place_or_cannot_be_turned_is_refused(change: dict[str, Any], words: str) -> None:
    config = UNET.model_copy(update=change)
    with pytest.raises(UserError, match=r"task\.network\.temporal") as caught:
        config.build((3, 4, 8, 8), 3, CondShape())
    assert words in caught.value.hint


@pytest.mark.parametrize("config", [UNET, DIT])
def test_layers_over_time_and_clips_occur_together(config: UNetConfig | DiTConfig) -> None:
    over = config.model_copy(update={"temporal": ConvTemporalConfig()})
    config.check_axes((3, 8, 8))
    over.check_axes((3, 4, 8, 8))
    for which, shape, words in ((config, (3, 4, 8, 8), "temporal={}"), (over, (3, 8, 8), "temporal=null")):
        with pytest.raises(UserError, match=r"task\.field names") as caught:
            which.check_axes(shape)
        assert words in caught.value.hint


def test_one_key_makes_a_network_of_clips_of_any_preset() -> None:
    made = UNetConfig.model_validate({"temporal": {}})
    assert made.temporal == ConvTemporalConfig()
    assert DiTConfig.model_validate({"temporal": {"positions": "rotary"}}).temporal == TemporalConfig(
        positions="rotary"
    )
