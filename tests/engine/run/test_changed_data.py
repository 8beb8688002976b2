"""A run knows what it was trained on: it says so before its first step, and when it goes on with something else."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from diffcli import checkpoint
from diffcli.data.description import DataDescription
from diffcli.engine.data_records import changes_of, recorded
from tests.conftest import Cli
from tests.data import making
from tests.engine.run.test_resume import from_folder, sorted_images


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return sorted_images(tmp_path / "pictures")


@pytest.fixture
def run(cli: Cli, tiny: Callable[..., Path], pictures: Path, tmp_path: Path) -> Path:
    """A class-conditional run at step 2 on the classes a, b, c of four images each."""
    preset = from_folder(tiny, pictures, train__steps=2)
    told = cli("train", "--preset", preset, "--run-dir", tmp_path / "run", "--device", "cpu").err
    assert "12 images" in told.partition("step 1")[0], "before the first step"
    assert "3: a (4), b (4), c (4)" in told
    return tmp_path / "run"


def test_a_run_records_what_it_was_trained_on(run: Path):
    record = checkpoint.read_record(checkpoint.locate(run))
    holds = recorded(record)
    assert (holds.classes, holds.class_counts, holds.splits) == (("a", "b", "c"), (4, 4, 4), {"train": 12})
    assert record["classes"] == ["a", "b", "c"]


def test_the_plan_says_the_same_as_the_run(cli: Cli, tiny: Callable[..., Path], pictures: Path, tmp_path: Path):
    preset = from_folder(tiny, pictures)
    out = cli("train", "--preset", preset, "--run-dir", tmp_path / "x", "--device", "cpu", "--dry-run").out
    assert "# classes: 3: a (4), b (4), c (4)" in out


def test_resume_refuses_another_class_list(cli: Cli, run: Path, pictures: Path):
    shutil.copytree(pictures / "train/a", pictures / "train/0")
    (pictures / "train/c").rename(pictures / "train/d")
    shutil.rmtree(pictures / "train/b")
    told = cli("resume", run, "--steps", 4, "--device", "cpu").refused("0, d", "b, c", "--set data.root=FOLDER")
    assert "3 classes" in told
    record = checkpoint.read_record(checkpoint.locate(run))
    assert record["step"] == 2


def test_resume_says_which_images_came_and_went(cli: Cli, run: Path, pictures: Path):
    making.class_folders(pictures / "train", ("b",), 6)
    (pictures / "train/c/0.png").unlink()
    told = cli("resume", run, "--steps", 3, "--device", "cpu").err
    assert "since step 2: images of the split train: 17, were 12; images of a class: b 10 (was 4), c 3 (was 4)" in told


def test_resume_on_the_same_data_elsewhere_says_nothing(cli: Cli, run: Path, pictures: Path, tmp_path: Path):
    pictures.rename(tmp_path / "moved")
    told = cli("resume", run, "--steps", 3, "--device", "cpu", "--set", f"data.root={tmp_path / 'moved'}").err
    assert "changed" not in told


def test_records_of_earlier_versions_say_nothing_and_still_refuse_other_classes(run: Path, cli: Cli, pictures: Path):
    now = DataDescription(place="x", splits={"train": 3}, shape=(3, 8, 8))
    assert recorded({"step": 1, "classes": ["a"]}) is None
    assert changes_of(now, {"step": 1, "classes": ["a"]}) == []
    assert recorded({"data": {"place": 3}}) is None
