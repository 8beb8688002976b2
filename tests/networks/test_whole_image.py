"""Images coded as wholes: at first the cosine transform of the image, dealt to tokens that have about as much to tell."""

import math

import pytest
import torch
import torch.nn.functional as F

from diffcli.config import ImageShape, UserError
from diffcli.networks.autoencoder import AutoencoderConfig
from diffcli.networks.bands import decode_in_bands
from diffcli.networks.bottlenecks import Identity, Kl, Vq
from diffcli.networks.whole_image import cosine_waves, cosines, dealt, principal
from tests.networks.waking import normal, wake


def whole(latent: int = 2, size: tuple[int, int] = (8, 8), **options: object) -> AutoencoderConfig:
    keys = {"width": 8, "mult": (1,), "depth": 1, "groups": 4, "middle_attention": False, "patch": 2} | options
    return AutoencoderConfig(latent=latent, whole=size, **keys)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(8, 8), (8, 12)])
@pytest.mark.parametrize("levels", [{}, {"patch": 1, "mult": (1, 2)}])
def test_before_training_a_latent_of_as_many_numbers_is_the_whole_image(
    size: tuple[int, int], levels: dict[str, object]
):
    ours, x = whole(12, size, **levels).build(3, Identity()), normal(2, 3, *size)
    assert ours.downscale == 2
    torch.testing.assert_close(ours(x)[0], x)


def test_before_training_fewer_numbers_keep_the_low_frequencies_and_nothing_else():
    """Of one channel, the 16 of 64 waves whose squared frequencies u^2 + v^2 are least: an orthogonal projection."""
    ours, x = whole(1).build(1, Identity()), normal(3, 1, 8, 8)
    transform = cosines(8)
    spectrum = transform @ ours(x)[0] @ transform.T
    squared = torch.arange(8)[:, None] ** 2 + torch.arange(8)[None] ** 2
    limit = squared.flatten().sort().values[15]
    expected = transform @ x @ transform.T
    kept = squared < limit
    torch.testing.assert_close(spectrum[..., kept], expected[..., kept], atol=1e-5, rtol=1e-5)
    assert spectrum[..., squared > limit].abs().max() < 1e-5


def test_what_is_common_to_the_channels_is_kept_before_what_differs():
    ours = whole(1).build(3, Identity())
    grey = normal(1, 1, 8, 8).mean((2, 3), keepdim=True).expand(1, 3, 8, 8)
    torch.testing.assert_close(ours(grey)[0], grey)


def test_waves_are_orthonormal_and_fall_in_strength():
    waves, strength, _ = cosine_waves(ImageShape(3, 8, 12), 288)
    torch.testing.assert_close(waves.flatten(1) @ waves.flatten(1).T, torch.eye(288), atol=1e-5, rtol=0)
    assert (strength.diff() <= 0).all()


@pytest.mark.parametrize("each", [8, 16])
def test_tokens_have_about_as_much_to_tell(each: int):
    """By reverse water-filling, log(strength / level) of each component; each token has as many, none of them twice."""
    strength = cosine_waves(ImageShape(3, 32, 32), 64 * each).strength
    order = dealt(strength.tolist(), 64)
    assert order.shape == (each, 64)
    assert order.flatten().sort().values.equal(torch.arange(64 * each))
    told = (strength / strength[-1]).log()[order].sum(dim=0)
    assert told.max() < 1.02 * told.min()


