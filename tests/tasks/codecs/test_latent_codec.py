import pytest
import torch

from diffcli.config import UserError
from diffcli.fields import FieldSpec
from diffcli.noise import Domain, Noise
from diffcli.tasks.codecs.latent import LatentCodec, LatentCodecConfig
from tests.latents import random_stage, stage_config
from tests.ranks import Alone

CPU = torch.device("cpu")
IMAGE = FieldSpec("image", (1, 8, 8))
KINDS = {
    "none": {"bottleneck": {"kind": "none"}},
    "kl": {},
    "vq": {"bottleneck": {"kind": "vq", "codes": 5}},
    "fsq": {"bottleneck": {"kind": "fsq", "levels": [5, 4, 3]}},
}


def codec(seed: int = 0, posterior: bool = True, tile: int = 512, **keys) -> LatentCodec:
    stage = random_stage(seed, **keys)
    return LatentCodec(stage, stage_config(**keys).channels, posterior, tile)


def pictures(n: int, side: int = 8) -> torch.Tensor:
    return torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(n)) * 2 - 1


def measured(**keys) -> tuple[LatentCodec, torch.Tensor]:
    """A codec that measured pictures, and what it then encodes them to."""
    made, images = codec(**keys), pictures(40)
    made.measure((made.encode(part) for part in images.split(7)), Alone())
    return made, made.encode(images)


@pytest.mark.parametrize("kind", ["none", "kl"])
def test_after_measuring_every_channel_has_mean_0_and_deviation_1(kind):
    _, z = measured(**KINDS[kind])
    assert z.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert (z.std(dim=(0, 2, 3)) - 1).abs().max() < 0.01


@pytest.mark.parametrize("kind", ["vq", "fsq"])
def test_after_measuring_latents_of_codes_have_mean_0_and_together_variance_1_by_one_scale(kind):
    made, z = measured(**KINDS[kind])
    assert z.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert abs(float(z.var(dim=(0, 2, 3)).mean()) - 1) < 0.01
    assert z.var(dim=(0, 2, 3)).std() > 0.02, "channels differ, so that a scale for each would be another one"
    assert made.scale.equal(made.scale[:1].expand(3))


@pytest.mark.parametrize("keys", KINDS.values(), ids=KINDS.keys())
def test_decoding_what_was_encoded_is_the_reconstruction_of_the_first_stage(keys):
    made, images = codec(**keys), pictures(5)
    made.shift.copy_(torch.tensor([1.0, -2, 0.5]))
    made.scale.copy_(torch.tensor([0.5, 3, 2]))
    expected = made.first_stage(images)[0]
    assert torch.allclose(made.decode(made.encode(images)), expected, atol=1e-5)


def test_latents_of_codes_are_diffused_unquantised_and_decoded_quantised():
    made, images = codec(**KINDS["vq"]), pictures(4)
    z = made.encode(images)
    assert z.equal(made.first_stage.encode(images)), "not one of five codes"
    nudged = z + 1e-4
    assert made.decode(nudged).equal(made.decode(z)), "both have the same nearest codes"


def test_a_posterior_is_drawn_by_the_stream_of_each_sample_and_the_mode_where_there_is_none():
    made, images = codec(), pictures(1).expand(3, -1, -1, -1)
    first, again, other = made.encode(images, Noise([7, 7, 8], CPU, Domain.POSTERIOR))
    assert first.equal(again)
    assert not first.equal(other)
    mode = made.encode(images)
    assert mode.equal(codec(posterior=False).encode(images, Noise([1, 2, 3], CPU, Domain.POSTERIOR)))
    many = made.encode(pictures(1).expand(4000, -1, -1, -1), Noise(range(4000), CPU, Domain.POSTERIOR))
    deviation = (made.stored(pictures(1))[0, 3:] / 2).exp()
    assert torch.allclose(many.mean(0), mode[0], atol=5 * float(deviation.max()) / 4000**0.5)
    assert torch.allclose(many.std(0), deviation, rtol=0.06)


def test_what_is_stored_gives_the_same_latent_also_in_half_precision():
    made, images = codec(), pictures(3)
    made.scale.fill_(2.0)
    noise = lambda: Noise([1, 2, 3], CPU, Domain.POSTERIOR)  # noqa: E731
    assert made.restored(made.stored(images), noise()).equal(made.encode(images, noise()))
    assert torch.allclose(made.restored(made.stored(images).half(), noise()), made.encode(images, noise()), atol=0.01)


