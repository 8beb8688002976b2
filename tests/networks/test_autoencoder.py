"""First stages: any size, every parameter, and nothing that does not matter. (Beside published ones: tests/interop.)"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffcli.engine.tuning import compile_network
from diffcli.networks.autoencoder import DECIDING, Autoencoder, AutoencoderConfig, FirstStageConfig
from diffcli.networks.bottlenecks import AnyBottleneck, Fsq, Kl, Vq
from tests.networks.test_bottlenecks import BOTTLENECKS
from tests.networks.test_compile import Graphs
from tests.networks.waking import normal, wake
from tests.pairing import paired


def small(mult: tuple[int, ...] = (1, 2), **options: object) -> AutoencoderConfig:
    return AutoencoderConfig(width=8, mult=mult, depth=1, latent=2, groups=4, **options)  # type: ignore[arg-type]


def built(
    config: AutoencoderConfig, bottleneck: AnyBottleneck = Kl(), channels: int = 3, vector: int = 0
) -> Autoencoder:
    return wake(config.build(channels, bottleneck, vector))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("bottleneck", "levels"), paired(BOTTLENECKS, [1, 2, 3, 4, 5]), ids=lambda v: getattr(v, "kind", None)
)
def test_any_size_that_the_downscale_divides_goes_through(bottleneck: AnyBottleneck, levels: int) -> None:
    config = small((1,) * levels)
    ours = built(config, bottleneck, channels=(1, 3, 4)[levels % 3])
    f = config.downscale
    assert f == 2 ** (levels - 1)
    x = normal(2, (1, 3, 4)[levels % 3], 2 * f, 3 * f)
    y, coded, _ = ours(x)
    assert y.shape == x.shape
    assert coded.z.shape == (2, 2, 2, 3)
    assert coded.loss.shape == (2,)
    assert ours.bottleneck.snapped(coded.z).allclose(coded.z, atol=1e-6)


@pytest.mark.parametrize("bottleneck", BOTTLENECKS, ids=lambda b: b.kind)
def test_every_parameter_gets_a_gradient(bottleneck: AnyBottleneck) -> None:
    ours = built(small(attend=(1,)), bottleneck, vector=5)
    y, coded, _ = ours(normal(2, 3, 8, 8), noise=normal(2, 2, 4, 4))
    (y.square().mean() + coded.loss.mean()).backward()
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_without_a_vector_a_first_stage_is_told_the_null() -> None:
    ours = built(small(), vector=5)
    x, vector = normal(2, 3, 8, 8), normal(2, 5, seed=3)
    assert ours.null is not None
    null = ours.null.expand(2, -1)
    assert ours(x)[0].equal(ours(x, vector=null)[0])
    assert not ours(x)[0].allclose(ours(x, vector=vector)[0])
    mixed = ours.with_null(vector, torch.tensor([True, False]))
    assert mixed.equal(torch.stack([vector[0], null[1]]))


def test_before_training_a_vector_changes_nothing() -> None:
    ours = small().build(3, Kl(), vector=5)
    x = normal(2, 3, 8, 8)
    assert ours(x)[0].equal(ours(x, vector=normal(2, 5))[0])


def test_dropout_follows_from_the_seeds_and_differs_between_the_halves() -> None:
    ours = built(small(dropout=0.5)).train()
    x, seeds = normal(2, 3, 8, 8), torch.tensor([1, 2])
    first, again, other = (ours(x, seeds=s)[0] for s in (seeds, seeds, seeds + 2))
    assert first.equal(again)
    assert not first.allclose(other)
    layers = [m.layer for m in ours.modules() if type(m).__name__ == "Dropout"]
    assert len(set(layers)) == len(layers)


def saved(config: AutoencoderConfig, x: Tensor) -> tuple[int, list[Tensor]]:
    """Bytes that autograd keeps of a forward, and the gradients of all parameters."""
    ours = built(config).train()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y, *_ = ours(x, seeds=torch.arange(len(x)))
        size = sum(kept.values())
        loss = y.square().mean()
    loss.backward()
    return size, [p.grad for p in ours.parameters() if p.grad is not None]


def test_saving_memory_changes_no_gradient_and_keeps_less() -> None:
    x = normal(2, 3, 32, 32)
    plain, gradients = saved(small(dropout=0.2), x)
    less, same = saved(small(dropout=0.2, save_memory=True), x)
    assert less < 0.5 * plain
    assert len(gradients) == len(same) > 0
    for a, b in zip(gradients, same, strict=True):
        torch.testing.assert_close(a, b)


def test_a_first_stage_compiles_to_one_graph_for_batches_of_every_size() -> None:
    torch._dynamo.reset()
    ours, graphs = built(small((1,), save_memory=True), Vq(codes=8, estimator="rotation")), Graphs()
    batches = [normal(n, 3, 8, 8) for n in (4, 3)]
    plain = [ours(x)[0] for x in batches]
    compile_network(ours, backend=graphs)
    for x, expected in zip(batches, plain, strict=True):
        torch.testing.assert_close(ours(x)[0], expected)
    assert graphs.compiled == 1
    torch._dynamo.reset()


def test_the_last_layer_gives_the_image() -> None:
    ours = built(small())
    y, *_ = ours(normal(1, 3, 8, 8))
    with torch.no_grad():
        ours.last_layer.zero_()
        assert ours(normal(1, 3, 8, 8))[0].equal(ours.decoder.head.bias[:, None, None].expand_as(y[0])[None])  # type: ignore[index]


def test_a_first_stage_is_built_again_from_what_describes_it() -> None:
    config = FirstStageConfig(network=small(), bottleneck=Fsq(levels=(3, 4)), channels=1, vector=3)
    again = FirstStageConfig.model_validate(config.model_dump(mode="json"))
    assert again == config
    shapes = {name: value.shape for name, value in config.build().state_dict().items()}
    assert {name: value.shape for name, value in again.build().state_dict().items()} == shapes


def test_patches_are_channels_of_a_smaller_image() -> None:
    """A first stage of patches is one of images whose pixels lie in 4 times as many channels."""
    ours, x = built(small(patch=2)), normal(2, 3, 8, 12)
    assert ours.downscale == 4
    plain = small().build(12, Kl())
    plain.load_state_dict(ours.state_dict())
    torch.testing.assert_close(F.pixel_unshuffle(ours(x)[0], 2), plain(F.pixel_unshuffle(x, 2))[0])
    with pytest.raises(ValueError, match="attend names 1, but the downscales of 2 levels are 2, 4; choose among 2, 4"):
        small(patch=2, attend=(1,))


def test_a_first_stage_without_a_middle_is_its_levels_alone() -> None:
    bare, whole = (small(middle_blocks=n, middle_attention=False).build(3, Kl()).state_dict() for n in (0, 2))
    assert whole.keys() - bare.keys() == {name for name in whole if ".middle." in name} != set()
    with pytest.raises(ValueError, match="middle_attention is true, but middle_blocks is 0"):
        small(middle_blocks=0)


def test_a_downscale_at_which_nothing_is_cannot_attend() -> None:
    with pytest.raises(ValueError, match="attend names 8, but the downscales of 2 levels are 1, 2; choose among 1, 2"):
        small(attend=(8,))


OTHERS = {  # another value of each key
    "patch": 2,
    "width": 16,
    "mult": (1, 3),
    "depth": 2,
    "attend": (2,),
    "middle_blocks": 0,
    "middle_attention": True,
    "latent": 3,
    "features": 5,
    "whole": (8, 8),
    "groups": 2,
    "norm_eps": 1e-3,
    "dropout": 0.5,
    "save_memory": True,
}


def test_every_key_of_a_network_is_deciding_or_shows_in_its_tensors_or_changes_no_result() -> None:
    """A new key stands here, so that digests of first stages are of all that is computed and of nothing else."""
    assert OTHERS.keys() | {"kind"} == AutoencoderConfig.model_fields.keys()
    own = AutoencoderConfig(width=8, mult=(1, 2), depth=1, latent=2, groups=4, middle_attention=False)
    plain = wake(own.build(1, Kl()).eval())
    x = normal(1, 1, 8, 8)
    for key, value in OTHERS.items():
        other = own.model_copy(update={key: value}).build(1, Kl()).eval()
        shapes = [{name: tensor.shape for name, tensor in net.state_dict().items()} for net in (plain, other)]
        if key in DECIDING or shapes[0] != shapes[1]:
            continue
        other.load_state_dict(plain.state_dict())
        assert other(x)[0].equal(plain(x)[0]), key


def test_codebooks_of_positions_are_told_from_one_as_large() -> None:
    """Both have tensors of the same shapes, and other codes are the nearest."""
    whole = small((1,), whole=(2, 2))
    own, one = (
        FirstStageConfig(network=whole, bottleneck=Vq(codes=codes, own=own), channels=3)
        for codes, own in ((4, True), (16, False))
    )
    shapes = [{name: value.shape for name, value in each.build().state_dict().items()} for each in (own, one)]
    assert shapes[0] == shapes[1]
    assert own.deciding != one.deciding
