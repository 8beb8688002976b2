"""Runs that lead a trained model: the model stays as it is, and everything about the run is as for any other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from diffcli import checkpoint
from diffcli.config import UserError
from diffcli.engine.control_reading import begun
from diffcli.engine.run.runlog import read_log
from diffcli.tasks.control.led_weights import digest_of, own_tensors
from tests.conftest import TINY, Cli, in_ranks, trained_to_its_end
from tests.engine.one_level import SMALL, TWO_LEVELS
from tests.engine.run.test_exact_resume import LINEAR, bytes_of, close, lines
from tests.engine.run.test_latent_runs import run as latent

__all__ = ["control", "latent"]  # fixtures
LAST = "checkpoints/step-00000004"


def led(run: Path, **keys: Any) -> dict[str, Any]:
    """Keys of a preset that leads a run by edges."""
    return {
        "data__derived": [{"kind": "edges"}],
        "task__control": [{"from": str(run), "field": "edges"}],
        "train__optimizer": {"kind": "adamw", "lr": 1e-2},
        **keys,
    }


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two levels, whose branch gains more than rounding within four linear steps. Do not change it."""
    return trained_to_its_end(TINY, tmp_path_factory.mktemp("deep") / "run")


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Path:
    """A run that leads the session's tiny run, 4 steps. Do not change it."""
    from diffcli import preset as presets
    from diffcli.engine.distributed import join
    from diffcli.engine.run.runlog import RunDir
    from diffcli.engine.run.train import train
    from tests.conftest import changed

    run = RunDir(tmp_path_factory.mktemp("control") / "run")
    run.claim()
    with join("cpu") as group:
        for _ in train(presets.build(changed(SMALL, **led(trained)), "led.yaml"), run, group):
            pass
    return run.path


def test_the_model_is_unchanged_bit_for_bit_and_travels_in_the_checkpoint(control: Path, trained: Path) -> None:
    before, after = (load_file(run / LAST / "ema.safetensors") for run in (trained, control))
    assert digest_of(own_tensors(after)) == digest_of(own_tensors(before))
    note = checkpoint.read_record(control / LAST)["control"]
    assert (note["sha256"], note["from"], note["step"]) == (digest_of(own_tensors(before)), str(trained), 4)
    for name, value in before.items():
        assert torch.equal(after[name.replace("denoiser.network.", "denoiser.network.base.")], value)
    assert any(value.any() for name, value in after.items() if ".zeros." in name)


def test_training_keeps_no_optimizer_state_and_no_second_copy_of_the_model(control: Path) -> None:
    task, optimizer = (load_file(control / LAST / f"{part}.safetensors") for part in ("task", "optimizer"))
    assert optimizer
    assert all(".branches." in name for name in [*optimizer, *task] if "denoiser" in name)


def test_the_log_tells_the_gain_of_every_line(control: Path) -> None:
    found = list(read_log(control / "log.jsonl"))
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    assert found[0]["control_gain"] == 0
    assert found[-1]["control_gain"] != 0
    assert all(line["control_since"] == 0 for line in found)


def test_a_run_is_complete_without_the_model_and_resumes_to_the_byte(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path, trained: Path
) -> None:
    import shutil

    source, half, whole = tmp_path / "source", tmp_path / "half", tmp_path / "whole"
    shutil.copytree(trained, source)
    preset = tiny(**led(source))
    assert cli("train", "--preset", preset, "--run-dir", whole).code == 0
    assert cli("train", "--preset", preset, "--run-dir", half, "--steps", 2).code == 0
    shutil.rmtree(source)
    assert cli("resume", half, "--steps", 4).code == 0
    parted, straight = ({n: b for n, b in bytes_of(run).items() if "step-00000004" in n} for run in (half, whole))
    assert len(parted) == 4
    assert parted == straight
    assert lines(half) == lines(whole)


def test_micro_batches_give_the_run_of_whole_batches(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path, deep: Path
) -> None:
    preset, whole, parts = tiny(**led(deep) | LINEAR | TWO_LEVELS), tmp_path / "whole", tmp_path / "parts"
    assert cli("train", "--preset", preset, "--run-dir", whole).code == 0
    assert cli("train", "--preset", preset, "--run-dir", parts, "--set", "train.accumulate=2").code == 0
    close(whole, parts, 4)


@pytest.mark.slow
def test_two_processes_give_the_run_of_one(tiny: Callable[..., Path], cli: Cli, tmp_path: Path, deep: Path) -> None:
    preset, one, two = tiny(**led(deep) | LINEAR | TWO_LEVELS), tmp_path / "one", tmp_path / "two"
    assert cli("train", "--preset", preset, "--run-dir", one).code == 0
    done = in_ranks("train", "--preset", preset, "--run-dir", two, "--nproc", 2, "--device", "cpu")
    assert done.code == 0, done.err
    close(one, two, 4)


def test_a_preset_may_leave_out_all_that_the_model_says(cli: Cli, tmp_path: Path, trained: Path) -> None:
    from diffcli import preset as presets

    raw = {
        "name": "short",
        "data": {"kind": "digits", "size": 8, "derived": [{"kind": "edges"}]},
        "task": {"kind": "diffusion", "control": {"from": str(trained), "field": "edges"}},
        "train": {"steps": 2},
    }
    short = presets.build(raw, "short.yaml")
    base = presets.build(checkpoint.read_record(trained / LAST)["preset"], "base.yaml")
    assert short.task.model_copy(update={"control": ()}) == base.task
    assert (short.sampler, short.guidance) == (base.sampler, base.guidance)
    assert begun(short) is not None
    guided = presets.build(raw, "short.yaml", ["guidance=1", "sampler={kind: heun, steps: 2}"])
    assert (guided.sampler.kind, guided.guidance) == ("heun", 1)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"task__network__width": 16, "task__target": "eps"}, ["task.network.width is 16, there 8", "task.target"]),
        ({"task__schedule": {"kind": "linear", "steps": 1000}}, ["task.schedule.kind is 'linear', there 'cosine'"]),
        ({"data__size": 16}, ["1x8x8", "1x16x16", "data.size=8"]),
    ],
)
def test_a_preset_that_contradicts_its_model_is_one_error_before_any_step(
    keys: dict[str, Any], words: list[str], tiny: Callable[..., Path], cli: Cli, tmp_path: Path, trained: Path
) -> None:
    run = tmp_path / "run"
    cli("train", "--preset", tiny(**led(trained) | keys), "--run-dir", run).refused("task.control.from", *words)
    assert not list(run.rglob("*.safetensors"))


