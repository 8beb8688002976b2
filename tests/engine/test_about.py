"""What `diffcli info` says of a run, a checkpoint, an export and a prepared set."""

import json
from pathlib import Path

import pytest
import torch

from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.data.description import DataDescription
from diffcli.engine.about import about, lines
from diffcli.engine.run.showing.run_facts import next_command
from diffcli.engine.run.state import build_on_meta
from tests.conftest import Cli
from tests.engine.one_level import SMALL


def test_a_run_tells_steps_model_data_and_what_to_type(cli: Cli, trained: Path) -> None:
    done = cli("info", trained, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["kind"] == "run"
    assert (found["step"], found["steps"], found["checkpoints"]) == (4, 4, [2, 4])
    assert found["parameters"] == sum(p.numel() for p in build_on_meta(presets.build(SMALL, "")).parameters())
    assert found["image"] == [1, 8, 8]
    assert found["classes"] == list("0123456789")
    assert found["sampler"]["kind"] == "ddim"
    assert found["logged"]["step"] == 4
    assert found["data"]["splits"]["train"] == 9000
    told = cli("info", trained).out
    assert f"diffcli sample {trained}" in told
    assert "4 of 4" in told


def test_a_checkpoint_and_its_file_alone_tell_the_model(trained: Path) -> None:
    folder = trained / "checkpoints" / "step-00000002"
    for path in (folder, folder / "ema.safetensors"):
        found = about(path)
        assert (found["kind"], found["step"], found["task"]) == ("checkpoint", 2, "a diffusion model")
        assert lines(found)["step"] == "2"


def test_a_prepared_set_tells_what_it_holds(cli: Cli, tmp_path: Path) -> None:
    from PIL import Image

    for name in ("cat/0.png", "cat/1.png", "dog/0.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (name[0] == "c" and "red") or "blue").save(tmp_path / "photos" / name)
    assert cli("prep-data", "folder", tmp_path / "photos", "--out", tmp_path / "set", "--workers", 1).code == 0
    found = about(tmp_path / "set")
    assert (found["kind"], found["data"]["classes"], found["data"]["class_counts"]) == (
        "prepared set",
        ["cat", "dog"],
        [2, 1],
    )
    assert f"--data {tmp_path / 'set'}" in lines(found)["next"]


def test_splits_stand_in_one_order_however_they_were_recorded() -> None:
    holds = {"place": "p", "shape": (3, 8, 8)}
    for splits in ({"train": 5, "test": 1}, {"test": 1, "train": 5}):
        assert (
            DataDescription.model_validate(holds | {"splits": splits}).facts["data"] == "p: 6 images (train 5, test 1)"
        )


def test_a_folder_of_runs_names_them(trained: Path) -> None:
    with pytest.raises(UserError) as refused:
        about(trained.parent)
    assert str(trained) in refused.value.hint


def test_an_export_tells_its_pipeline_and_parts(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "model_index.json").write_text(
        json.dumps({"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]})
    )
    (tmp_path / "unet" / "weights").write_bytes(bytes(2048))
    found = about(tmp_path)
    assert (found["kind"], found["pipeline"]) == ("export", "DDPMPipeline")
    assert found["parts"] == {"unet": {"class": "UNet2DModel", "bytes": 2048}}
    assert "2.0 KiB" in lines(found)["unet"]
    assert "diffcli import" in lines(found)["next"]


def test_what_is_none_of_these_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        about(tmp_path / "nothing")
    assert "nothing" in error.value.problem
    with pytest.raises(UserError) as error:
        about(tmp_path)
    assert "prep-data folder" in error.value.hint


def test_no_weights_are_read(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("diffcli.tensor_file.read", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert about(trained)["step"] == 4


def test_what_to_type_next_asks_for_what_the_model_is_drawn_from() -> None:
    def asked(*given: str) -> str:
        conditioners = ["{kind: fps}", *given]
        unled = ["task.drop_condition=0", "guidance=1"]
        made = presets.load("moving-digits", [f"task.conditioners=[{', '.join(conditioners)}]", *unled])
        return next_command(made, Path("run"))

    assert asked() == asked("{kind: frames, channels: 1, given: {none: 1, first: 1}}") == "sample run"
    assert asked("{kind: frames, channels: 1, given: {first: 1}}") == "sample run --image FILE"
    assert asked("{kind: text}") == "sample run --prompt TEXT"


def test_a_model_of_clips_draws_clips() -> None:
    found = {"kind": "checkpoint", "path": "p", "step": 1, "task": "a diffusion model", "name": "n", "parameters": 1}
    absent = dict.fromkeys(("lora", "word", "control", "classes", "sampler", "from", "data", "next"))
    rest = {"networks": {}, "version": "1", "bytes": 1}
    told = lines({**found, **absent, **rest, "image": [1, 6, 20, 24]})
    assert told["reads"] == "clips of 6 frames of 20x24 (HxW), grey"
    assert lines({**found, **absent, **rest, "image": [3, 20, 24]})["reads"] == "images of 20x24 (HxW), RGB"
