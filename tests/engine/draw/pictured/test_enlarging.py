"""A network of one step at the command line: pictures of any size, and scores beside bicubic enlargement."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.conftest import Cli

PRESET = {
    "name": "cnn",
    "data": {"kind": "digits", "size": 16, "derived": [{"kind": "low_res", "factor": 2}]},
    "task": {"kind": "super_resolution", "network": {"width": 4, "depth": 1}},
    "train": {"steps": 1, "batch_size": 4, "every": {"log": 1, "preview": 1, "save": 1}},
}


@pytest.fixture
def trained(tmp_path: Path, cli: Cli) -> Path:
    (tmp_path / "cnn.yaml").write_text(yaml.safe_dump(PRESET))
    assert cli("train", "--preset", tmp_path / "cnn.yaml", "--run-dir", tmp_path / "run").code == 0
    return tmp_path / "run"


def test_pictures_of_several_sizes_become_as_much_larger(trained: Path, tmp_path: Path, cli: Cli) -> None:
    sizes = [(8, 8), (10, 6), (8, 8)]  # width, height
    (tmp_path / "given").mkdir()
    for number, size in enumerate(sizes):
        Image.fromarray(np.full(size[::-1], 40 * number, np.uint8)).save(tmp_path / f"given/{number}.png")
    done = cli("sample", "--ckpt", trained, "--image", tmp_path / "given", "--out", tmp_path / "made")
    assert done.code == 0, done.err
    made = [Image.open(tmp_path / f"made/{i:06d}.png") for i in range(3)]
    assert [image.size for image in made] == [(2 * w, 2 * h) for w, h in sizes]
    assert [round(np.asarray(image).mean() / 40) for image in made] == [0, 1, 2]


def test_it_is_scored_against_the_originals_beside_bicubic_enlargement(trained: Path, cli: Cli) -> None:
    done = cli("fid", "--ckpt", trained, "--n", 6, "--metrics", "psnr,ssim,consistency", "--json")
    report = json.loads(done.out)
    assert set(report["scores"]) >= {"psnr", "ssim", "consistency"}
    assert abs(report["scores"]["psnr"] - 20) < 5, "one step from bicubic enlargement"


def test_options_of_a_walk_and_a_missing_picture_are_refused(trained: Path, cli: Cli, tmp_path: Path) -> None:
    cli("sample", "--ckpt", trained, "--out", tmp_path / "x.png").refused("--image")
    picture = tmp_path / "one.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(picture)
    told = ["--image", picture, "--out", tmp_path / "x.png"]
    cli("sample", "--ckpt", trained, *told, "--steps", 3).refused("--steps 3")
    cli("sample", "--ckpt", trained, *told, "--guidance", 2).refused("--guidance 2")