def test_what_is_no_model_to_lead_is_refused(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path, control: Path, trained: Path
) -> None:
    missing = led(tmp_path / "nowhere")
    cli("train", "--preset", tiny(**missing), "--run-dir", tmp_path / "a").refused("task.control.from", "nowhere")
    cli("train", "--preset", tiny(**led(control)), "--run-dir", tmp_path / "b").refused("is led by pictures itself")
    both = led(trained) | {"from": str(trained)}
    cli("train", "--preset", tiny(**both), "--run-dir", tmp_path / "d").refused("--set from=null")
    at_once = led(trained) | {"train__lora": {"rank": 2}}
    cli("train", "--preset", tiny(**at_once), "--run-dir", tmp_path / "e").refused(
        "train.lora", "--set train.lora=null"
    )
    nothing = led(control) | {"task__control": [{"field": "edges"}]}
    cli("train", "--preset", tiny(**nothing), "--run-dir", tmp_path / "c").refused("task.control.from is missing")


def test_a_change_of_a_model_is_merged_before_it_is_led(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path, trained: Path
) -> None:
    lora = tiny(train__lora={"rank": 2, "targets": ["all"]}, **{"from": str(trained)})
    assert cli("train", "--preset", lora, "--run-dir", tmp_path / "lora").code == 0
    told = cli("train", "--preset", tiny(**led(tmp_path / "lora")), "--run-dir", tmp_path / "run")
    told.refused("task.control.from", f"diffcli export {checkpoint.locate(tmp_path / 'lora')} --merge")


def test_a_run_begins_from_the_model_that_is_led_not_from_what_leads_it(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path, trained: Path, control: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    cli("train", "--preset", tiny(), "--from", control, "--run-dir", run).refused("from", str(control), str(trained))
    pictures = next(trained.rglob("*.png")).parent
    monkeypatch.chdir(tmp_path)
    cli("presets", "new", "mine", "--data", pictures, "--from", control).refused("from", str(control), str(trained))
    assert not run.exists()
    assert not Path("mine.yaml").exists()


def test_dry_run_says_who_is_trained_and_looks_at_the_model_where_it_is_there(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path, trained: Path
) -> None:
    done = cli("train", "--preset", tiny(**led(trained)), "--dry-run")
    assert done.code == 0
    (roles,) = [line for line in done.out.splitlines() if line.startswith("# networks:")]
    assert "base" in roles.partition("(frozen)")[0]
    assert "(trained by main)" in roles.partition("control")[2]
    other = led(trained) | {"task__network__width": 16}
    cli("train", "--preset", tiny(**other), "--dry-run").refused("task.network.width")
    assert cli("train", "--preset", tiny(**led(tmp_path / "later")), "--dry-run").code == 0


def test_weights_of_another_shape_than_their_record_says_are_named() -> None:
    from diffcli import preset as presets
    from diffcli.engine.control_reading import Led, install
    from tests.conftest import changed

    chosen = presets.build(changed(SMALL, **led(Path("x"))), "led.yaml")
    task = chosen.task.build(chosen.specs)
    with pytest.raises(UserError) as told:
        install(task, Led(Path("x"), {}, chosen, {"denoiser.network.stem.weight": torch.zeros(3)}))
    assert "denoiser.network.base.stem.weight is 8x1x3x3, there 3" in told.value.problem


def test_a_latent_model_is_led_with_its_first_stage_and_its_measured_scale(
    latent: Path, cli: Cli, tmp_path: Path
) -> None:
    found = checkpoint.locate(latent)
    record = checkpoint.read_record(found)
    raw = {
        "name": "led",
        "data": {**record["preset"]["data"], "derived": [{"kind": "edges"}]},
        "task": {"kind": "diffusion", "control": {"from": str(latent), "field": "edges"}},
        "train": {"steps": 2, "batch_size": 4, "every": {"log": 1, "save": 2, "preview": 0}},
    }
    (tmp_path / "led.yaml").write_text(yaml.safe_dump(raw))
    done = cli("train", "--preset", tmp_path / "led.yaml", "--run-dir", tmp_path / "run")
    assert done.code == 0, done.err
    ours, theirs = (load_file(path / "ema.safetensors") for path in (checkpoint.locate(tmp_path / "run"), found))
    codec = [name for name in theirs if name.startswith("codec.")]
    assert codec
    assert all(torch.equal(ours[name], theirs[name]) for name in codec)
    assert checkpoint.read_record(checkpoint.locate(tmp_path / "run"))["first_stage"] == record["first_stage"]
    few = ("--n", 2, "--steps", 2, "--out")
    assert cli("sample", tmp_path / "run", "--control-scale", 0, *few, tmp_path / "a.npz").code == 0
    assert cli("sample", latent, *few, tmp_path / "b.npz").code == 0
    assert np.array_equal(*(np.load(tmp_path / f"{name}.npz")["arr_0"] for name in "ab"))