@pytest.mark.parametrize("n", [50, 4], ids=["many images", "fewer images than numbers"])
def test_principal_components_are_those_of_the_covariance(n: int):
    images = normal(n, 1, 2, 3) * torch.arange(1, 7).view(1, 2, 3) + 1
    waves, strength, mean = principal(images)
    rows = waves.flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(6), atol=1e-5, rtol=0)
    assert (strength.diff() <= 0).all()
    assert strength[-1] > 0
    covariance = images.flatten(1).T.cov(correction=0)
    torch.testing.assert_close(rows.T @ strength.float().diag() @ rows, covariance, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(mean, images.mean(dim=0))


def test_started_on_images_it_keeps_what_they_are_made_of():
    """Images of 8 components about a mean go through 16 numbers unchanged; others lose all that these do not have."""
    basis = torch.linalg.qr(normal(64, 8)).Q.T
    images = (normal(200, 8, seed=1) @ basis).view(-1, 1, 8, 8) + normal(1, 1, 8, 8, seed=2)
    ours = whole(1).build(1, Identity())
    assert not ours(images)[0].allclose(images, atol=1e-2)
    ours.start(images)
    torch.testing.assert_close(ours(images)[0], images, atol=1e-4, rtol=1e-4)
    other = normal(3, 1, 8, 8, seed=3)
    lost = (other - ours(other)[0]).flatten(1)
    assert (lost @ basis.T).abs().max() < 1e-4
    assert lost.norm() > 1


def test_of_large_images_no_components_are_looked_for():
    assert whole(1).build(1, Identity()).measures > 0
    assert whole(1, (80, 80)).build(1, Identity()).measures == 0


def test_every_number_of_an_image_has_a_part_in_every_token():
    ours = wake(whole(2).build(1, Identity()))
    x = normal(1, 1, 8, 8).requires_grad_()
    for token in range(16):
        gradient = torch.autograd.grad(ours.encode(x).flatten(2)[0, :, token].square().sum(), x)[0]
        assert (gradient != 0).all()


def test_every_parameter_gets_a_gradient():
    ours = wake(whole(2).build(3, Kl(), vector=5))
    y, coded, _ = ours(normal(2, 3, 8, 8), noise=normal(2, 2, 4, 4))  # type: ignore[operator]
    (y.square().mean() + coded.loss.mean()).backward()
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_log_variances_begin_at_0():
    ours = whole(2).build(3, Kl())
    assert not ours.encode(normal(2, 3, 8, 8))[:, 2:].any()


def test_a_weight_is_as_large_as_one_of_a_convolution_and_used_smaller():
    layer = whole(2).build(3, Vq(codes=8)).quant_conv
    assert layer.weight.square().mean().sqrt().item() == pytest.approx(math.sqrt(layer.scale**2 / 192), rel=1e-4)  # type: ignore[union-attr, operator]


def test_bands_of_a_decoder_give_the_whole():
    ours, z = wake(whole(2, (16, 12)).build(3, Identity())), normal(2, 2, 8, 6)
    torch.testing.assert_close(decode_in_bands(ours, z, pixels=12), ours.decode(z))  # type: ignore[arg-type, operator]


def test_an_image_of_another_size_is_refused_and_the_size_is_named():
    ours = whole(2).build(3, Identity())
    with pytest.raises(UserError, match="4x4 positions, but here are 4x6"):
        ours(normal(1, 3, 8, 12))
    with pytest.raises(UserError, match="4x4 positions, but here are 2x4"):
        ours.decode(normal(1, 2, 2, 4))
    config = whole(2)
    assert config.misfit((8, 8), "f") is None
    fault = config.misfit((16, 8), "f")
    assert fault is not None
    assert "16x8" in fault[0]
    assert "8x8" in fault[0]
    assert fault[1] == (8, 8)


def test_keys_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match=r"set task\.network\.features to null"):
        whole(2, features=4)
    with pytest.raises(ValueError, match=r"set task\.network\.whole to \[8, 8\]"):
        whole(2, (8, 7))
    with pytest.raises(UserError, match="192") as error:
        whole(13).build(3, Identity())
    assert "--set task.network.latent=12" in error.value.hint


def test_the_image_is_what_the_decoder_adds_to_what_the_layer_gives():
    ours = wake(whole(2).build(3, Identity()))
    z = normal(2, 2, 4, 4)
    h = ours.post_quant_conv(z)  # type: ignore[operator]
    expected = F.pixel_shuffle(h + ours.decoder(h), 2)  # type: ignore[operator]
    torch.testing.assert_close(ours.decode(z), expected)  # type: ignore[operator]
