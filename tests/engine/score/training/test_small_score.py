"""The small score of a run in training: the same measurement every time, its best checkpoint kept, training untouched."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffcli import checkpoint
from diffcli.engine.run.runlog import read_log
from tests.conftest import Cli, changed
from tests.engine.one_level import SMALL

CLASSIFIER = changed(SMALL, task={"kind": "classifier", "num_classes": 10}, guidance=None, sampler=None)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a classifier that has seen next to nothing."""
    from diffcli import preset as presets
    from diffcli.engine.distributed import join
    from diffcli.engine.run.runlog import RunDir
    from diffcli.engine.run.train import train

    run = RunDir(tmp_path_factory.mktemp("features") / "run")
    with join("cpu") as group:
        for _ in train(presets.build(changed(CLASSIFIER, train__steps=1), "classifier"), run, group):
            pass
    return run.path


@pytest.fixture
def scored(cli: Cli, tiny: Callable[..., Path], features: Path, tmp_path: Path) -> Callable[..., Path]:
    """A run that scores every 2 steps."""

    def make(name: str, **keys: Any) -> Path:
        every = {"log": 4, "preview": 0, "save": 2, "score": 2}
        preset = tiny(train__every=every, train__score={"n": 4, "features": str(features)}, **keys)
        done = cli("train", "--preset", preset, "--run-dir", tmp_path / name)
        assert done.code == 0, done.err
        return tmp_path / name

    return make


def test_scores_stand_in_the_log_with_what_they_are_and_the_best_is_kept(
    scored: Callable[..., Path], cli: Cli, trained: Path, tmp_path: Path
) -> None:
    run = scored("run")
    lines = [line for line in read_log(run / "log.jsonl") if "score" in line]
    assert [line["step"] for line in lines] == [2, 4]
    assert all("kid" in line["scored"] and "4 samples" in line["scored"] for line in lines)
    best = checkpoint.read_record(run / "checkpoints" / "best")
    lowest = min(lines, key=lambda line: line["score"])
    assert (best["step"], best["score"]) == (lowest["step"], lowest["score"])
    assert cli("sample", run / "checkpoints" / "best", "--n", 1, "--out", tmp_path / "s.png").code == 0
    found = json.loads(cli("info", run, "--json").out)
    assert found["best"]["step"] == lowest["step"]
    assert checkpoint.checkpoints(run / "checkpoints")[-1].name == "step-00000004"  # what resume takes

    def weights(path: Path) -> Any:
        return checkpoint.read_record(path / "checkpoints" / "step-00000004")["sha256"]["task.safetensors"]

    assert weights(run) == weights(trained)  # which was trained without a score

    first = lines[1]["score"]
    assert cli("resume", run, "--from", 2).code == 0
    again = [line for line in read_log(run / "log.jsonl") if "score" in line]
    assert [line["step"] for line in again] == [2, 4]
    assert again[1]["score"] == first
    assert checkpoint.read_record(run / "checkpoints" / "best")["step"] in (2, 4)


def test_what_draws_no_images_has_no_score(cli: Cli, tmp_path: Path) -> None:
    import yaml

    preset = tmp_path / "classifier.yaml"
    preset.write_text(yaml.safe_dump(CLASSIFIER))
    done = cli("train", "--preset", preset, "--run-dir", tmp_path / "run", "--set", "train.every.score=2")
    done.refused("train.every.score", "train.every.validate")


def test_features_that_are_not_there_are_told_by_their_key(cli: Cli, tiny: Callable[..., Path], tmp_path: Path) -> None:
    keys = ["--set", "train.every.score=2", "--set", f"train.score.features={tmp_path / 'none'}"]
    done = cli("train", "--preset", tiny(), "--run-dir", tmp_path / "run", *keys)
    done.refused("train.score.features", "none")
