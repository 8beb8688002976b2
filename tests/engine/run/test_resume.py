"""Which runs can be resumed, from where and by whom: one writer at a time, data that have moved, files that are in the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from diffcli import checkpoint, tensor_file
from diffcli.config import UserError
from diffcli.data import lock
from diffcli.data.lock import only_writer
from diffcli.engine.distributed import pick_device
from diffcli.engine.run.resume import hints_to_resume
from diffcli.engine.run.runlog import read_log
from diffcli.tasks.diffusion import DiffusionTask
from tests.conftest import WAIT, Cli, environment, finish, start
from tests.engine.run.test_exact_resume import descendants
from tests.engine.run.test_train import ENDLESS, logged, steps_saved, wait_for_steps

CLASSES = 3


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run of its own at step 4 of 4."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def sorted_images(root: Path) -> Path:
    """Folders a, b, c of four 8x8 images each: as sorted by class as data can be."""
    for number in range(CLASSES):
        (root / "train" / "abc"[number]).mkdir(parents=True)
        for i in range(4):
            image = np.full((8, 8, 3), 80 * number + i, dtype=np.uint8)
            imageio.imwrite(root / "train" / "abc"[number] / f"{i}.png", image)
    return root


def from_folder(tiny: Callable[..., Path], root: Path | str, **keys: object) -> Path:
    classes = [{"kind": "class", "num_classes": CLASSES, "dim": 8}]
    data = {"kind": "folder", "root": str(root), "size": 8}
    return tiny(data=data, task__conditioners=classes, **keys)


def test_a_checkpoint_folder_is_not_a_run_and_nothing_is_trained_inside_it(cli: Cli, run: Path) -> None:
    before = files(run)
    told = cli("resume", run / "checkpoints/step-00000002", "--steps", 9).refused("is a checkpoint, not a run")
    assert f"diffcli resume {run} --from 2" in told
    told = cli("resume", run / "checkpoints", "--steps", 9).refused("is the folder of a run's checkpoints")
    assert f"diffcli resume {run}`" in told
    shutil.copytree(run / "checkpoints/step-00000004", run.parent / "alone")
    cli("resume", run.parent / "alone", "--steps", 9).refused("is a checkpoint, not a run", "diffcli resume RUN")
    assert files(run) == before


def test_a_run_is_resumed_from_any_folder_and_after_its_data_have_moved(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, moved = tmp_path / "run", tmp_path / "moved"
    sorted_images(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    assert cli("train", "--preset", from_folder(tiny, "images"), "--run-dir", run).code == 0
    assert yaml.safe_load((run / "preset.yaml").read_text())["data"]["root"] == str(tmp_path / "images")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = cli("resume", run, "--steps", 5)
    assert done.code == 0, done.err
    (tmp_path / "images").rename(moved)
    told = cli("resume", run, "--steps", 6).refused("data.root", str(tmp_path / "images"), "--set data.root=PATH")
    assert "--data" not in told  # which resume does not have
    done = cli("resume", run, "--steps", 6, "--set", "data.root=../moved")
    assert done.code == 0, done.err
    assert steps_saved(run) == [5, 6]
    root = Path(yaml.safe_load((run / "preset.yaml").read_text())["data"]["root"])
    assert root.is_absolute()
    assert root.samefile(moved)
    cli("resume", run, "--steps", 7, "--set", "data.size=16").refused("--set data.size=16", "data.root")


def test_hints_about_data_are_those_of_resume_but_for_the_commands_in_them() -> None:
    hint = "run `diffcli prep-data KIND SOURCE --out a`, or `diffcli train --data DIR`, or give a folder as --data DIR"
    with pytest.raises(UserError) as caught, hints_to_resume():
        raise UserError("data.root is 'a'", hint)
    assert caught.value.hint == hint.removesuffix("--data DIR") + "--set data.root=DIR"


def test_a_second_writer_is_told_who_is_writing_and_changes_nothing(cli: Cli, run: Path, tiny, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    (fresh / "log.jsonl").write_text('{"step": 1}\n')
    with only_writer(run), only_writer(fresh):
        before = files(tmp_path)
        told = cli("resume", run, "--steps", 9).refused(str(run), f"process {os.getpid()}")
        assert f"kill {os.getpid()}" in told
        cli("train", "--preset", tiny(), "--run-dir", fresh).refused(str(fresh), f"process {os.getpid()}")
        assert (fresh / "log.jsonl").read_text() == '{"step": 1}\n'
        assert {k: v for k, v in files(tmp_path).items() if k in before} == before
    assert not (run / ".lock").exists()
    assert cli("resume", run, "--steps", 5).code == 0


@pytest.mark.slow
def test_a_run_of_two_processes_is_held_by_its_leading_worker_until_it_ends(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start("train", "--preset", tiny(**ENDLESS), "--run-dir", run, "--nproc", 2)
    wait_for_steps(process, run, 2)
    holder = int((run / ".lock").read_text().split()[0])
    assert holder in descendants(process.pid)
    cli("train", "--preset", tiny(), "--run-dir", run).refused(str(run), f"process {holder}")
    assert logged(run)[:2] == [1, 2]  # the log of the live run is still there
    process.send_signal(signal.SIGTERM)
    assert finish(process).code == 130
    assert not (run / ".lock").exists()
    assert logged(run) == list(range(1, steps_saved(run)[0] + 1))


KILLED = """
import os, signal, sys, time
from pathlib import Path
from diffcli.data.lock import only_writer
with only_writer(Path(sys.argv[1])):
    child = os.fork()
    if child == 0:
        time.sleep(60)
    print(child, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(lock.fcntl is None, reason="this system has no flock")
def test_a_killed_writer_holds_nothing_although_a_process_that_it_forked_lives_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as killed:
        assert killed.stdout is not None
        child = int(killed.stdout.readline())
        assert killed.wait(WAIT) == -signal.SIGKILL
        try:
            assert (tmp_path / ".lock").exists()
            with only_writer(tmp_path):
                os.kill(child, 0)  # it is still there
        finally:
            os.kill(child, signal.SIGKILL)


def test_without_locks_on_the_system_training_goes_on_unlocked(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    with only_writer(tmp_path), only_writer(tmp_path):
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["preset.yaml", "log.partial", "tensorboard", "previews", ".lock"])
def test_what_stands_in_the_way_of_a_resumed_run_is_told_in_two_lines(cli: Cli, run: Path, name: str) -> None:
    way, log = run / name, (run / "log.jsonl").read_text()
    if way.is_dir():
        shutil.rmtree(way)
    else:
        way.unlink(missing_ok=True)
    if name in ("tensorboard", "previews"):
        way.write_text("in the way")
    else:
        way.mkdir()
    told = cli("resume", run, "--steps", 6, "--set", "train.every.preview=5").refused(name, "cannot be written")
    assert "step-00000004 stays usable" in told
    assert (run / "log.jsonl").read_text().startswith(log)
    if way.is_dir():
        way.rmdir()
    else:
        way.unlink()
    assert cli("resume", run, "--steps", 6).code == 0


def test_lines_of_a_log_that_tell_no_step_are_left_out_and_later_ones_kept(cli: Cli, run: Path) -> None:
    log = run / "log.jsonl"
    good = log.read_text().splitlines()
    odd = ["[]", "3", '{"loss": 1}', '{"step": "2"}', '{"step": 2, "lo', "[" * 100_000, ""]
    log.write_text("\n".join([*odd, *good[:2], *odd, *good[2:]]) + "\n")
    assert [line["step"] for line in read_log(log)] == [1, 2, 3, 4]
    assert cli("resume", run, "--steps", 5).code == 0
    assert log.read_text().splitlines()[:4] == good
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3, 4, 5]


