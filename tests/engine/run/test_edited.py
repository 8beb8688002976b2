"""RUN/preset.yaml that a person has edited: what a resumed run can change is taken, the rest refused, each by its name."""

import shutil
from pathlib import Path

import pytest
import yaml

from tests.conftest import Cli
from tests.engine.run.test_train import steps_saved


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run of its own at step 4 of 4."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def edit(run: Path, **sections: dict) -> None:
    tree = yaml.safe_load((run / "preset.yaml").read_text())
    for name, values in sections.items():
        tree[name] = tree[name] | values
    (run / "preset.yaml").write_text(yaml.safe_dump(tree))


def test_edits_of_train_are_taken_and_said(cli: Cli, run: Path) -> None:
    edit(run, train={"batch_size": 3, "steps": 6, "optimizer": {"kind": "sgd", "lr": 1e-3}})
    done = cli("resume", run)
    assert done.code == 0, done.err
    for key, value in (
        ("train.batch_size", "3, was 6"),
        ("train.steps", "6, was 4"),
        ("train.optimizer.kind", "'sgd'"),
    ):
        assert any(f"{key} is {value}" in line for line in done.err.splitlines() if line.startswith("note:")), done.err
    assert steps_saved(run)[-1] == 6
    assert yaml.safe_load((run / "preset.yaml").read_text())["train"]["batch_size"] == 3


def test_a_flag_goes_before_an_edit_and_nothing_is_said_where_nothing_was_edited(cli: Cli, run: Path) -> None:
    (run / "preset.yaml").write_text("# mine\n" + (run / "preset.yaml").read_text())
    done = cli("resume", run, "--steps", 5)
    assert "preset.yaml" not in done.err
    edit(run, train={"steps": 9, "batch_size": 3})
    assert cli("resume", run, "--steps", 6).code == 0
    assert steps_saved(run)[-1] == 6


def test_going_on_from_an_older_step_takes_its_settings_where_nothing_was_edited(cli: Cli, run: Path) -> None:
    assert cli("resume", run, "--steps", 6, "--set", "train.optimizer.lr=0.5").code == 0
    done = cli("resume", run, "--from", 4, "--steps", 5)
    assert done.code == 0
    assert yaml.safe_load((run / "preset.yaml").read_text())["train"]["optimizer"]["lr"] == 2e-3


@pytest.mark.parametrize(
    ("section", "values", "key"),
    [
        ("task", {"target": "eps"}, "task.target"),
        ("sampler", {"steps": 7}, "sampler.steps"),
        ("data", {"flip": True}, "data.flip"),
    ],
)
def test_an_edit_of_what_a_resumed_run_keeps_is_refused_by_its_key(
    cli: Cli, run: Path, section: str, values: dict, key: str
) -> None:
    edit(run, **{section: values})
    before = (run / "preset.yaml").read_text()
    cli("resume", run, "--steps", 6).refused("preset.yaml", key, "--run-dir")
    assert (run / "preset.yaml").read_text() == before
    assert steps_saved(run)[-1] == 4


def test_a_preset_that_is_none_any_more_names_the_file(cli: Cli, run: Path) -> None:
    (run / "preset.yaml").write_text("train: {steps: 5, steps: 6}")
    cli("resume", run, "--steps", 6).refused(str(run / "preset.yaml"), "steps")
