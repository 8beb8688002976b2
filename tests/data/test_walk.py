"""One walk of a folder for all commands: what is followed, what is passed over, and that it is said."""

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffcli.data.datasets import Folder
from diffcli.data.shards import open_shards
from diffcli.data.walk import BEGUN_SET, GRID, NO_FILE, RUN, Walk
from diffcli.engine.score.sides import resolve
from diffcli.prep.prepare import prepare
from tests.data import making


@pytest.fixture
def cluttered(tmp_path: Path) -> Path:
    """A folder with 3 images of its own and 3 behind a link, and what systems leave among them."""
    root = tmp_path / "photos"
    making.class_folders(tmp_path / "elsewhere", ("dog",))
    making.class_folders(root, ("cat",))
    (root / "dog").symlink_to(tmp_path / "elsewhere/dog")
    (root / "cat/back").symlink_to(root)  # would never end
    for name in (".ipynb_checkpoints/0.png", "cat/._000.png", "__MACOSX/cat/0.png", "cat/@eaDir/000.png", ".x.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"\0\5\x16\7")
    os.mkfifo(root / "cat/pipe.png")
    (root / "empty").mkdir()
    making.class_folders(root / "runs/cats/previews", ("step",))
    (root / "runs/cats/checkpoints").mkdir()
    (root / "runs/cats/preset.yaml").write_text("name: cats")
    (root / "runs/begun").mkdir()
    (root / "runs/begun/.lock").write_text("")
    (root / "sets/begun/.work").mkdir(parents=True)
    (root / "sets/begun/.lock").write_text("")
    return root


def test_what_is_no_data_is_passed_over_and_counted(cluttered: Path):
    walk = Walk(cluttered)
    assert sorted(walk.files) == [f"{c}/{n:03d}.png" for c in ("cat", "dog") for n in range(3)]
    assert walk.passed == {
        ".ipynb_checkpoints": 1,
        "._*": 1,
        "__MACOSX": 1,
        "@eaDir": 1,
        ".x.png": 1,
        NO_FILE: 1,
        RUN: 2,
        BEGUN_SET: 1,
    }
    assert walk.empty == ["cat/back", "empty"]


def test_a_grid_of_samples_is_no_image_and_a_single_sample_is_one(tmp_path: Path):
    making.class_folders(tmp_path, ("cat",))
    for number, n in enumerate((16, 1)):
        record = {"checkpoint": "runs/cats", "weights_sha256": "0", "n": n}
        (tmp_path / f"cat/{number:03d}.png.json").write_text(json.dumps(record))
    (tmp_path / "cat/002.png.json").write_text('{"caption": "a cat"}')
    record = {"checkpoint": "runs/cats", "weights_sha256": "0", "n": 3}  # of a folder of samples, one image each
    (tmp_path / "cat.json").write_text(json.dumps(record))
    walk = Walk(tmp_path)
    kept = ("001.png", "001.png.json", "002.png", "002.png.json")
    assert sorted(walk.files) == ["cat.json", *(f"cat/{name}" for name in kept)]
    assert walk.passed == {GRID: 1}


def test_training_preparing_and_scoring_see_the_same_images(cluttered: Path, tmp_path: Path):
    trained = Folder(root=cluttered, size=8).build("train")
    *_, report = prepare("folder", cluttered, tmp_path / "set")
    scored = resolve(str(cluttered))
    assert (len(trained), report.written, scored.size) == (6, 6, 6)
    assert trained.classes == open_shards(tmp_path / "set", "x").classes == ("cat", "dog")
    (batch,) = scored.read([range(6)], ["image"])
    assert torch.equal(batch["image"], trained.read(torch.arange(6))["image"])


def test_a_folder_linked_twice_counts_twice(tmp_path: Path):
    making.class_folders(tmp_path / "elsewhere", ("dog",))
    (tmp_path / "root").mkdir()
    for name in ("a", "b"):
        (tmp_path / "root" / name).symlink_to(tmp_path / "elsewhere/dog")
    assert len(Walk(tmp_path / "root").files) == 6


def test_a_dangling_link_is_no_silence(tmp_path: Path):
    making.class_folders(tmp_path, ("cat",))
    (tmp_path / "cat/gone.png").symlink_to(tmp_path / "nowhere.png")
    *_, report = prepare("folder", tmp_path, tmp_path.with_name("out"))
    assert (report.written, report.skipped, report.broken.path) == (3, 1, "cat/gone.png")


def test_tars_behind_links_are_found_and_hidden_ones_are_not(tmp_path: Path):
    making.class_folders(tmp_path / "a", ("cat",))
    list(prepare("folder", tmp_path / "a", tmp_path / "shards"))
    (tmp_path / "in").mkdir()
    (tmp_path / "in/linked").symlink_to(tmp_path / "shards")
    (tmp_path / "in/._0.tar").write_bytes(b"\0\5\x16\7")
    *_, report = prepare("webdataset", tmp_path / "in", tmp_path / "out")
    assert (report.written, report.skipped) == (3, 0)


def test_images_that_are_stand_ins_say_which(tmp_path: Path):
    making.class_folders(tmp_path / "in", ("cat",))
    (tmp_path / "in/cat/a.png").write_bytes(b"")
    (tmp_path / "in/cat/b.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    *_, report = prepare("folder", tmp_path / "in", tmp_path / "out")
    assert report.written == 3
    assert dict(report.reasons) == {
        "empty files": 1,
        "pointers in place of files (`git lfs pull`, `git annex get .`)": 1,
    }
    assert Image.open(tmp_path / "in/cat/000.png").size == (8, 8)
