"""`diffcli fid` of a model of clips: what moves, what is kept, single frames and whole clips, through the command."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from diffcli import checkpoint, preset
from tests.conftest import Cli

DATA = {"kind": "moving_digits", "size": 8, "digit": 6, "frames": 4}
UNET = "{kind: unet, width: 8, mult: [1], blocks: [res], attend_at: [], middle: [res], head_dim: 8, temporal: {attention: false}}"
TASKS = {
    "video": f"{{kind: diffusion, field: clip, network: {UNET}, conditioners: [{{kind: class, num_classes: 10, dim: 8}}]}}",
    "follows": f"{{kind: diffusion, field: clip, network: {UNET}, conditioners: [{{kind: frames, channels: 1, "
    "given: {first:1: 0.4, first:3: 0.6}}]}",
    "frames": "{kind: classifier, num_classes: 10, network: {kind: convnet, width: 4}}",
    "clips": "{kind: classifier, field: clip, num_classes: 10, network: {kind: clip_convnet, width: 4}}",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained runs of a model of clips, of a classifier of frames and of one of clips, and the preset of their data."""
    folder = tmp_path_factory.mktemp("runs")
    for name, task in TASKS.items():
        tree = {"name": name, "data": DATA, "task": yaml.safe_load(task), "train": {"steps": 1}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
        built = preset.build(tree, "test")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            task_built = built.task.build(built.specs)
        weights = task_built.state_dict()
        record = {"preset": built.model_dump(mode="json"), "classes": list("0123456789"), "version": "0"}
        checkpoint.save(folder / name / "checkpoints", 1, {"ema": weights, "task": weights, "optimizer": {}}, record)
    return folder


def report(cli: Cli, runs: Path, metrics: str, *more: object) -> dict:
    given = ("--ckpt", runs / "video", "--ref", f"{runs / 'video.yaml'}:test", "--n", 6, "--steps", 2, "--class", "all")
    done = cli("fid", *given, "--metrics", metrics, "--json", "--device", "cpu", *more)
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_clips_are_scored_by_a_classifier_of_their_frames(cli: Cli, runs: Path):
    found = report(cli, runs, "motion,kept,kept_class,fid,accuracy,frame_similarity", "--features", runs / "frames")
    assert found["images"]["n"] == 6
    assert found["reference"]["n"] == 1000
    assert found["layer"] == "penultimate of each frame"
    scores = found["scores"]
    assert {"step", "step_reference", "kept", "kept_reference", "kept_class", "fid", "accuracy"} <= scores.keys()
    assert 0 <= scores["one_thing_reference"] <= 1
    assert scores["frame_similarity_reference"] > 0.5


def test_motion_alone_needs_no_network_and_whole_clips_need_one_of_clips(cli: Cli, runs: Path):
    assert "features" not in report(cli, runs, "motion")
    assert report(cli, runs, "fvd", "--features", runs / "clips")["scores"]["fvd"] > 0
    side = f"{runs / 'video.yaml'}:test"
    same = cli("fid", side, side, "--metrics", "fvd,kid", "--json", "--features", runs / "clips")
    assert same.code == 0, same.err
    assert json.loads(same.out)["scores"]["fvd"] == pytest.approx(0, abs=1e-9)
    given = ("--ckpt", runs / "video", "--n", 6, "--metrics", "fvd", "--features", runs / "frames")
    cli("fid", *given).refused("--metrics fvd", "sees no clips", "r3d_18")


def test_clips_are_scored_of_a_length_and_from_given_frames_that_are_asked_for(cli: Cli, runs: Path):
    given = ("--ref", f"{runs / 'video.yaml'}:test", "--n", 4, "--steps", 1, "--metrics", "motion", "--device", "cpu")
    longer = cli("fid", runs / "video", *given, "--class", "all", "--frames", 6)
    assert longer.code == 0, longer.err
    assert "6 and 4 frames" in longer.err
    for words, pattern in (((), "first:3"), (("--given-frames", "first:1"), "first:1")):
        done = cli("fid", runs / "follows", *given, "--json", *words)
        assert done.code == 0, done.err
        assert json.loads(done.out)["given_frames"] == pattern
    cli("fid", runs / "follows", *given, "--given-frames", "none").refused("none", "first:1 or first:3")
    cli("fid", runs / "follows", *given, "--given-frames", "first:2").refused("first:2", "first:1 or first:3")
    side = f"{runs / 'video.yaml'}:test"
    cli("fid", side, side, "--metrics", "motion", "--given-frames", "first:1").refused("--given-frames", "--ckpt")
