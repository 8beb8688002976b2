"""Several averages in one run: each is that of a run of its own, survives a resume, and any width comes out of snapshots."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from diffcli import checkpoint
from diffcli.ema import gamma_of
from tests.conftest import Cli

POWER = {"kind": "power", "stds": [0.05, 0.1], "every": 2}
SNAPSHOTS = [f"step-{step:08d}-std-{std}.safetensors" for step in (2, 4, 6) for std in ("0.050", "0.100")]


def weights(file: Path) -> dict[str, torch.Tensor]:
    return load_file(file)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], atol: float = 0) -> bool:
    assert one.keys() == other.keys()
    return all(torch.allclose(one[name], other[name], rtol=0, atol=atol) for name in one)


def files(run: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(run)): p.read_bytes()
        for folder in ("checkpoints", "snapshots")
        for p in sorted((run / folder).rglob("*.*"))
        if p.is_file() and "superseded" not in p.parts
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """A folder, and the runs in it by what they were trained with. Do not change them."""
    return tmp_path_factory.mktemp("averages"), {}


@pytest.fixture
def trained_with(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path, runs: tuple[Path, dict[str, Path]]
) -> Callable[..., Path]:
    """A copy of the tiny preset's run with some train.ema of 6 steps, saved every 3."""
    folder, made = runs

    def train(name: str, ema: Any, steps: int = 6) -> Path:
        key = json.dumps([ema, steps])
        if key not in made:
            every = {"log": 1, "preview": 0, "save": 3}
            preset = tiny(train__ema=ema, train__every=every, train__steps=6, train__keep_last=9)
            run = folder / str(len(made))
            outcome = cli("train", "--preset", preset, "--run-dir", run, "--steps", steps)
            assert outcome.code == 0, outcome.err
            made[key] = run
        return Path(shutil.copytree(made[key], tmp_path / name))

    return train


