"""`presets new NAME --data DIR --from CKPT`: a preset that is complete, fits the pictures, and trains at once."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from diffcli import preset as presets
from diffcli.engine.run.origin.new_continuation import written
from diffcli.tasks.diffusion_config import DiffusionConfig
from tests.conftest import Cli, changed
from tests.engine.one_level import SMALL


def pictures(folder: Path, classes: list[str], colour: bool = False) -> Path:
    """Five pictures of each class, 12 wide and 10 high."""
    draw = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(5):
            shape = (10, 12, 3) if colour else (10, 12)
            Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).save(folder / name / f"{i}.png")
    return folder


def test_it_trains_the_model_on_for_the_classes_of_the_pictures(
    trained: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = cli("presets", "new", "mine", "--data", pictures(tmp_path / "mine", ["9", "owl"]), "--from", trained)
    assert made.code == 0, made.err
    chosen = presets.load("mine.yaml")
    assert chosen.origin is not None
    assert chosen.origin.path == trained
    assert isinstance(chosen.task, DiffusionConfig)
    source = presets.build(SMALL, "tiny")
    assert isinstance(source.task, DiffusionConfig)
    assert chosen.task.network == source.task.network
    assert (chosen.task.target, chosen.task.schedule) == (source.task.target, source.task.schedule)
    assert chosen.task.conditioners[0].model_dump() == source.task.conditioners[0].model_dump() | {"num_classes": 2}
    assert chosen.data.shape == (1, 8, 8)
    assert chosen.train.optimizer.lr < source.train.optimizer.lr
    assert chosen.sampler == source.sampler
    done = cli("train", "--preset", "mine.yaml", "--steps", 1, "--set", "train.log=[]")
    assert done.code == 0, done.err
    assert "taken for 9; new for owl; left out of 0, 1" in done.err


def test_pictures_that_are_not_what_the_model_knows_are_noted(
    trained: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = cli("presets", "new", "mine", "--data", pictures(tmp_path / "mine", [""], colour=True), "--from", trained)
    assert made.code == 0, made.err
    assert "grey" in made.err
    assert "no classes" in made.err
    chosen = presets.load("mine.yaml")
    assert isinstance(chosen.task, DiffusionConfig)
    assert chosen.task.conditioners == ()
    assert (chosen.task.drop_condition, chosen.guidance) == (0, 1)
    assert cli("train", "--preset", "mine.yaml", "--dry-run").code == 0


def test_a_model_of_another_kind_or_of_nowhere_is_refused(trained: Path, cli: Cli, tmp_path: Path) -> None:
    data = pictures(tmp_path / "mine", ["a"])
    new = ("presets", "new", tmp_path.name, "--data", data)
    cli(*new, "--from", trained, "--task", "classifier").refused("--task classifier", "diffusion", "leave --task out")
    cli(*new, "--from", tmp_path / "nowhere").refused("nowhere")
    assert not Path(f"{tmp_path.name}.yaml").exists()


def test_what_is_written_without_defaults_reads_as_the_same() -> None:
    tree = changed(SMALL, task__codec={"kind": "pixels", "scale": 0.5}, task__weight={"kind": "min_snr", "gamma": 3})
    task = presets.build(tree, "tiny").task
    plain = yaml.safe_load(yaml.safe_dump(written(task)))
    assert presets.build(tree | {"task": plain}, "tiny").task == task
    assert "coupling" not in plain
