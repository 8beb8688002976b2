"""Where a run's numbers and pictures go beside its own files."""

import importlib.util
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.engine.run.runlog import RunDir, RunLog
from diffcli.engine.run.showing import trackers
from diffcli.engine.run.showing.trackers import check_trackers, kept_id, opened
from tests.conftest import Cli
from tests.engine.one_level import SMALL

PRESET = presets.build(SMALL, "tiny")


class Recorder(SimpleNamespace):
    """A package that remembers what it was told."""

    def __init__(self) -> None:
        super().__init__(calls=[], Image=lambda data: ("image", np.asarray(data).shape), Settings=lambda **how: how)

    def init(self, **how: Any) -> "Recorder":
        self.calls.append(("init", how))
        return self

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self.calls.append(("log", values, step))

    def define_metric(self, name: str, step_metric: str) -> None:
        self.calls.append(("over", step_metric))

    def finish(self) -> None:
        self.calls.append(("finish",))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    found = Recorder()
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, found)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return found


def use(name: str, folder: Path, start: int = 0) -> None:
    (tracker,) = opened([name], folder, PRESET, start)
    tracker.line(start + 1, {"loss": 0.5})
    tracker.preview(start + 1, np.zeros((4, 6, 1), np.uint8))
    tracker.close()


def test_wandb_is_offline_unless_asked_and_a_resumed_run_is_the_same(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use("wandb", tmp_path)
    monkeypatch.setenv("WANDB_MODE", "online")
    use("wandb", tmp_path, start=4)
    first, second = (call[1] for call in recorder.calls if call[0] == "init")
    assert (first["mode"], second["mode"]) == ("offline", "online")
    assert first["id"] == second["id"]
    assert first["config"]["train"]["steps"] == 4
    told = [call[1] for call in recorder.calls if call[0] == "log"]
    assert told[0] == {"step": 1, "loss": 0.5}
    assert told[1] == {"step": 1, "preview": ("image", (4, 6))}
    assert told[2]["step"] == 5
    assert ("finish",) in recorder.calls


def test_tensorboard_shows_previews_of_clips_in_motion(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(RunDir(tmp_path / "run"), 0, PRESET)
    levels = torch.linspace(-1, 1, 5).view(1, 1, 5, 1, 1).expand(2, 1, 5, 4, 6)
    log.preview(3, levels, fps=80)
    log.close()
    (told,) = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload().Images("preview")
    film = Image.open(io.BytesIO(told.encoded_image_string))
    assert (told.step, film.format, film.n_frames) == (3, "GIF", 5)
    assert (told.width, told.height) == film.size == Image.open(tmp_path / "run/preview.png").size
    film.seek(1)
    assert film.info["duration"] == 20, "milliseconds: no .gif is faster"


def test_trackio_is_told_the_same(recorder: Recorder, tmp_path: Path) -> None:
    use("trackio", tmp_path)
    use("trackio", tmp_path, start=4)
    names = {call[1]["name"] for call in recorder.calls if call[0] == "init"}
    assert len(names) == 1
    assert [call[2] for call in recorder.calls if call[0] == "log"] == [1, 1, 5, 5]
    assert recorder.calls[2][1] == {"preview": ("image", (4, 6, 3))}


def test_runs_of_one_name_have_ids_of_their_own(tmp_path: Path) -> None:
    assert kept_id(tmp_path / "a") == kept_id(tmp_path / "a") != kept_id(tmp_path / "b")


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(
    cli: Cli, tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None if name == "trackio" else real(name))
    check_trackers(["tensorboard"])
    with pytest.raises(UserError):
        check_trackers(["tensorboard", "trackio"])
    done = cli("train", "--preset", tiny(), "--run-dir", tmp_path / "run", "--set", "train.log=[trackio]")
    done.refused("trackio", "pip install", "train.log")
    assert not (tmp_path / "run").exists()


def test_no_tracker_leaves_the_log_alone(cli: Cli, tiny, tmp_path: Path) -> None:
    done = cli("train", "--preset", tiny(), "--run-dir", tmp_path / "run", "--set", "train.log=[]")
    assert done.code == 0, done.err
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 4


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_a_real_offline_run_of_wandb_stands_in_the_run_folder(
    cli: Cli, tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run = tmp_path / "run"
    assert cli("train", "--preset", tiny(), "--run-dir", run, "--set", "train.log=[wandb]").code == 0
    assert list((run / "wandb").glob("offline-run-*/run-*.wandb"))
    assert json.loads((run / "log.jsonl").read_text().splitlines()[-1])["step"] == 4
