"""Latent models through the commands of pixel models: other sizes, variations, inpainting, ways between images."""

import json
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

import diffcli
from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.engine.distributed import Group, join
from diffcli.engine.draw.sample import SampleOptions, draw, request
from diffcli.engine.model import Model, load_model, resized
from diffcli.engine.run.runlog import RunDir
from diffcli.engine.run.train import train
from diffcli.fields import to_levels
from diffcli.tasks.codecs.latent import LatentCodec
from diffcli.tasks.diffusion import DiffusionTask
from tests.conftest import Cli
from tests.latents import latent_tree, stage_checkpoint

CPU = torch.device("cpu")
ALONE = Group(0, 1, CPU)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A latent model of 8x8 images, one step old. Do not change it."""
    root = tmp_path_factory.mktemp("latent")
    tree = latent_tree(task__codec={"kind": "latent", "from": str(stage_checkpoint(root / "stage"))}, train__steps=1)
    made = RunDir(root / "run")
    made.claim()
    with join("cpu") as group:
        list(train(presets.build(tree, "latent.yaml"), made, group))
    return made.path


@pytest.fixture(scope="module")
def model(run: Path) -> Model:
    return load_model(run, CPU)


def picture(path: Path, side: int = 8, seed: int = 0) -> Path:
    imageio.imwrite(path, np.random.default_rng(seed).integers(0, 256, (side, side)).astype(np.uint8))
    return path


def reconstructed(model: Model, path: Path) -> torch.Tensor:
    """uint8 (1, C, H, W): an image after it went through the first stage."""
    levels = torch.from_numpy(imageio.imread(path))[None, None]
    assert isinstance(model.task, DiffusionTask)
    return to_levels(model.task.decode(model.task.codec.encode(levels.float() / 127.5 - 1)))


@pytest.mark.parametrize("size", ["12x20", "16", "8"])
def test_a_latent_model_draws_images_of_any_size_that_its_first_stage_divides(
    cli: Cli, run: Path, tmp_path: Path, size: str
) -> None:
    done = cli("sample", "--ckpt", run, "--n", 2, "--size", size, "--out", tmp_path / "x.npz")
    assert done.code == 0, done.err
    height, _, width = size.partition("x")
    assert np.load(tmp_path / "x.npz")["arr_0"].shape == (2, int(height), int(width or height), 1)
    assert json.loads((tmp_path / "x.npz.json").read_text())["size"] == [int(height), int(width or height)]


def test_a_model_of_pixels_draws_other_sizes_and_its_own_as_before(trained: Path) -> None:
    model = diffcli.load(trained, device="cpu")
    plain, same, wide = (model.sample(2, seed=3, size=size) for size in (None, 8, (8, 14)))
    assert same.tensor.equal(plain.tensor)
    assert wide.tensor.shape == (2, 1, 8, 14)
    assert model.sample(2, seed=3).tensor.equal(plain.tensor), "the model itself keeps its size"


def test_a_weaker_model_draws_the_size_that_is_asked_for(cli: Cli, trained: Path, tmp_path: Path) -> None:
    """Led away from itself a model goes nowhere else; led away from an early checkpoint it does."""
    early, drawn = trained / "checkpoints" / "step-00000002", {}
    for name, weaker in (("plain", None), ("itself", trained), ("early", early)):
        guide = ["--guidance", 1] if weaker is None else ["--guidance", 3, "--set", f"guide.weaker={weaker}"]
        out = tmp_path / f"{name}.npz"
        done = cli("sample", "--ckpt", trained, "--n", 2, "--size", "8x14", *guide, "--out", out)
        assert done.code == 0, done.err
        drawn[name] = np.load(out)["arr_0"].astype(int)
    assert drawn["plain"].shape == (2, 8, 14, 1)
    assert abs(drawn["itself"] - drawn["plain"]).max() <= 1
    assert abs(drawn["early"] - drawn["plain"]).max() > 1


@pytest.mark.parametrize(
    ("size", "words"),
    [("9", ("--size 9x9", "multiples of 2", "--size 8x8")), ("8x8x8", ("8x8x8",)), ("0", ("--size",)), ("a", ("a",))],
)
def test_sizes_that_cannot_be_are_refused(
    cli: Cli, run: Path, tmp_path: Path, size: str, words: tuple[str, ...]
) -> None:
    cli("sample", "--ckpt", run, "--size", size, "--out", tmp_path / "x.png").refused(*words)
    assert not (tmp_path / "x.png").exists()


def test_a_first_stage_of_whole_images_has_one_size(tmp_path: Path) -> None:
    whole = load_model(stage_checkpoint(tmp_path / "stage", network__whole=[8, 8]), CPU)
    assert resized(whole, (8, 8)).size == (8, 8)
    with pytest.raises(UserError, match="16x16") as refused:
        resized(whole, (16, 16))
    assert refused.value.hint == "leave --size out"


def test_a_slightly_varied_image_is_nearly_its_reconstruction(
    cli: Cli, run: Path, model: Model, tmp_path: Path
) -> None:
    image = picture(tmp_path / "a.png")
    command = ["sample", "--ckpt", run, "--image", image, "--strength", 0.01, "--out", tmp_path / "x.npz"]
    assert cli(*command, "--guidance", 1, "--steps", 50).code == 0
    made = torch.from_numpy(np.load(tmp_path / "x.npz")["arr_0"]).permute(0, 3, 1, 2)
    assert (made.float() - reconstructed(model, image).float()).abs().mean() < 12


def test_inpainting_keeps_every_pixel_that_is_not_painted_and_changes_what_is(
    cli: Cli, run: Path, model: Model, tmp_path: Path
) -> None:
    """The mask has one white pixel in a position of the latent: the whole position is painted, the other pixels come back."""
    image, mask = picture(tmp_path / "a.png"), np.zeros((8, 8), np.uint8)
    mask[:, 4:], mask[1, 1] = 255, 255
    imageio.imwrite(tmp_path / "mask.png", mask)
    command = ["sample", "--ckpt", run, "--image", image, "--mask", tmp_path / "mask.png", "--out", tmp_path / "x.npz"]
    assert cli(*command, "--n", 4).code == 0
    made, given = np.load(tmp_path / "x.npz")["arr_0"][..., 0], imageio.imread(image)
    assert (made[:, mask == 0] == given[mask == 0]).all()
    assert (made[:, mask > 0] != given[mask > 0]).mean() > 0.9
    options = SampleOptions(images=(image,), mask=tmp_path / "mask.png")
    req = request(model, options)
    assert req.edit.painted is not None
    x, _ = req.walk(range(1))
    assert x.shape == (1, 3, 4, 4)
    assert reconstructed(model, image)[0, 0].numpy()[mask == 0].tolist() != given[mask == 0].tolist()


@pytest.mark.parametrize("show", ["x", "x0"])
def test_a_gif_of_inpainting_keeps_every_pixel_that_is_not_painted_and_ends_in_the_sample(
    cli: Cli, run: Path, tmp_path: Path, show: str
) -> None:
    image, mask = picture(tmp_path / "a.png"), np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255
    imageio.imwrite(tmp_path / "mask.png", mask)
    edit = ["--ckpt", run, "--image", image, "--mask", tmp_path / "mask.png"]
    assert cli("gif", *edit, "--show", show, "--out", tmp_path / "a.gif").code == 0
    assert cli("sample", *edit, "--out", tmp_path / "x.npz").code == 0
    frames = np.asarray(imageio.imread(tmp_path / "a.gif", index=None, mode="L"))
    given, sample = imageio.imread(image), np.load(tmp_path / "x.npz")["arr_0"][0, ..., 0]
    assert (frames[:, mask == 0] == given[mask == 0]).all()
    assert (frames[-1] == sample).all()


@pytest.mark.slow
def test_a_way_between_two_images_begins_and_ends_near_their_reconstructions(model: Model, tmp_path: Path) -> None:
    images = picture(tmp_path / "a.png"), picture(tmp_path / "b.png", seed=1)
    options = SampleOptions(images=images, interpolate=3, guidance=1, steps=200, labels=0)
    way = torch.cat([batch.images for batch in draw(request(model, options), ALONE)])
    for end, image in ((0, images[0]), (2, images[1])):
        assert (way[end].float() - reconstructed(model, image)[0].float()).abs().mean() < 12


def test_images_begin_at_the_size_that_is_asked_for(cli: Cli, run: Path, tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png", 30)
    command = ["sample", "--ckpt", run, "--image", image, "--size", "16x12", "--out", tmp_path / "x.npz"]
    assert cli(*command).code == 0
    assert np.load(tmp_path / "x.npz")["arr_0"].shape == (1, 16, 12, 1)


def test_large_images_are_decoded_in_bands_and_small_ones_whole_to_the_same(model: Model) -> None:
    wide = resized(model, (48, 64))
    assert isinstance(wide.task, DiffusionTask)
    z = wide.task.start([1, 2])[0]
    whole = wide.task.decode(z)
    codec = wide.task.codec
    assert isinstance(codec, LatentCodec)
    codec.tile, before = 16, codec.tile
    try:
        assert torch.allclose(wide.task.decode(z), whole, atol=1e-5)
    finally:
        codec.tile = before


def test_a_classifier_of_images_cannot_guide_a_model_of_latents(cli: Cli, run: Path, tmp_path: Path) -> None:
    tree = presets.read(presets.find("digits-noisy-classifier"))
    small = {"steps": 1, "batch_size": 4, "ema": 0.9}
    classifier = RunDir(tmp_path / "classifier")
    classifier.claim()
    with join("cpu") as group:
        preset = presets.build({**tree, "data": {"kind": "digits", "size": 8}, "train": small}, "classifier.yaml")
        list(train(preset, classifier, group))
    guide = ["--set", f"guide.classifier={classifier.path}"]
    done = cli("sample", "--ckpt", run, "--guidance", 2, *guide, "--out", tmp_path / "x.png")
    done.refused("guide.classifier", "diffuses latents")
