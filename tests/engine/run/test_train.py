"""What a run writes, how it stops, and that nothing it has saved is lost when it cannot go on."""

import errno
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import pytest
import torch
import yaml
from safetensors.torch import load_file

from diffcli import checkpoint
from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.engine.run.loop import Loop
from diffcli.engine.run.measuring import split
from diffcli.engine.run.runlog import RunDir, RunLog, read_log
from diffcli.engine.run.state import build_state
from tests import warm
from tests.conftest import WAIT, Cli, environment, start
from tests.engine.one_level import SMALL

ENDLESS = {"train__steps": 100_000, "train__every": {"log": 1, "preview": 0, "save": 0}}


def steps_saved(run: Path) -> list[int]:
    return [int(p.name[5:]) for p in checkpoint.checkpoints(run / "checkpoints")]


def logged(run: Path) -> list[int]:
    return [line["step"] for line in read_log(run / "log.jsonl")]


def wait_for_steps(process: subprocess.Popen[str] | warm.Started, run: Path, steps: int) -> None:
    deadline = time.monotonic() + WAIT
    while len(logged(run)) < steps:
        assert process.poll() is None, process.communicate(WAIT)[1]
        assert time.monotonic() < deadline, "nothing was logged"
        time.sleep(0.02)


def test_a_run_directory_holds_what_the_contract_names(tiny: Callable[..., Path], cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = cli("train", "--preset", tiny(train__every={"log": 2, "preview": 3, "save": 4}), "--run-dir", run)
    assert (done.code, done.out) == (0, f"{run}\n")
    names = sorted(p.name for p in run.iterdir())
    assert names == ["checkpoints", "log.jsonl", "loss.png", "preset.yaml", "preview.png", "previews", "tensorboard"]
    files = ["checkpoint.json", "ema.safetensors", "optimizer.safetensors", "task.safetensors"]
    assert sorted(p.name for p in (run / "checkpoints" / "step-00000004").iterdir()) == files
    assert [p.name for p in (run / "previews").iterdir()] == ["step-00000003.png"]
    assert imageio.imread(run / "previews" / "step-00000003.png").shape == (2 * 113 + 2, 2 * 98 + 2)  # labelled
    assert next(p.name for p in (run / "tensorboard").iterdir()).startswith("events.out.tfevents")
    assert logged(run) == [2, 4]
    line = next(read_log(run / "log.jsonl"))
    wanted = {"step", "loss", "mse", "grad_norm", "lr", "epoch", "images_per_s", "time"}
    assert wanted <= line.keys()
    assert line["epoch"] == pytest.approx(2 * 6 / 9000, abs=1e-4)
    resolved = presets.build(yaml.safe_load((run / "preset.yaml").read_text()), "preset.yaml")
    record = json.loads((run / "checkpoints" / "step-00000004" / "checkpoint.json").read_text())
    assert resolved == presets.build(record["preset"], "record")
    assert record["classes"] == list("0123456789")


def test_progress_is_plain_lines_on_stderr_where_nobody_watches(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    done = cli("train", "--preset", tiny(), "--run-dir", tmp_path / "run")
    told = [line for line in done.err.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in told] == ["1/4", "2/4", "3/4", "4/4"]
    assert all("loss" in line and "images/s" in line for line in told)
    assert all("mse" not in line for line in told)  # which is the loss, under another name
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d", line.split()[2]) for line in told)
    assert "\x1b" not in done.err


def test_a_loss_that_is_not_finite_stops_and_leaves_the_last_good_checkpoint(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    preset = tiny(
        train__optimizer={"kind": "adamw", "lr": 1e30},
        train__clip=None,
        train__every={"log": 1, "preview": 0, "save": 1},
    )
    done = cli("train", "--preset", preset, "--run-dir", run, "--set", "train.clip=null")
    told = done.refused("step 2", "loss", "mse", "grad_norm", "step-00000001", f"diffcli resume {run}", code=1)
    assert "inf" in told or "nan" in told
    assert steps_saved(run) == [1]
    assert logged(run) == [1]
    weights = load_file(run / "checkpoints/step-00000001/ema.safetensors")
    assert all(bool(w.isfinite().all()) for w in weights.values())


def test_poisoned_weights_stop_a_resumed_run_and_nothing_is_overwritten(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert cli("train", "--preset", tiny(), "--run-dir", run).code == 0
    last = run / "checkpoints" / "step-00000004"
    record = checkpoint.read_record(last)
    parts = {part: checkpoint.read_part(last, part, record) for part in checkpoint.PARTS}
    next(iter(parts["task"].values())).fill_(float("nan"))
    del record["step"], record["format"], record["sha256"]
    checkpoint.save(run / "checkpoints", 6, parts, record)
    kept = {p: p.read_bytes() for p in (run / "checkpoints").rglob("*") if p.is_file()}
    cli("resume", run, "--steps", 9).refused("step 7", "nan", "step-00000006", code=1)
    assert {p: p.read_bytes() for p in (run / "checkpoints").rglob("*") if p.is_file()} == kept


def test_a_full_disk_while_saving_leaves_the_earlier_checkpoint_usable(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, save = tmp_path / "run", checkpoint.save_file

    def fails(tensors, path, metadata):
        if "00000004" in str(path) and "task" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path, metadata=metadata)

    monkeypatch.setattr(checkpoint, "save_file", fails)
    done = cli("train", "--preset", tiny(), "--run-dir", run)
    done.refused("No space left on device", "step-00000004", "step-00000002 stays usable", "free some disk")
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-00000002"]
    assert cli("sample", "--ckpt", run, "--n", 1, "--out", tmp_path / "s.png").code == 0
    monkeypatch.setattr(checkpoint, "save_file", save)
    assert cli("resume", run).code == 0
    assert steps_saved(run) == [2, 4]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_under_the_log_is_told_once_and_names_the_checkpoint(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.claim()
    state = build_state(presets.build(SMALL, "tiny.yaml"), torch.device("cpu"))
    checkpoint.save(run.checkpoints, 3, state.parts(), {})
    log = RunLog(run, 0, presets.build(SMALL, "tiny"))
    log._file.close()
    log._file = open("/dev/full", "a")  # noqa: SIM115  the log closes it
    with pytest.raises(UserError, match=r"No space left on device.*step-00000003 stays usable"):
        log.line(4, {"loss": 1.0})
    log.close()


@pytest.mark.parametrize(
    ("number", "nproc"),
    [
        (signal.SIGINT, None),  # forked, in place of a Python that is started
        (signal.SIGTERM, None),
        pytest.param(signal.SIGINT, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 2, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_says_how_to_resume_and_the_run_goes_on(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path, number: int, nproc: int | None
) -> None:
    run = tmp_path / "a run"
    words = [str(word) for word in ("train", "--preset", tiny(**ENDLESS), "--run-dir", run)]
    if nproc is None:
        process: subprocess.Popen[str] | warm.Started = warm.Started(warm.diffcli, tuple(words), {}, tmp_path / "told")
    else:
        process = start(*words, "--nproc", nproc)
    wait_for_steps(process, run, 2)
    process.send_signal(number)
    _, told = process.communicate(timeout=WAIT)
    assert process.returncode == 130, told
    assert f"interrupted; go on with: diffcli resume '{run}'" in told
    assert "Traceback" not in told
    (stopped,) = steps_saved(run)
    assert logged(run) == list(range(1, stopped + 1))
    assert checkpoint.is_whole(run / "checkpoints" / f"step-{stopped:08d}")
    assert cli("resume", run, "--steps", stopped + 2).code == 0
    assert logged(run) == list(range(1, stopped + 3))
    assert stopped + 2 in steps_saved(run)


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int, times: int = 1) -> Any:
    """Ctrl-C, so many times, when a step begins. Returns the method of before, for the run that goes on."""
    update = Loop.update

    def interrupted(self: Loop, now: int, batch: Any, stopping: Any) -> Any:
        for _ in range(times if now == step else 0):
            signal.raise_signal(signal.SIGINT)
        return update(self, now, batch, stopping)

    monkeypatch.setattr(Loop, "update", interrupted)
    return update


def test_an_interrupted_run_ends_where_the_straight_one_does_to_the_byte(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    preset = tiny(train__steps=6, train__every={"log": 1, "preview": 0, "save": 0})
    update = interrupt(monkeypatch, step=3)
    done = cli("train", "--preset", preset, "--run-dir", broken)
    assert done.code == 130
    monkeypatch.setattr(Loop, "update", update)
    assert steps_saved(broken)[0] in (3, 4)
    assert cli("resume", broken).code == 0
    assert cli("train", "--preset", preset, "--run-dir", whole).code == 0
    for name in ("ema", "task", "optimizer"):
        file = f"checkpoints/step-00000006/{name}.safetensors"
        assert (broken / file).read_bytes() == (whole / file).read_bytes()


def test_an_interruption_before_the_first_checkpoint_promises_no_resume(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("diffcli.engine.run.train.build_state", interrupted)
    done = cli("train", "--preset", tiny(), "--run-dir", tmp_path / "run")
    assert done.code == 130
    assert "nothing was saved" in done.err
    assert "diffcli resume" not in done.err


@pytest.mark.slow
def test_a_run_that_torchrun_starts_joins_its_group_and_spares_a_finished_run(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    run, preset = tmp_path / "run", tiny()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "diffcli"]
    command = [*launcher, "train", "--preset", str(preset), "--run-dir", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=WAIT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{run}\n"
    assert steps_saved(run) == [2, 4]
    kept = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    again = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=WAIT, check=False)
    assert again.returncode != 0
    assert f"error: --run-dir {run}: already holds checkpoints" in again.stderr
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == kept


def test_every_nth_step_is_saved_and_kept_for_good(tiny: Callable[..., Path], cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    preset = tiny(train__keep_last=1, train__keep_every=3, train__every__save=2)
    assert cli("train", "--preset", preset, "--steps", 8, "--run-dir", run).code == 0
    assert steps_saved(run) == [3, 6, 8]


def test_a_run_without_checkpoints_may_be_started_anew(tiny: Callable[..., Path], cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "log.jsonl").write_text('{"step": 1, "loss": 1.0, "time": 1.0}\n')
    assert cli("train", "--preset", tiny(), "--run-dir", run).code == 0
    assert logged(run) == [1, 2, 3, 4]


def test_a_last_log_line_cut_short_by_a_crash_is_dropped_on_resume(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert cli("train", "--preset", tiny(), "--run-dir", run).code == 0
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    with (run / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    assert cli("resume", run).code == 0
    assert logged(run) == [1, 2, 3, 4]
    times = [line["time"] for line in read_log(run / "log.jsonl")]
    assert times == sorted(times)


def test_the_seed_decides_the_run(tiny: Callable[..., Path], cli: Cli, tmp_path: Path) -> None:
    preset, losses = tiny(), {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert cli("train", "--preset", preset, "--run-dir", tmp_path / name, "--seed", seed).code == 0
        losses[name] = [line["loss"] for line in read_log(tmp_path / name / "log.jsonl")]
    assert losses["a"] == losses["b"]
    assert losses["a"] != losses["c"]


def test_training_leaves_the_global_random_state_alone(tiny: Callable[..., Path], cli: Cli, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    preset = tiny(task__network__dropout=0.1, train__every={"log": 1, "preview": 2, "save": 2})
    assert cli("train", "--preset", preset, "--run-dir", tmp_path / "run").code == 0
    assert torch.equal(torch.get_rng_state(), before)


def test_previews_and_logs_do_not_change_the_weights(tiny: Callable[..., Path], cli: Cli, tmp_path: Path) -> None:
    files = []
    for name, every in (("quiet", {"log": 0, "preview": 0, "save": 0}), ("loud", {"log": 1, "preview": 1, "save": 1})):
        preset = tiny(name, train__every=every, task__network__dropout=0.1)
        assert cli("train", "--preset", preset, "--run-dir", tmp_path / f"run-{name}").code == 0
        files.append((tmp_path / f"run-{name}" / "checkpoints/step-00000004/task.safetensors").read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize("key", ["train.accumulate=3", "train.precision=bf16", "task.learn_variance=true"])
def test_every_way_to_train_writes_finite_weights(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path, key: str
) -> None:
    run = tmp_path / "run"
    done = cli("train", "--preset", tiny(), "--run-dir", run, "--set", key)
    assert done.code == 0, done.err
    assert all(bool(w.isfinite().all()) for w in load_file(run / "checkpoints/step-00000004/ema.safetensors").values())


@pytest.mark.slow
def test_a_compiled_run_saves_the_names_of_an_eager_one(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path, trained: Path
) -> None:
    run = tmp_path / "run"
    done = cli("train", "--preset", tiny(), "--run-dir", run, "--set", "train.compile=true")
    assert done.code == 0, done.err
    file = "checkpoints/step-00000004/task.safetensors"
    assert load_file(run / file).keys() == load_file(trained / file).keys()


def test_split_gives_nearly_equal_parts_and_none_empty() -> None:
    batch = {"image": torch.arange(7), "position": torch.arange(7)}
    assert [len(part["position"]) for part in split(batch, 3)] == [3, 2, 2]
    assert [len(part["position"]) for part in split({"position": torch.arange(2)}, 3)] == [1, 1]
    assert torch.cat([part["image"] for part in split(batch, 4)]).tolist() == list(range(7))