def test_each_of_a_list_of_rates_is_the_average_of_a_run_of_its_own(
    trained_with: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    several, out = trained_with("several", [0.3, 0.9, 0.2]), tmp_path / "out"
    assert {p.name for p in (several / "checkpoints/step-00000006").iterdir()} == {
        "checkpoint.json", "ema.safetensors", "optimizer.safetensors", "task.safetensors",
    }  # fmt: skip
    outcome = cli("ema", several, "--rate", "0.3,0.9,0.2", "--out", out)
    assert outcome.out.split() == [str(out / f"rate-{rate}") for rate in (0.3, 0.9, 0.2)]
    for rate in (0.3, 0.9, 0.2):
        alone = weights(trained_with(f"alone-{rate}", rate) / "checkpoints/step-00000006/ema.safetensors")
        assert same(weights(out / f"rate-{rate}" / "ema.safetensors"), alone)
    assert not same(weights(out / "rate-0.3/ema.safetensors"), weights(out / "rate-0.9/ema.safetensors"))


@pytest.mark.parametrize("ema", [[0.5, 0.9], POWER], ids=["rates", "power"])
def test_a_run_resumed_keeps_all_its_averages_to_the_byte(
    trained_with: Callable[..., Path], cli: Cli, ema: Any, tmp_path: Path
) -> None:
    straight, resumed = trained_with("straight", ema), trained_with("resumed", ema)
    for path in checkpoint.checkpoints(resumed / "checkpoints")[1:]:
        path.rename(tmp_path / path.name)  # as if it had been killed before step 6 was saved, its snapshots standing
    assert cli("resume", resumed).code == 0
    assert files(resumed) == files(straight)
    assert len(files(straight)) == 8 + (6 if ema is POWER else 0)


def test_snapshots_after_the_step_that_a_run_goes_on_from_are_set_aside(
    trained_with: Callable[..., Path], cli: Cli
) -> None:
    run = trained_with("run", POWER)
    assert sorted(p.name for p in (run / "snapshots").iterdir()) == SNAPSHOTS
    assert cli("resume", run, "--from", 3, "--steps", 5, "--set", "train.ema.every=5").code == 0
    kept = [*SNAPSHOTS[:2], *(name.replace("00000002", "00000005") for name in SNAPSHOTS[:2])]
    assert sorted(p.name for p in (run / "snapshots").glob("*.safetensors")) == kept
    assert sorted(p.name for p in (run / "snapshots/superseded").iterdir()) == SNAPSHOTS[2:]


def test_a_stored_width_comes_back_exactly_and_another_is_nearly_the_one_of_a_run_of_its_own(
    trained_with: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    run, out = trained_with("run", {**POWER, "every": 1}), tmp_path / "out"
    outcome = cli("ema", run, "--std", "0.1,0.07", "--out", out)
    assert outcome.out.split() == [str(out / "std-0.100"), str(out / "std-0.070")]
    stored = weights(run / "snapshots/step-00000006-std-0.100.safetensors")
    assert same(weights(out / "std-0.100/ema.safetensors"), stored, atol=1e-6)
    tracked = weights(trained_with("other", {**POWER, "stds": [0.07]}) / "checkpoints/step-00000006/ema.safetensors")
    made = weights(out / "std-0.070/ema.safetensors")
    error, away = (max((a[n] - tracked[n]).abs().max() for n in tracked) for a in (made, stored))
    assert error < 0.1 * away


def test_what_was_made_is_sampled_from_and_says_what_it_is(
    trained_with: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    run, out = trained_with("run", POWER), tmp_path / "out"
    for _ in range(2):  # a second time takes the place of the first
        assert cli("ema", run, "--std", 0.07, "--out", out).code == 0
    made = out / "std-0.070"
    assert sorted(p.name for p in made.iterdir()) == ["checkpoint.json", "ema.safetensors"]
    about = json.loads((made / "checkpoint.json").read_text())
    assert about["average"] == {"kind": "power", "std": 0.07, "snapshots": SNAPSHOTS}
    assert (about["step"], about["preset"]["name"]) == (6, "tiny")
    for path in (made, made / "ema.safetensors", run / "snapshots" / SNAPSHOTS[0]):
        outcome = cli("sample", "--ckpt", path, "--n", 1, "--out", tmp_path / "image.png")
        assert outcome.code == 0, outcome.err
    scored = cli("fid", "--ckpt", made, "--n", 4, "--features", "no-such-run")
    scored.refused("no-such-run")  # the checkpoint was taken, what is told is the extractor
    for path in (made, made / "ema.safetensors", run / "snapshots" / SNAPSHOTS[0]):
        told = cli("sample", "--ckpt", path, "--n", 1, "--no-ema", "--out", tmp_path / "x.png")
        told.refused(f"--no-ema: {path} holds an average only", "leave --no-ema out")


def test_the_first_width_is_the_one_that_is_sampled_from(trained_with: Callable[..., Path]) -> None:
    run = trained_with("run", POWER)
    snapshot = run / "snapshots/step-00000006-std-0.050.safetensors"
    assert same(weights(run / "checkpoints/step-00000006/ema.safetensors"), weights(snapshot))
    with safe_open(snapshot, framework="pt") as opened:
        assert json.loads(opened.metadata()["diffcli"])["average"] == {"kind": "power", "std": 0.05}


def test_after_one_step_a_power_average_is_the_weights_themselves(trained_with: Callable[..., Path]) -> None:
    run = trained_with("run", POWER, steps=1)
    newest = run / "checkpoints/step-00000001"
    assert same(weights(newest / "ema.safetensors"), weights(newest / "task.safetensors"))
    assert gamma_of(0.05) > 0


def test_mistakes_are_told_with_their_remedy(trained_with: Callable[..., Path], cli: Cli, tmp_path: Path) -> None:
    plain, short, out = trained_with("plain", 0.9), trained_with("short", POWER, steps=3), tmp_path / "out"
    few = trained_with("few", {**POWER, "every": 100})
    cli("ema", plain, "--std", 0.05, "--out", out).refused("no snapshots", "0.9", "kind: power", "--rate")
    cli("ema", few, "--std", 0.05, "--out", out).refused("1 steps", "at least 2", "every 100", "resume", "--steps 300")
    assert cli("ema", short, "--std", 0.05, "--out", out).code == 0
    for wrong in ("0", "0.3", "-1"):
        cli("ema", short, f"--std={wrong}", "--out", out).refused(f"--std {float(wrong)}", "0.29", "0.05,0.1")
    cli("ema", short, "--std", "0.05;0.1", "--out", out).refused("--std 0.05;0.1", "0.05,0.1")
    cli("ema", short, "--std", "0.1,0.05,0.0501", "--out", out).refused("--std 0.05", "std-0.050", "once")
    cli("ema", short, "--out", out).refused("--std", "--rate")
    cli("ema", plain, "--rate", 0.5, "--out", out).refused("--rate 0.5", "rate-0.9")
    cli("ema", tmp_path / "none", "--std", 0.05, "--out", out).refused("none")
    (tmp_path / "mine/std-0.050").mkdir(parents=True)
    cli("ema", short, "--std", 0.05, "--out", tmp_path / "mine").refused("std-0.050", "no checkpoint", "--out")


@pytest.mark.parametrize(
    ("was", "wanted", "words"),
    [
        ([0.5, 0.9], [0.5, 0.8], ["rate-0.8", "rate-0.9"]),
        (0.9, POWER, ["std-0.050", "rate-0.9"]),
        (POWER, 0.9, ["rate-0.9", "std-0.050"]),
        (POWER, {**POWER, "stds": [0.1, 0.05]}, ["std-0.100, std-0.050"]),
    ],
)
def test_a_run_goes_on_with_no_average_that_it_has_not_kept(
    trained_with: Callable[..., Path], cli: Cli, was: Any, wanted: Any, words: list[str]
) -> None:
    run = trained_with("run", was)
    before = files(run)
    outcome = cli("resume", run, "--steps", 8, "--set", f"train.ema={json.dumps(wanted)}")
    outcome.refused("train.ema", *words)
    assert files(run) == before


def test_a_snapshot_that_cannot_be_written_stops_the_run_and_leaves_no_half(
    trained_with: Callable[..., Path], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained_with("run", POWER, steps=3)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    cli("resume", run, "--steps", 6).refused("step-00000004-std-0.050.safetensors", "No space left", "resume")
    assert all(p.suffix == ".safetensors" for p in (run / "snapshots").iterdir())