def test_images_above_the_tile_are_decoded_in_bands_to_the_same_picture():
    z = torch.randn(2, 3, 24, 20, generator=torch.Generator().manual_seed(3))
    whole, banded = codec().decode(z), codec(tile=16).decode(z)
    assert not banded.equal(whole), "it is computed otherwise"
    assert torch.allclose(banded, whole, atol=1e-5)


def test_latents_have_no_bounds_and_no_gradient():
    made = codec()
    assert made.bounds is None
    assert not made.encode(pictures(2).requires_grad_()).requires_grad


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (FieldSpec("image", (3, 8, 8)), ("of 1 channels", "have 3", "data.channels=1")),
        (FieldSpec("image", (1, 7, 8)), ("the downscale 2 of the first stage", "7x8", "data.size=8")),
        (FieldSpec("mask", (1, 8, 8)), ("task.codec is latent", "kind mask")),
    ],
    ids=["channels", "size", "mask"],
)
def test_what_a_first_stage_cannot_take_is_refused_by_name(spec, words):
    with pytest.raises(UserError) as caught:
        LatentCodecConfig(first_stage=stage_config()).build(spec)
    assert all(word in str(caught.value) for word in words)


def test_of_whole_images_a_first_stage_takes_one_size():
    config = LatentCodecConfig(first_stage=stage_config(network__whole=[8, 8]))
    assert config.build(FieldSpec("image", (1, 8, 8))).misfit((8, 8)) is None
    with pytest.raises(UserError, match=r"task\.codec: the images are 16x8 pixels") as caught:
        config.build(FieldSpec("image", (1, 16, 8)))
    assert "data.size=8" in caught.value.hint


def test_without_a_first_stage_the_key_that_names_one_is_told():
    with pytest.raises(UserError, match=r"task\.codec\.from"):
        LatentCodecConfig().build(IMAGE)


@pytest.mark.parametrize(
    ("value", "word"), [(float("nan"), "finite"), (1.0, "same number")], ids=["nan", "dead channel"]
)
def test_latents_that_cannot_be_scaled_are_refused(value, word):
    z = torch.randn(4, 3, 2, 2)
    z[:, 1] = value
    made = codec()
    with pytest.raises(UserError, match=word):
        made.measure([z], Alone())
    assert made.scale.equal(torch.ones(3)), "nothing is stored"


def test_from_is_the_name_of_the_key_in_files_and_the_config_survives_them():
    config = LatentCodecConfig.model_validate({"from": "runs/x", "first_stage": stage_config().model_dump()})
    written = config.model_dump(mode="json")
    assert written["from"] == "runs/x"
    assert "source" not in written
    assert LatentCodecConfig.model_validate(written) == config


@pytest.mark.parametrize("keys", KINDS.values(), ids=KINDS.keys())
def test_a_clip_is_coded_frame_by_frame_and_one_frame_as_an_image(keys, monkeypatch: pytest.MonkeyPatch):
    """In portions of the first stage that are no multiple of a clip."""
    monkeypatch.setattr("diffcli.networks.coding.AT_ONCE", 4 * 64)
    made, images = measured(**keys)[0], pictures(6)
    clips = images.unflatten(0, (2, 3)).transpose(1, 2)  # (2, 1, 3, 8, 8)
    each = made.encode(images)
    z = made.encode(clips)
    assert z.shape == (2, *made.latent_shape((1, 3, 8, 8)))
    torch.testing.assert_close(z, each.unflatten(0, (2, 3)).transpose(1, 2))
    torch.testing.assert_close(made.decode(z).transpose(1, 2).flatten(0, 1), made.decode(each))
    seeds = [3, 4]
    still = made.encode(clips[:, :, :1], Noise(seeds, CPU, Domain.POSTERIOR))
    torch.testing.assert_close(still[:, :, 0], made.encode(clips[:, :, 0], Noise(seeds, CPU, Domain.POSTERIOR)))


def test_every_frame_of_a_clip_has_a_draw_of_its_own():
    made, clips = codec(), pictures(1)[:, :, None].expand(-1, -1, 2, -1, -1)
    z = made.encode(clips, Noise([5], CPU, Domain.POSTERIOR))
    assert not torch.allclose(z[:, :, 0], z[:, :, 1])


def test_the_codec_of_clips_is_built_for_clips_of_any_length():
    config = LatentCodecConfig.model_validate({"first_stage": stage_config().model_dump()})
    made = config.build(FieldSpec("clip", (1, None, 8, 8)))
    assert made.latent_shape((1, 5, 8, 8)) == (3, 5, 4, 4)
