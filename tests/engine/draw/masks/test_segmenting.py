"""Segmenting images: an ensemble is its single masks, whatever the batch; files, record and refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffcli.engine.distributed import Group
from diffcli.engine.draw.given import Value
from diffcli.engine.draw.masks.mask_files import most_variance, overlay
from diffcli.engine.draw.masks.segmenting import decided, frequency, probabilities, segmenter, variance
from diffcli.engine.draw.sample import SampleOptions, load_model, request, sampled
from diffcli.fields import to_float
from tests.conftest import Cli, in_ranks
from tests.data.making import pixels
from tests.engine.draw.masks.mask_runs import SIZE, trained

CPU = torch.device("cpu")
ALONE = Group(0, 1, CPU)
KINDS = ("diffusion", "segmentation")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("masks")
    return {kind: trained(folder, kind) for kind in KINDS} | {"several": trained(folder, "diffusion", 4)}


def images(n: int = 3) -> Value:
    return Value(torch.from_numpy(pixels(n, 1, SIZE, SIZE, seed=5)), [{"file": str(i)} for i in range(n)])


def pictures(folder: Path, n: int = 3, size: int = SIZE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.fromarray(pixels(1, 1, size, size, seed=i)[0, 0]).save(folder / f"x{i}.png")
    return folder


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("kind", ["diffusion", "several"])
def test_an_ensemble_is_the_mean_of_its_single_masks_each_from_its_own_seed(runs: dict[str, Path], kind: str):
    model, value, classes = load_model(runs[kind], CPU), images(), 4 if kind == "several" else 2
    found = segmenter(model, SampleOptions(seed=7), value, 3, 5).segment(range(3))
    assert found.samples.shape == (3, 5, SIZE, SIZE)
    for i in range(3):
        options = SampleOptions(seed=7 + 5 * i, n=5)
        alone = sampled(request(model, options, given={"image": Value(value.rows[i : i + 1], [])}), range(5))
        assert torch.equal((alone[:, 0].double() * (classes - 1) / 255).round().long(), found.samples[i])
    shares = torch.stack([(found.samples == c).double().mean(1) for c in range(classes)], 1)
    assert torch.allclose(found.probability.double(), shares)
    assert len(found.samples.unique()) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_batches_do_not_change_what_is_told(runs: dict[str, Path], kind: str):
    model = load_model(runs[kind], CPU)
    seg = segmenter(model, SampleOptions(), images(5), 5)
    whole, small = (torch.cat(list(probabilities(seg, size, ALONE))) for size in (64, 11))
    assert whole.shape == (5, 2, SIZE, SIZE)
    assert torch.allclose(whole, small, atol=1e-5)
    assert seg.ensemble == (5 if kind == "diffusion" else 1)


def test_a_segmentation_model_tells_its_own_probability(runs: dict[str, Path]):
    model = load_model(runs["segmentation"], CPU)
    found = segmenter(model, SampleOptions(), images(), 3).segment(range(1, 3))
    with torch.no_grad():
        expected = model.task.probabilities(model.task.logits(to_float(images().rows[1:])))
    assert torch.allclose(found.probability, expected, atol=1e-6)
    assert torch.equal(found.samples, (expected[:, 1:] > 0.5).long())


def test_a_probability_of_99_counts_as_1_and_of_49_as_0():
    p = torch.tensor([0.99, 0.51, 0.5, 0.49]).view(1, 1, 2, 2)
    assert decided(torch.cat([1 - p, p], 1)).flatten().tolist() == [1, 1, 0, 0]
    three = torch.tensor([[0.2, 0.4], [0.2, 0.3], [0.6, 0.3]]).view(1, 3, 1, 2)
    assert decided(three).flatten().tolist() == [2, 0]


def test_the_variance_is_that_of_the_single_masks():
    samples = (torch.arange(5 * 16).view(1, 5, 4, 4) * 7 % 11 < 4).long()
    assert torch.allclose(variance(frequency(samples, 2))[0], samples[0].float().var(0, correction=0))
    assert variance(torch.full((1, 4, 1, 1), 0.25)).item() == pytest.approx(most_variance(4))
    assert most_variance(2) == 0.25


def test_an_overlay_leaves_the_background_as_it_is():
    image = torch.full((1, 2, 2), 100, dtype=torch.uint8)
    made = overlay(image, torch.tensor([[0, 1], [2, 0]]))
    assert made[:, 0, 0].tolist() == made[:, 1, 1].tolist() == [100, 100, 100]
    assert made[:, 0, 1].tolist() == [160, 70, 70]


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_images_becomes_a_folder_of_masks(runs: dict[str, Path], kind: str, tmp_path: Path, cli: Cli):
    source, out = pictures(tmp_path / "in"), tmp_path / "out"
    (source / "broken.png").write_bytes(b"<!DOCTYPE html>")
    done = cli("sample", "--ckpt", runs[kind], "--image", source, "--out", out, "--seed", 3)
    assert done.code == 0, done.err
    assert "1 of 4 pictures cannot be read and are left out" in done.err
    parts = ("mask", "overlay", "probability", "variance")
    assert sorted(p.name for p in out.iterdir()) == [f"x{i}-{part}.png" for i in range(3) for part in parts]
    record = json.loads((tmp_path / "out.json").read_text())
    assert [image["name"] for image in record["images"]] == ["x0", "x1", "x2"]
    assert record["skipped"][0]["file"].endswith("broken.png")
    assert (record["threshold"], record["classes"]) == (0.5, 2)
    assert record["ensemble"] == (5 if kind == "diffusion" else 1)
    assert record["variance"]["white"] == 0.25
    for i in range(3):
        mask, p, spread = (read(out / f"x{i}-{part}.png") for part in ("mask", "probability", "variance"))
        assert p.dtype == spread.dtype == np.dtype("uint16") or p.dtype == np.dtype("int32")
        share = p.astype(np.float64) / 65535
        assert np.array_equal(mask, np.where(share > 0.5, 255, 0))
        assert np.abs(spread / 65535 - share * (1 - share) / 0.25).max() < 1e-4
        if kind == "diffusion":
            assert np.abs(share * 5 - (share * 5).round()).max() < 1e-3
        assert read(out / f"x{i}-overlay.png").shape == (SIZE, SIZE, 3)
    again = cli("sample", "--ckpt", runs[kind], "--image", source, "--out", tmp_path / "out.npz", "--seed", 3)
    assert again.code == 0, again.err
    arrays = np.load(tmp_path / "out.npz")
    assert np.array_equal(arrays["arr_0"][1, ..., 0] * 255, read(out / "x1-mask.png"))
    assert arrays["probability"].shape == (3, 2, SIZE, SIZE)
    assert arrays["names"].tolist() == ["x0", "x1", "x2"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_write_the_same_masks(runs: dict[str, Path], kind: str, tmp_path: Path, cli: Cli):
    source = pictures(tmp_path / "in", 5)
    how = ["sample", "--ckpt", runs[kind], "--image", source, "--batch-size", 10]
    assert cli(*how, "--out", tmp_path / "one").code == 0
    done = in_ranks(*how, "--out", tmp_path / "two", "--nproc", 2)
    assert done.code == 0, done.err
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


def test_one_picture_shows_all_images_in_rows(runs: dict[str, Path], tmp_path: Path, cli: Cli):
    source = pictures(tmp_path / "in", 2, size=24)
    files = [argument for i in range(2) for argument in ("--image", source / f"x{i}.png")]
    done = cli("sample", "--ckpt", runs["several"], *files, "--out", tmp_path / "all.png", "--ensemble", 3)
    assert done.code == 0, done.err
    assert read(tmp_path / "all.png").shape == (2 * (SIZE + 2) + 2, 5 * (SIZE + 2) + 2, 3)
    record = json.loads((tmp_path / "all.png.json").read_text())
    assert (record["mask"], record["ensemble"]) == ("the likeliest class", 3)
    assert record["seeds"] == list(range(6))


def test_what_cannot_be_segmented_is_refused_by_name(runs: dict[str, Path], tmp_path: Path, cli: Cli):
    source, out = pictures(tmp_path / "in"), tmp_path / "out"

    def refused(kind: str, *arguments: object) -> str:
        done = cli("sample", "--ckpt", runs[kind], "--out", out, *arguments)
        return done.refused()

    assert "--ensemble 5" in refused("diffusion", "--image", source, "--ensemble", 4)
    assert "same mask" in refused("segmentation", "--image", source, "--ensemble", 3)
    assert "--steps 4" in refused("segmentation", "--image", source, "--steps", 4)
    assert "--strength" in refused("diffusion", "--image", source / "x0.png", "--strength", 0.5)
    assert "--n 3" in refused("diffusion", "--image", source, "--n", 3)
    assert "no images for a next stage" in refused("diffusion", "--image", source, "--then", runs["diffusion"])
    assert "--image FILE|DIR" in refused("segmentation")
    assert "no image to segment" in refused("diffusion", "--ensemble", 3)
    (tmp_path / "empty").mkdir()
    assert "holds no picture" in refused("diffusion", "--image", tmp_path / "empty")
    out.mkdir(exist_ok=True)
    (out / "other.png").write_bytes(b"")
    assert "other.png" in refused("diffusion", "--image", source)


def test_two_images_of_one_name_are_told_apart_or_refused(runs: dict[str, Path], tmp_path: Path, cli: Cli):
    one, other = pictures(tmp_path / "a", 1), pictures(tmp_path / "b", 1)
    Image.open(one / "x0.png").save(one / "x0.bmp")
    done = cli("sample", "--ckpt", runs["segmentation"], "--image", one, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert (tmp_path / "out" / "x0.bmp-mask.png").is_file()
    done = cli("sample", "--ckpt", runs["segmentation"], "--image", one, "--image", other, "--out", tmp_path / "o2")
    done.refused("two images are called x0.png")


def test_pictures_of_another_shape_are_said_to_be_cut_in_one_line(runs: dict[str, Path], tmp_path: Path, cli: Cli):
    source = pictures(tmp_path / "in", 1)
    for i in range(9):
        Image.new("L", (40, 20), 90).save(source / f"wide{i}.png")
    done = cli("sample", "--ckpt", runs["segmentation"], "--image", source, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    (line,) = (line for line in done.err.splitlines() if "wide" in line)
    assert "9 of 10 images" in line
    assert "wide0.png, 20x40" in line


def test_masks_are_not_written_among_the_images_that_they_are_of(runs: dict[str, Path], tmp_path: Path, cli: Cli):
    """The next run would take them for images."""
    source = tmp_path / "in"
    source.mkdir()
    Image.new("L", (8, 8), 90).save(source / "a.jpg")
    done = cli("sample", "--ckpt", runs["segmentation"], "--image", source, "--out", source)
    done.refused(f"--out {source}", f"--image {source}", "another place")
    assert [file.name for file in source.iterdir()] == ["a.jpg"]
