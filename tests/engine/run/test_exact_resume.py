"""A run killed at any moment and resumed is the run that was never killed: every byte of every checkpoint, every log line."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffcli.engine.run.runlog import CLOCKED, read_log
from tests import warm
from tests.conftest import WAIT, Cli, finish, in_ranks, start

FILES = ["checkpoint.json", "ema.safetensors", "optimizer.safetensors", "task.safetensors"]

# 40 steps, saved at 20 and 40; a kill in the preview of step 25 finds lines past the checkpoint
FORTY = {
    "train__steps": 40,
    "train__every": {"log": 1, "preview": 25, "save": 20},
    "train__previews": 1,
    "task__network__dropout": 0.2,
    "data__flip": True,
    "task__drop_condition": 0.3,
}

# Adam divides a gradient by its own size, so the rounding of one that is 0 but for rounding would decide a whole step; with an
# eps far above the gradients it takes steps proportional to them, and sums in another order stay within float32's rounding
LINEAR = {"train__optimizer": {"kind": "adamw", "lr": 1.0, "eps": 100}}


def bytes_of(run: Path) -> dict[str, bytes]:
    """Every file below checkpoints/."""
    root = run / "checkpoints"
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def lines(run: Path) -> list[str]:
    """The log as it was written, without what a clock measured."""
    return [json.dumps({k: v for k, v in line.items() if k not in CLOCKED}) for line in read_log(run / "log.jsonl")]


def descendants(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    children = [int(child) for child in found.stdout.split()]
    return children + [d for child in children for d in descendants(child)]


def kill_in_preview(process: subprocess.Popen[str], run: Path) -> None:
    """kill -9 for the process and its workers, once step 25 is logged and before step 26 can be."""
    deadline, step, workers = time.monotonic() + WAIT, 0, []
    while step < 25:
        step = max((line["step"] for line in read_log(run / "log.jsonl")), default=0)
        workers = workers or (descendants(process.pid) if step else [])  # asked early: the kill itself must be quick
        assert process.poll() is None, finish(process).err
        assert time.monotonic() < deadline, "step 25 was never logged"
        time.sleep(0.01)
    for pid in [*workers, process.pid]:
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=WAIT)
    assert process.returncode == -signal.SIGKILL
    killed_past_its_checkpoint(run)


def killed_past_its_checkpoint(run: Path) -> None:
    assert [p.name for p in sorted((run / "checkpoints").glob("step-*"))] == ["step-00000020"]
    assert [line["step"] for line in read_log(run / "log.jsonl")] == list(range(1, 26))


def same_run(one: Path, other: Path) -> None:
    expected = [f"step-{step:08d}/{name}" for step in (20, 40) for name in FILES]
    assert list(bytes_of(one)) == expected
    assert bytes_of(one) == bytes_of(other)
    assert [json.loads(line)["step"] for line in lines(one)] == list(range(1, 41))
    assert lines(one) == lines(other)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_a_run_killed_and_resumed_is_the_run_in_one_go_to_the_byte(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path, precision: str
) -> None:
    preset = tiny(**FORTY, train__precision=precision)
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    words = ("train", "--preset", str(preset), "--run-dir", str(killed))
    code, _, told = warm.ranks(1, warm.killed_in_its_preview, *words, limit=WAIT, env={})
    assert code == -signal.SIGKILL, told
    killed_past_its_checkpoint(killed)
    assert cli("resume", killed).code == 0
    assert cli("train", "--preset", preset, "--run-dir", straight).code == 0
    same_run(killed, straight)


@pytest.mark.slow
def test_two_processes_killed_and_resumed_are_two_in_one_go_to_the_byte(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    preset = tiny(**FORTY, train__batch_size=5, sampler__steps=200)  # uneven shares; a preview that takes seconds
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    kill_in_preview(start("train", "--preset", preset, "--run-dir", killed, "--nproc", 2), killed)
    resumed = in_ranks("resume", killed, "--nproc", 2)
    assert resumed.code == 0, resumed.err
    assert "Warning" not in resumed.err
    assert in_ranks("train", "--preset", preset, "--run-dir", straight, "--nproc", 2).code == 0
    same_run(killed, straight)


def test_half_the_steps_and_then_more_are_all_the_steps_in_one_go(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    preset, half, whole = tiny(train__precision="fp16"), tmp_path / "half", tmp_path / "whole"
    assert cli("train", "--preset", preset, "--run-dir", half, "--steps", 4).code == 0
    assert cli("resume", half, "--steps", 8).code == 0
    assert cli("train", "--preset", preset, "--run-dir", whole, "--steps", 8).code == 0
    last = f"step-{8:08d}"
    assert {n: b for n, b in bytes_of(half).items() if last in n} == {
        n: b for n, b in bytes_of(whole).items() if last in n
    }
    assert lines(half) == lines(whole)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes_up_to_rounding(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    preset, moved, stayed = tiny(**LINEAR, train__batch_size=5), tmp_path / "moved", tmp_path / "stayed"
    assert cli("train", "--preset", preset, "--run-dir", moved, "--steps", 4).code == 0
    resumed = in_ranks("resume", moved, "--steps", 8, "--nproc", 2)
    assert resumed.code == 0, resumed.err
    assert cli("train", "--preset", preset, "--run-dir", stayed, "--steps", 8).code == 0
    close(moved, stayed, 8)


@pytest.mark.slow
def test_two_processes_with_uneven_shares_and_micro_batches_give_the_updates_of_one(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    preset, two, one = (
        tiny(**LINEAR, train__batch_size=5, task__network__dropout=0.2),
        tmp_path / "two",
        tmp_path / "one",
    )
    done = in_ranks("train", "--preset", preset, "--run-dir", two, "--nproc", 2, "--set", "train.accumulate=2")
    assert done.code == 0, done.err
    assert done.out == f"{two}\n"
    assert cli("train", "--preset", preset, "--run-dir", one).code == 0
    close(two, one, 4)


def test_micro_batches_give_the_update_of_the_whole_batch(tiny: Callable[..., Path], cli: Cli, tmp_path: Path) -> None:
    preset, whole = tiny(**LINEAR, train__batch_size=7), tmp_path / "whole"
    assert cli("train", "--preset", preset, "--run-dir", whole).code == 0
    for k in (2, 3, 7):
        parts = tmp_path / f"parts{k}"
        assert cli("train", "--preset", preset, "--run-dir", parts, "--set", f"train.accumulate={k}").code == 0
        close(parts, whole, 4)


def close(one: Path, other: Path, step: int) -> None:
    """Same log and same weights but for the order of float32 sums."""
    for a, b in zip(read_log(one / "log.jsonl"), read_log(other / "log.jsonl"), strict=True):
        for key in a.keys() - set(CLOCKED):
            assert a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-7), (a["step"], key)
    folder = f"checkpoints/step-{step:08d}/task.safetensors"
    ours, theirs = load_file(one / folder), load_file(other / folder)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_resume_from_an_older_checkpoint_sets_the_newer_ones_aside(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    preset, run = tiny(), tmp_path / "run"
    assert cli("train", "--preset", preset, "--run-dir", run).code == 0
    before = bytes_of(run)
    log = lines(run)
    done = cli("resume", run, "--from", 2)
    assert done.code == 0, done.err
    after = bytes_of(run)
    assert {n: b for n, b in after.items() if not n.startswith("superseded")} == before  # the same steps again
    assert {n for n in after if n.startswith("superseded")} == {f"superseded/step-00000004/{name}" for name in FILES}
    assert lines(run) == log


def test_keep_last_keeps_the_newest_checkpoints(tiny: Callable[..., Path], cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    preset = tiny(train__steps=5, train__every={"log": 1, "preview": 0, "save": 1}, train__keep_last=3)
    assert cli("train", "--preset", preset, "--run-dir", run).code == 0
    assert [p.name for p in sorted((run / "checkpoints").iterdir())] == [f"step-{s:08d}" for s in (3, 4, 5)]


def test_resume_changes_the_learning_rate_where_it_is_asked_to(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert cli("train", "--preset", tiny(), "--run-dir", run).code == 0
    assert cli("resume", run, "--steps", 6, "--set", "train.optimizer.lr=1e-5").code == 0
    assert [line["lr"] for line in read_log(run / "log.jsonl")] == [2e-3] * 4 + [1e-5] * 2


@pytest.mark.parametrize(
    "optimizer",
    [
        {"kind": "sgd", "lr": 0.01, "nesterov": True},
        pytest.param(
            {"kind": "adamw8bit", "lr": 1e-3},
            marks=pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"),
        ),
        pytest.param(
            {"kind": "muon", "lr": 1e-3}, marks=pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.9")
        ),
    ],
    ids=lambda optimizer: optimizer["kind"],
)
def test_a_run_of_each_further_optimizer_resumed_is_the_run_in_one_go_to_the_byte(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path, optimizer: dict
) -> None:
    network = {
        "kind": "dit",
        "patch": 4,
        "width": 32,
        "depth": 1,
        "heads": 2,
        "dropout": 0.2,
    }  # 4096 values in a matrix
    curve = {"kind": "inverse_sqrt", "ref": 2}
    preset = tiny(train__optimizer=optimizer, train__curve=curve, task__network=network)
    straight, parted = tmp_path / "straight", tmp_path / "parted"
    assert cli("train", "--preset", preset, "--run-dir", straight).code == 0
    assert cli("train", "--preset", preset, "--run-dir", parted, "--steps", 2).code == 0
    outcome = cli("resume", parted, "--steps", 4)
    assert outcome.code == 0
    assert "stretched" not in outcome.err
    for name in ("ema", "optimizer", "task"):
        file = f"checkpoints/step-00000004/{name}.safetensors"
        one, other = load_file(straight / file), load_file(parted / file)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert [line["lr"] for line in read_log(parted / "log.jsonl")][3] == pytest.approx(optimizer["lr"] / 2**0.5)
