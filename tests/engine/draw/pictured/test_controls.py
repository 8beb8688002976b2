"""Pictures that lead a model where images are drawn: scales, branches of other runs, records, and what does not fit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import diffcli
from diffcli import checkpoint
from diffcli.engine.draw.pictured.exactness import exact_overlap
from tests.conftest import Cli
from tests.engine.draw.making import made
from tests.engine.run.test_control_runs import control as control

FEW = ("--n", 2, "--steps", 2)


@pytest.fixture(scope="module")
def hint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("hint") / "edges.png"
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(file)
    return file


def drawn(cli: Cli, out: Path, *arguments: object) -> np.ndarray:
    done = cli("sample", *arguments, *FEW, "--out", out)
    assert done.code == 0, done.err
    return np.asarray(Image.open(out))


@pytest.fixture(scope="module")
def strong(tmp_path_factory: pytest.TempPathFactory, control: Path) -> Path:
    """The control run with residuals that can be seen."""
    from diffcli.engine.model import load_model

    found = checkpoint.locate(control)
    task = load_model(found, torch.device("cpu")).task
    state = {name: value * 30 if ".zeros." in name else value for name, value in task.state_dict().items()}
    place = tmp_path_factory.mktemp("strong") / "step-00000004"
    return checkpoint.save_average(place, state, checkpoint.read_record(found))


def test_at_scale_0_the_images_are_those_of_the_model_and_no_picture_is_wanted(
    cli: Cli, tmp_path: Path, trained: Path, strong: Path, hint: Path
) -> None:
    plain = drawn(cli, tmp_path / "a.png", trained)
    assert np.array_equal(drawn(cli, tmp_path / "b.png", strong, "--control-scale", 0), plain)
    assert np.array_equal(drawn(cli, tmp_path / "c.png", strong, "--control-scale", "edges=0", "--image", hint), plain)
    assert not np.array_equal(drawn(cli, tmp_path / "d.png", strong, "--image", hint), plain)


def test_a_branch_beside_the_plain_model_is_the_run_that_it_is_from(
    cli: Cli, tmp_path: Path, trained: Path, strong: Path, hint: Path
) -> None:
    own = drawn(cli, tmp_path / "a.png", strong, "--field", f"edges={hint}", "--control-scale", 0.5)
    added = ("--control", f"{strong}:0.5", "--field", f"edges={hint}")
    assert np.array_equal(drawn(cli, tmp_path / "b.png", trained, *added), own)
    record = json.loads((tmp_path / "b.png.json").read_text())
    assert record["control"]["edges"]["scale"] == 0.5
    assert record["control"]["edges"]["checkpoint"] == str(strong)
    assert json.loads((tmp_path / "a.png.json").read_text())["control"] == {"edges": {"scale": 0.5}}
    assert cli("sample", "--like", tmp_path / "b.png", "--out", tmp_path / "c.png").code == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "c.png")), own)


def test_in_python_a_branch_beside_the_plain_model_is_the_run_that_it_is_from(
    trained: Path, strong: Path, hint: Path
) -> None:
    options: dict[str, Any] = {"n": 2, "steps": 2, "edges": str(hint)}
    one = diffcli.load(strong, device="cpu").sample(**options, control_scale=0.7)
    given = {"edges": str(hint)}
    other = diffcli.load(trained, device="cpu").sample(2, steps=2, given=given, control={strong: 0.7})
    assert torch.equal(one.tensor, other.tensor)


def test_animations_and_scores_take_control(cli: Cli, tmp_path: Path, strong: Path, hint: Path) -> None:
    assert cli("gif", strong, "--image", hint, "--control-scale", 2, *FEW, "--out", tmp_path / "a.gif").code == 0
    scored = cli("fid", strong, "--n", 4, "--metrics", "follows", "--steps", 2, "--json")
    assert scored.code == 0, scored.err
    assert "follows" in json.loads(scored.out)["scores"]


def test_exact_tiles_of_a_led_model_overlap_by_the_reach_of_its_hints_too() -> None:
    keys: dict[str, Any] = {"task__network__middle": ["res"]}
    plain = made(**keys)
    led = made(**keys, data__derived=[{"kind": "edges"}], task__control=[{"field": "edges"}])
    reach = led.task.controlled.branches[0].hint.reach
    assert exact_overlap(led) - exact_overlap(plain) >= 2 * reach - 1


def test_mistakes_are_one_error_each(cli: Cli, tmp_path: Path, trained: Path, strong: Path, hint: Path) -> None:
    def refused(*arguments: object) -> Any:
        return lambda *words: cli("sample", *arguments, *FEW, "--out", tmp_path / "x.png").refused(*words)

    refused(trained, "--control-scale", 0.5)("--control-scale 0.5", "--control RUN")
    refused(strong)("'edges'", "--field edges=FILE")
    refused(strong, "--image", hint, "--control", strong)("--control", "'edges'")
    refused(strong, "--image", hint, "--control-scale", "edge=1")("--control-scale edge=1", "edges")
    refused(trained, "--image", hint, "--control", trained)("--control", "task.control")
    refused(trained, "--image", hint, "--control", tmp_path / "gone:2")("--control", "gone")
    refused(trained, "--image", hint, "--control", strong, "--no-ema")("--no-ema")
    assert not (tmp_path / "x.png").exists()


def test_control_of_another_model_is_refused_by_its_digest(
    cli: Cli, tmp_path: Path, trained: Path, strong: Path, hint: Path
) -> None:
    found = checkpoint.locate(trained)
    record = checkpoint.read_record(found)
    weights = checkpoint.read_part(found, "ema", record)
    name = next(name for name in weights if name.endswith("stem.weight"))
    other = checkpoint.save_average(tmp_path / "step-00000004", weights | {name: weights[name] + 1}, record)
    told = cli("sample", other, "--control", strong, "--image", hint, *FEW, "--out", tmp_path / "x.png")
    told.refused("--control", "leads the weights", "task.control.from", f"--ckpt {found},")
