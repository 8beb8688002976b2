"""What is left of a run that was stopped at once, or that ended before its first checkpoint."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from diffcli.config import UserError
from diffcli.engine.run.loop import Loop
from tests.conftest import Cli
from tests.engine.run.test_train import interrupt, logged, steps_saved


def test_a_second_signal_stops_at_once_and_says_what_is_lost(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = interrupt(monkeypatch, step=3, times=2)
    done = cli("train", "--preset", tiny(), "--run-dir", tmp_path / "run")
    assert done.code == 130
    assert steps_saved(tmp_path / "run") == [2]
    first, last = [line for line in done.err.splitlines() if line.startswith("stop")]
    assert "again" in first
    assert "step-00000002" in last
    assert "without saving" in last
    assert f"diffcli resume {tmp_path / 'run'}" in last
    monkeypatch.setattr(Loop, "update", update)
    assert cli("resume", tmp_path / "run").code == 0
    assert logged(tmp_path / "run") == [1, 2, 3, 4]


def test_a_start_that_fails_leaves_nothing(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self, step, batch, stopping):
        raise UserError("a broken image", "mend it")

    monkeypatch.setattr(Loop, "update", refused)
    cli("train", "--preset", tiny(), "--run-dir", tmp_path / "runs/run").refused("a broken image")
    assert not (tmp_path / "runs").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("kept")
    cli("train", "--preset", tiny(), "--run-dir", tmp_path / "mine").refused("a broken image")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_what_a_run_without_a_checkpoint_left_is_moved_away_whole(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for name in ("tensorboard/events.out.tfevents.1", "previews/step-00000009.png", "log.jsonl", "preset.yaml"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(f"old {name}")
    done = cli("train", "--preset", tiny(), "--run-dir", run)
    assert done.code == 0
    assert str(run / "superseded/1") in done.err
    assert (run / "superseded/1/log.jsonl").read_text() == "old log.jsonl"
    assert (run / "superseded/1/previews/step-00000009.png").read_text().startswith("old")
    assert not (run / "previews").exists()
    assert "old" not in [path.read_text(errors="replace")[:3] for path in (run / "tensorboard").iterdir()]


def test_a_run_directory_that_is_no_utf8_is_refused_before_it_is_made(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    folder = os.fsdecode(b"r\xff")
    cli("train", "--preset", tiny(), "--run-dir", tmp_path / folder).refused("--run-dir", "UTF-8", "runs/mine")
    assert not (tmp_path / folder).exists()


def test_an_optimizer_that_is_not_installed_is_refused_before_data_are_measured(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr("diffcli.eight_bit.LEAST", 1)
    monkeypatch.setattr("diffcli.engine.run.train.measure", lambda *given: pytest.fail("measured"))
    chosen = tiny(train__optimizer={"kind": "adamw8bit"})
    refused = cli("train", "--preset", chosen, "--run-dir", tmp_path / "run").refused("adamw8bit")
    assert "diffcli[lowbit]" in refused
    assert not (tmp_path / "run").exists()
