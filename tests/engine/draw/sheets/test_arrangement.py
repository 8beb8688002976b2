"""Enlarging, columns and frames of grids and animations."""

import json
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from PIL import Image

from diffcli.config import UserError
from diffcli.engine.draw.out_files import check_arrangement
from diffcli.engine.draw.sheets.arrangement import GAP, Arrangement, grid
from tests.conftest import Cli

LEVELS = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5).byte()


def test_one_image_alone_has_no_frame_and_is_the_image() -> None:
    assert np.array_equal(grid(LEVELS[:1]), LEVELS[0].permute(1, 2, 0).numpy())


def test_every_pixel_becomes_a_square_and_the_gaps_stay() -> None:
    sheet = Arrangement(scale=3, columns=1).sheet(LEVELS)
    assert sheet.shape == (2 * (12 + GAP) + GAP, 15 + 2 * GAP, 3)
    assert np.array_equal(sheet[GAP : GAP + 12 : 3, GAP:-GAP:3], LEVELS[0].permute(1, 2, 0).numpy())
    assert np.array_equal(sheet[GAP + 2 : GAP + 12 : 3, GAP + 2 : -GAP : 3], LEVELS[0].permute(1, 2, 0).numpy())


def test_captions_stand_under_images_of_the_scale_that_was_asked_for() -> None:
    sheet = Arrangement(scale=4, captions=["a"]).sheet(LEVELS[:1])
    assert sheet.shape == (4 * 4 + 15, 4 * 5, 3)


@pytest.mark.parametrize("out", ["folder", "a.npz"])
def test_files_that_are_not_laid_out_take_no_layout(out: str) -> None:
    with pytest.raises(UserError) as error:
        check_arrangement(Path(out), (".png",), {"--captions": False, "--scale": 4, "--columns": None})
    assert "--scale 4" in error.value.problem
    assert ".png" in error.value.hint
    check_arrangement(Path(out), (".png",), {"--captions": False, "--scale": None})


def test_sample_writes_one_image_as_it_is_and_enlarged_on_demand(cli: Cli, trained: Path, tmp_path: Path) -> None:
    one, large = tmp_path / "one.png", tmp_path / "large.png"
    assert cli("sample", "--ckpt", trained, "--n", 1, "--out", one).code == 0
    assert cli("sample", "--ckpt", trained, "--n", 1, "--out", large, "--scale", 5).code == 0
    plain = imageio.imread(one)
    assert plain.shape == (8, 8)
    assert np.array_equal(imageio.imread(large), plain.repeat(5, 0).repeat(5, 1))


def test_an_animation_is_enlarged_captioned_laid_out_and_held(cli: Cli, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.gif"
    looks = ["--scale", 6, "--columns", 3, "--captions", "--hold", 2.5, "--fps", 10]
    assert cli("gif", "--ckpt", trained, "--n", 3, "--out", out, *looks).code == 0
    image = Image.open(out)
    cell = 8 * 6
    assert image.size[0] == 3 * (cell + GAP) + GAP
    assert (image.size[1] - cell - 2 * GAP) % 15 == 0  # lines of words
    image.seek(image.n_frames - 1)
    assert image.info["duration"] == 2500
    record = json.loads(next(path for path in tmp_path.iterdir() if path.suffix == ".json").read_text())
    assert {"scale": 6, "columns": 3, "captions": True, "hold": 2.5}.items() <= record.items()