def test_a_log_without_clock_times_can_be_gone_on_with(cli: Cli, run: Path) -> None:
    (run / "log.jsonl").write_text('{"step": 4}\n')
    assert cli("resume", run, "--steps", 5).code == 0
    assert logged(run) == [4, 5]


def test_a_stretched_curve_and_another_batch_size_are_told(tiny: Callable[..., Path], cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    preset = tiny(train__curve={"kind": "linear"}, train__optimizer={"kind": "adamw", "lr": 8e-3})
    assert cli("train", "--preset", preset, "--run-dir", run).code == 0
    done = cli("resume", run, "--steps", 8)
    assert done.code == 0
    assert "note:  train.steps is 8, was 4: the linear learning-rate curve is stretched" in done.err
    assert "from 0 to 0.003" in done.err  # 8e-3 * (1 - 5 / 8)
    assert [line["lr"] for line in read_log(run / "log.jsonl")][4] == pytest.approx(3e-3)
    done = cli("resume", run, "--steps", 9, "--set", "train.batch_size=5", "--set", "train.curve.kind=constant")
    assert "note:  train.batch_size is 5, was 6: the order of the data shifts: after 48 images" in done.err
    assert "goes on at image 40" in done.err
    assert "curve is stretched" not in done.err
    assert "note:" not in cli("resume", run, "--steps", 10).err


def test_another_optimizer_begins_anew_and_the_person_is_told(cli: Cli, run: Path) -> None:
    done = cli("resume", run, "--steps", 5, "--set", "train.optimizer.kind=sgd")
    assert done.code == 0, done.err
    assert "note:  the optimizer of the phase main is sgd, was adamw" in done.err
    kept = load_file(run / "checkpoints/step-00000005/optimizer.safetensors")
    assert {name.rpartition(":")[2] for name in kept if name.startswith("main/")} == {"momentum_buffer"}


def test_adam_goes_on_from_what_adamw_remembers(cli: Cli, run: Path) -> None:
    done = cli("resume", run, "--steps", 5, "--set", "train.optimizer.kind=adam")
    assert "note:  the optimizer" not in done.err
    kept = load_file(run / "checkpoints/step-00000005/optimizer.safetensors")
    assert {float(value) for name, value in kept.items() if name.endswith(":step")} == {5.0}


def test_a_run_that_has_saved_nothing_yet_is_said_to_be_in_use(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with only_writer(tmp_path / "run"):
        cli("resume", tmp_path / "run").refused(f"process {os.getpid()}")


def test_a_network_is_frozen_in_resuming_and_the_person_is_told(cli: Cli, run: Path) -> None:
    before = load_file(run / "checkpoints/step-00000004/task.safetensors")
    done = cli("resume", run, "--steps", 6, "--set", "train.phases.main.networks=[denoiser]")
    assert done.code == 0, done.err
    assert "note:  train.phases.main.networks is denoiser, was denoiser, conditioners" in done.err
    weights = load_file(run / "checkpoints/step-00000006/ema.safetensors")
    tables = [name for name in before if name.startswith("conditioners")]
    assert tables
    assert all(torch.equal(weights[name], before[name]) for name in tables)
    assert cli("sample", "--ckpt", run, "--no-ema", "--n", 1, "--out", run / "one.png").code == 0
    cli("resume", run, "--steps", 7, "--set", "train.phases.maine.every=2").refused(
        "phases.maine", "did you mean 'main'"
    )


def test_every_file_of_a_checkpoint_is_read_once_in_resuming_and_hashed_in_passing(
    cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(work: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def counting(path: Path) -> Any:
            read.append(f"{path.parent.name}/{path.name}")
            return work(path)

        return counting

    monkeypatch.setattr(tensor_file, "read", counted(tensor_file.read))
    monkeypatch.setattr(checkpoint, "sha256", counted(checkpoint.sha256))
    assert cli("resume", run, "--steps", 5).code == 0
    found = [name for name in read if name.startswith("step-00000004/")]
    assert sorted(found) == [f"step-00000004/{part}.safetensors" for part in ("ema", "optimizer", "task")]


def test_more_processes_than_cuda_devices_are_refused_before_anything_starts(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("diffcli.lookup.torch_build.check_device", lambda name: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for device in ("cuda", "auto"):
        done = cli("train", "--preset", tiny(), "--run-dir", tmp_path / "new", "--device", device, "--nproc", 4)
        done.refused("--nproc 4: only 1 CUDA device", "--device cpu")
    assert not (tmp_path / "new").exists()
    cli("sample", "--ckpt", run, "--device", "cuda", "--nproc", 2).refused("--nproc 2: only 1 CUDA device")


def test_a_worker_without_a_cuda_device_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device("cuda") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")  # as torchrun, typed by a person, says
    with pytest.raises(UserError, match="--nproc 8: only 2 CUDA devices"):
        pick_device("auto")
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="--nproc 3: only 2 CUDA devices"):
        pick_device("cuda")


def test_previews_of_data_sorted_by_class_show_every_class(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, preview = [], DiffusionTask.preview

    def watched(self, batch, *rest):
        labels.append(batch["label"].tolist())
        assert batch["image"].dtype == torch.float32
        return preview(self, batch, *rest)

    monkeypatch.setattr(DiffusionTask, "preview", watched)
    root = sorted_images(tmp_path / "images")
    preset = from_folder(tiny, root, train__every={"log": 1, "preview": 2, "save": 0}, train__previews=3)
    assert cli("train", "--preset", preset, "--run-dir", tmp_path / "run").code == 0
    assert labels == [[0, 1, 2]] * 2
    preset = from_folder(tiny, root, train__every={"log": 1, "preview": 4, "save": 0}, train__previews=100)
    assert cli("train", "--preset", preset, "--run-dir", tmp_path / "all").code == 0
    assert labels[2] == [0] * 4 + [1] * 4 + [2] * 4
