"""What a first stage makes: images of images, the way between two, and its prior; and every request that it refuses."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from diffcli.config import ImageShape, UserError
from diffcli.data.pixels import fit
from diffcli.engine.distributed import Group
from diffcli.engine.draw.reconstruction import Reconstruction, reconstruction
from diffcli.engine.draw.request import request
from diffcli.engine.draw.sample import SampleOptions, draw, request_of
from diffcli.engine.model import Model, load_model
from diffcli.engine.stage import StageModel
from diffcli.fields import to_float, to_levels
from diffcli.noise import Noise
from diffcli.tasks.autoencoder.autoencoder_task import AutoencoderTask
from tests.engine.draw.making import encoding, made
from tests.engine.score.making import FIRST_STAGE, save_run

ALONE = Group(0, 1, torch.device("cpu"))


def files(folder: Path, sizes: Sequence[tuple[int, int]] = ((8, 8), (8, 8)), colour: bool = False) -> list[Path]:
    """Random pictures of these widths and heights."""
    found = []
    for i, (width, height) in enumerate(sizes):
        shape = (height, width, 3) if colour else (height, width)
        pixels = np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8)
        found.append(folder / f"{i}.png")
        Image.fromarray(pixels).save(found[-1])
    return found


def options(images: Sequence[Path] = (), **keys: object) -> SampleOptions:
    chosen = SampleOptions(images=tuple(images), **keys)  # type: ignore[arg-type]
    chosen.check()
    return chosen


def images_of(model: Model, chosen: SampleOptions) -> Tensor:
    return torch.cat([batch.images for batch in draw(request_of(model, chosen), ALONE)])


def levels(path: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path)))[None, None]


@pytest.mark.parametrize("kind", ["none", "kl", "vq", "fsq"])
def test_an_image_becomes_what_is_decoded_of_its_latent(tmp_path: Path, kind: str) -> None:
    model, pictures = encoding(kind), files(tmp_path)
    found = images_of(model, options(pictures))
    for path, image in zip(pictures, found, strict=True):
        expected = to_levels(model.task.reconstruct(to_float(levels(path))))
        assert image[None].equal(expected)
        assert not image[None].equal(levels(path))


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_encoding_and_decoding_is_reconstructing(kind: str) -> None:
    stage = StageModel(encoding(kind))
    x = to_float(torch.randint(0, 256, (3, 1, 8, 12), generator=torch.Generator().manual_seed(0)).to(torch.uint8))
    latents = stage.encode(x)
    assert latents.shape == (3, *stage.latent_shape((8, 12))) == (3, 2, 2, 3)
    assert torch.allclose(stage.decode(latents), stage.reconstruct(x), atol=1e-5)


def test_an_image_keeps_its_size_where_the_downscale_divides_it(tmp_path: Path) -> None:
    req = reconstruction(encoding(), options(files(tmp_path, [(24, 16)])))
    assert req.shape == (1, 16, 24)
    assert req.images(range(1)).shape == (1, 1, 16, 24)
    assert req.describe()["latent"] == [2, 4, 6]


def test_size_brings_pictures_to_it_and_draws_others_of_it(tmp_path: Path) -> None:
    model = encoding()
    both = images_of(model, options(files(tmp_path, [(30, 17), (9, 9)]), size=(8, 12), compare=True))
    assert both.shape == (2, 1, 8, 24)
    given = fit(Image.open(tmp_path / "0.png"), ImageShape(1, 8, 12))
    assert both[0, :, :, :12].equal(torch.from_numpy(given))
    assert images_of(model, options(n=2, size=(8, 16))).shape == (2, 1, 8, 16)


def test_original_and_reconstruction_stand_side_by_side(tmp_path: Path) -> None:
    model, pictures = encoding(), files(tmp_path)
    both, alone = images_of(model, options(pictures, compare=True)), images_of(model, options(pictures))
    assert both[:, :, :, 8:].equal(alone)
    assert both[:, :, :, :8].equal(torch.cat([levels(path) for path in pictures]))
    assert reconstruction(model, options(pictures, compare=True)).shape == (1, 8, 16)


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_a_way_leads_straight_from_one_latent_to_the_other(tmp_path: Path, kind: str) -> None:
    model, pictures = encoding(kind), files(tmp_path)
    way, ends = images_of(model, options(pictures, interpolate=5)), images_of(model, options(pictures))
    assert len(way) == 5
    assert (way[[0, 4]].int() - ends.int()).abs().max() <= 1
    stage = StageModel(model)
    a, b = stage.encode(to_float(torch.cat([levels(path) for path in pictures])))
    assert (way[2].int() - to_levels(stage.decode(((a + b) / 2)[None]))[0].int()).abs().max() <= 1


def test_a_prior_is_drawn_from_seed_by_seed() -> None:
    model = encoding()
    stage = StageModel(model)
    found = images_of(model, options(n=5, seed=3, batch_size=2))
    latents = Noise([3, 4, 5, 6, 7], torch.device("cpu"))(torch.empty(5, 2, 2, 2))
    assert found.equal(to_levels(stage.decode(latents)))
    assert images_of(model, options(n=2, seed=5)).equal(found[2:4])
    assert len(images_of(model, options())) == 16


def test_the_way_between_two_seeds_begins_and_ends_with_their_images() -> None:
    model = encoding()
    way, ends = images_of(model, options(interpolate=4, seed=9)), images_of(model, options(n=2, seed=9))
    assert way[[0, 3]].equal(ends)
    assert reconstruction(model, options(interpolate=4, seed=9)).describe()["seeds"] == [9, 10]


def test_the_split_into_batches_changes_no_image(tmp_path: Path) -> None:
    model, pictures = encoding("vq"), files(tmp_path, [(8, 8)] * 5)
    assert images_of(model, options(pictures, batch_size=2)).equal(images_of(model, options(pictures, batch_size=5)))


def test_pictures_become_grey_or_coloured_as_the_first_stage_is(tmp_path: Path) -> None:
    grey = reconstruction(encoding(), options(files(tmp_path, colour=True)))
    assert grey.images(range(2)).shape == (2, 1, 8, 8)
    coloured = reconstruction(encoding(channels=3), options(files(tmp_path)))
    assert coloured.images(range(2)).shape == (2, 3, 8, 8)


def test_the_sidecar_names_what_the_images_were_made_of(tmp_path: Path) -> None:
    pictures = files(tmp_path)
    told = reconstruction(encoding("vq"), options(pictures)).describe()
    assert [each["file"] for each in told["images"]] == [str(path) for path in pictures]
    assert told["n"] == 2
    assert told["codes"] == 16
    assert reconstruction(encoding(), options(n=2, seed=4)).describe()["seeds"] == [4, 5]


def test_one_told_of_embeddings_works_without_any(tmp_path: Path) -> None:
    model = encoding(embedding={"width": 3})
    req = request_of(model, options(files(tmp_path)))
    assert isinstance(req, Reconstruction)
    assert req.images(range(2)).shape == (2, 1, 8, 8)


REFUSED = [
    ({"steps": 3}, "--steps 3"),
    ({"sampler": "ddim"}, "--sampler ddim"),
    ({"guidance": 2.0}, "--guidance 2.0"),
    ({"labels": "all"}, "--class all"),
    ({"prompts": ("a cat",)}, "--prompt a cat"),
    ({"overrides": ("sampler.steps=3",)}, "--set sampler.steps=3"),
    ({"n": 3, "interpolate": 4}, "--n 3 with --interpolate 4"),
]


@pytest.mark.parametrize(("keys", "problem"), REFUSED, ids=[problem for _, problem in REFUSED])
def test_what_a_first_stage_cannot_heed_is_refused(keys: dict[str, object], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        request_of(encoding(), options(**keys))


def test_there_is_nothing_to_draw_from_without_a_prior() -> None:
    for kind in ("none", "vq", "fsq"):
        with pytest.raises(UserError, match=f"bottleneck of kind '{kind}'") as refused:
            request_of(encoding(kind), options())
        assert "--image" in refused.value.hint


def test_images_of_another_size_than_is_coded_whole_are_refused(tmp_path: Path) -> None:
    network = {"width": 8, "mult": [1], "patch": 4, "latent": 2, "groups": 4, "whole": [8, 8]}
    whole = encoding(network=network)
    request_of(whole, options(files(tmp_path)))
    with pytest.raises(UserError, match="16x16") as refused:
        request_of(whole, options(files(tmp_path, [(16, 16)])))
    assert "--size 8x8" in refused.value.hint


def test_images_that_cannot_be_encoded_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"16x30 pixels \(HxW\), which its downscale 4") as refused:
        request_of(encoding(), options(files(tmp_path, [(30, 16)])))
    assert "--size 16x32" in refused.value.hint
    with pytest.raises(UserError, match="--size 16x30: encoding would make") as refused:
        request_of(encoding(), options(n=1, size=(16, 30)))
    assert "--size 16x32" in refused.value.hint
    with pytest.raises(UserError, match=r"8x8 and 8x12, HxW"):
        request_of(encoding(), options(files(tmp_path, [(8, 8), (12, 8)])))
    with pytest.raises(UserError, match="--n 4 with 2 --image"):
        request_of(encoding(), options(files(tmp_path), n=4))
    with pytest.raises(UserError, match="--compare with --interpolate"):
        request_of(encoding(), options(files(tmp_path), compare=True, interpolate=3))


def test_comparing_wants_images_and_a_first_stage(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--compare: there is no image"):
        options(compare=True)
    with pytest.raises(UserError, match="--compare: made changes"):
        request_of(made(), options(files(tmp_path), compare=True))


def test_a_first_stage_is_no_diffusion_model_and_the_reverse() -> None:
    with pytest.raises(UserError, match="is a first stage"):
        request(encoding(), options())
    with pytest.raises(UserError, match="was trained as a diffusion model, not as an autoencoder"):
        StageModel(made())


@pytest.mark.parametrize("adversarial", [None, {"start": 3, "discriminator": {"width": 4, "depth": 1}}])
def test_encoder_and_decoder_are_what_is_compiled_and_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adversarial: dict[str, object] | None
) -> None:
    compiled: list[torch.nn.Module] = []
    calls: list[torch.nn.Module] = []

    def compile_module(module: torch.nn.Module, **options: object) -> None:
        compiled.append(module)
        module._compiled_call_impl = lambda *given: calls.append(module) or module._call_impl(*given)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_module)
    run = save_run(tmp_path / "run", yaml.safe_dump({**yaml.safe_load(FIRST_STAGE), "adversarial": adversarial}))
    model, plain = (load_model(run, torch.device("cpu"), compile=compile) for compile in (True, False))
    chosen = options(files(tmp_path, [(28, 28)]))
    images = images_of(model, chosen)
    assert len(compiled) == 2
    assert calls == compiled
    assert images.equal(images_of(plain, chosen))
    stage = StageModel(model)
    stage.decode(stage.encode(torch.zeros(1, 1, 28, 28)))
    assert calls == 2 * compiled


def test_a_first_stage_is_not_computed_in_fp16(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", FIRST_STAGE)
    exact, half = (load_model(run, torch.device("cpu"), precision=name) for name in ("fp32", "fp16"))
    assert half.describe()["precision"] == "fp32"
    chosen = options(files(tmp_path, [(28, 28)]))
    assert images_of(half, chosen).equal(images_of(exact, chosen))


def test_a_large_picture_is_decoded_in_bands(tmp_path: Path) -> None:
    """As by a latent model: the decoder is never called for the whole."""
    model, calls = encoding(), []
    assert isinstance(model.task, AutoencoderTask)
    model.task.autoencoder.decoder.register_forward_hook(lambda module, given, made: calls.append(len(made)))
    small, large = files(tmp_path, [(8, 8), (520, 512)])
    images_of(model, options([small]))
    assert calls == [1]
    banded = images_of(model, options([large]))
    assert calls == [1]
    whole = to_levels(model.task.reconstruct(to_float(levels(large))))
    assert (banded.int() - whole.int()).abs().max() <= 1


@pytest.mark.parametrize("adversarial", [None, {"start": 3, "discriminator": {"width": 4, "depth": 1}}])
def test_half_precision_moves_an_image_a_little(tmp_path: Path, adversarial: dict[str, object] | None) -> None:
    """Also where training compiles the encoder alone: see `AutoencoderTask.network_to_compile`."""
    task = {**yaml.safe_load(FIRST_STAGE), "adversarial": adversarial}
    run = save_run(tmp_path / "run", yaml.safe_dump(task))
    exact, half = (load_model(run, torch.device("cpu"), precision=name) for name in ("fp32", "bf16"))
    pictures = files(tmp_path, [(28, 28), (28, 28)])
    for chosen in (options(pictures), options(pictures, interpolate=3), options(n=2)):
        a, b = (images_of(model, chosen).int() for model in (exact, half))
        assert not a.equal(b)
        assert (a - b).abs().float().mean() < 2
