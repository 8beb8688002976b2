"""Checkpoints: written whole or not at all, and read back bit for bit."""

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffcli import checkpoint
from diffcli.config import UserError
from diffcli.noise import Noise
from tests import warm
from tests.conftest import WAIT

FILES = ["checkpoint.json", "ema.safetensors", "optimizer.safetensors", "task.safetensors"]
RECORD = {"preset": {"name": "tiny", "lr": 2e-4}, "classes": ["cat", "dog"], "version": "1.2"}


def parts(seed: int = 0) -> dict[str, dict[str, Tensor]]:
    draw = Noise([seed], torch.device("cpu"))
    return {
        "ema": {"w": draw(torch.empty(1, 3, 5))[0], "count": torch.tensor(7)},
        "task": {"w": draw(torch.empty(1, 3, 5))[0], "count": torch.tensor(8)},
        "optimizer": {"main/w:exp_avg": draw(torch.empty(1, 3, 5))[0], "main/w:step": torch.tensor(4.0)},
    }


def save(root: Path, step: int, seed: int = 0) -> Path:
    return checkpoint.save(root, step, parts(seed), RECORD)


def read(path: Path) -> dict[str, dict[str, Tensor]]:
    record = checkpoint.read_record(path)
    return {part: checkpoint.read_part(path, part, record) for part in checkpoint.PARTS}


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def assert_parts(found: dict[str, dict[str, Tensor]], expected: dict[str, dict[str, Tensor]]) -> None:
    for part, tensors in expected.items():
        assert found[part].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(found[part][name], tensor)
            assert found[part][name].dtype == tensor.dtype


def test_what_was_saved_is_read_back(tmp_path):
    path = save(tmp_path / "run" / "checkpoints", 40)
    assert path == tmp_path / "run" / "checkpoints" / "step-00000040"
    assert sorted(contents(path)) == FILES
    assert_parts(read(path), parts())
    record = checkpoint.read_record(path)
    assert record["step"] == 40
    assert {key: record[key] for key in RECORD} == RECORD
    assert checkpoint.is_whole(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_every_dtype_survives_bit_for_bit(tmp_path, dtype):
    state = parts()
    state["task"]["w"] = (torch.arange(12).reshape(3, 4) % 5).to(dtype)
    assert_parts(read(checkpoint.save(tmp_path, 1, state, RECORD)), state)


def test_the_same_state_gives_the_same_bytes_whatever_its_memory_format(tmp_path):
    state, other = parts(), parts()
    image = Noise([1], torch.device("cpu"))(torch.empty(2, 3, 4, 5)[:1]).expand(2, -1, -1, -1)
    state["task"]["k"] = image.contiguous()
    other["task"] = {"k": image.contiguous(memory_format=torch.channels_last)} | other["task"]  # another order, too
    first = checkpoint.save(tmp_path / "a", 5, state, RECORD)
    second = checkpoint.save(tmp_path / "b", 5, other, dict(reversed(RECORD.items())))
    assert contents(first) == contents(second)


def test_the_average_alone_carries_the_record(tmp_path):
    path = save(tmp_path, 40) / "ema.safetensors"
    exported = tmp_path / "model.safetensors"
    shutil.copy(path, exported)
    assert checkpoint.locate(exported) == exported
    record = checkpoint.read_record(exported)
    assert (record["step"], record["preset"]) == (40, RECORD["preset"])
    assert torch.equal(checkpoint.read_part(exported, "ema", record)["w"], parts()["ema"]["w"])
    with pytest.raises(UserError, match="exported file has no 'task' weights"):
        checkpoint.read_part(exported, "task", record)


def test_a_path_is_a_run_or_its_checkpoints_or_one_checkpoint(tmp_path):
    old, new = save(tmp_path / "run" / "checkpoints", 999), save(tmp_path / "run" / "checkpoints", 123456789)
    assert checkpoint.locate(tmp_path / "run") == new
    assert checkpoint.locate(tmp_path / "run" / "checkpoints") == new
    assert checkpoint.locate(old) == old
    assert checkpoint.checkpoints(tmp_path / "run" / "checkpoints") == [old, new]  # by number, not by letter


def test_folders_that_are_no_checkpoints_are_passed_over(tmp_path):
    path = save(tmp_path, 10)
    (tmp_path / "step-00000020").mkdir()  # has no record
    (tmp_path / "notes").mkdir()
    shutil.copytree(path, tmp_path / "step-backup00")
    assert checkpoint.checkpoints(tmp_path) == [path]


@pytest.mark.parametrize("make", [lambda p: None, Path.mkdir, lambda p: (p / "checkpoints").mkdir(parents=True)])
def test_a_path_without_a_checkpoint_is_refused(tmp_path, make):
    make(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"no such checkpoint|holds no whole checkpoint") as raised:
        checkpoint.locate(tmp_path / "nothing")
    assert "run directory" in raised.value.hint


@pytest.mark.parametrize("victim", ["ema", "task", "optimizer"])
def test_a_full_disk_leaves_the_earlier_checkpoint_and_nothing_partial(tmp_path, monkeypatch, victim):
    earlier = save(tmp_path, 10)
    before = contents(earlier)

    def full(tensors, path, metadata):
        save_file(tensors, path, metadata=metadata)
        if victim in path.name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match="No space left on device") as raised:
        save(tmp_path, 20)
    assert raised.value.exit_code == 2
    assert f"{earlier} stays usable" in raised.value.problem
    assert os.listdir(tmp_path) == [earlier.name]
    assert contents(earlier) == before
    monkeypatch.undo()
    assert checkpoint.is_whole(save(tmp_path, 20))  # and saving works again once there is room


def test_a_disk_that_fails_while_flushing_leaves_nothing_partial(tmp_path, monkeypatch):
    earlier = save(tmp_path, 10)

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match="Input/output error"):
        save(tmp_path, 20)
    assert os.listdir(tmp_path) == [earlier.name]


def test_every_file_reaches_the_disk_before_the_checkpoint_gets_its_name(tmp_path, monkeypatch):
    flushed, fsync = [], os.fsync

    def watch(descriptor: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")) if os.path.exists("/proc/self/fd") else None)
        assert (tmp_path / "step-00000020").exists() == (len(flushed) > 5)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    save(tmp_path, 20)
    assert len(flushed) == 6  # four files, their folder, and the folder that holds the new name
    if flushed[0] is not None:
        assert sorted(path.name for path in flushed[:4]) == FILES
        assert flushed[5] == tmp_path


def test_a_really_full_disk_leaves_the_earlier_checkpoint_usable(tmp_path):
    root = tmp_path / "small"
    root.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(root)], capture_output=True)
    if mounted.returncode:  # a user's account; the same fault without a full disk is tested above
        pytest.skip("mounting a small file system needs root")
    try:
        earlier, big = save(root, 10), parts()
        big["task"]["w"] = torch.zeros(60_000)
        with pytest.raises(UserError, match="No space left on device"):
            checkpoint.save(root, 20, big, RECORD)
        assert os.listdir(root) == [earlier.name]
        assert_parts(read(earlier), parts())
        assert checkpoint.is_whole(save(root, 30))
    finally:
        subprocess.run(["umount", str(root)], check=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"):
        save(tmp_path / "run", 1)


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path):
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(UserError, match="cannot write the checkpoint of step 1"):
        save(tmp_path / "checkpoints", 1)


def test_pruning_keeps_the_newest(tmp_path):
    paths = [save(tmp_path, step) for step in (10, 20, 30, 40)]
    checkpoint.prune(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == [path.name for path in paths[2:]]
    checkpoint.prune(tmp_path, 5)
    assert checkpoint.checkpoints(tmp_path) == paths[2:]


def test_leftovers_of_a_crash_are_never_read_and_are_cleared_by_the_next_save(tmp_path):
    whole, here = save(tmp_path, 10), socket.gethostname()
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    for name in (
        f".partial-step-00000020.{here}.{int(dead.stdout)}",
        f".removed-step-00000005.{here}.{dead.stdout[:-1]}",
    ):
        shutil.copytree(whole, tmp_path / name)
    mine = tmp_path / f".removed-step-00000010.{here}.{os.getpid()}"
    shutil.copytree(whole, mine)
    assert checkpoint.checkpoints(tmp_path) == [whole]
    checkpoint.prune(tmp_path, 1)
    second = save(tmp_path, 20)
    assert sorted(os.listdir(tmp_path)) == [whole.name, second.name]
    shutil.copytree(whole, mine)
    checkpoint.prune(tmp_path, 1)  # what an interrupted removal left is no obstacle to the next
    assert os.listdir(tmp_path) == [second.name]


def test_saving_removes_nothing_that_another_host_or_another_program_may_have_written(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    pid = dead.stdout.strip()
    strangers = [".partial-movie.mkv", ".removed-by-me", f".partial-step-00000020.{pid}", f".partial-a.elsewhere.{pid}"]
    for name in strangers:
        (tmp_path / name).mkdir()
        (tmp_path / name / "kept.txt").write_text("kept")
    file = tmp_path / f".partial-notes.{pid}"
    file.write_text("kept")
    save(tmp_path, 10)
    checkpoint.export(tmp_path / "out.safetensors", {"w": torch.ones(1)}, {"step": 10})
    assert all((tmp_path / name / "kept.txt").read_text() == "kept" for name in strangers)
    assert file.read_text() == "kept"


def test_pruning_keeps_every_nth_step_for_good(tmp_path):
    for step in (10, 20, 30, 40, 50):
        save(tmp_path, step)
    checkpoint.prune(tmp_path, 1, forever=20)
    assert [int(path.name[5:]) for path in checkpoint.checkpoints(tmp_path)] == [20, 40, 50]


def killed_half_way(root: str) -> None:
    """Saves step 20 and is killed when its second file is written."""
    real = checkpoint.save_file

    def die(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        real(tensors, path, metadata=metadata)
        if "optimizer" in path.name:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.save_file = die  # type: ignore[assignment]
    checkpoint.save(Path(root), 20, {part: {"w": torch.ones(3)} for part in checkpoint.PARTS}, {})


def test_a_writer_killed_half_way_leaves_the_earlier_checkpoint_the_newest(tmp_path):
    earlier = save(tmp_path, 10)
    assert warm.ranks(1, killed_half_way, str(tmp_path), limit=WAIT, env={})[0] == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 2  # the half-written folder is there, hidden
    assert checkpoint.locate(tmp_path) == earlier
    assert_parts(read(earlier), parts())
    later = save(tmp_path, 20)
    assert sorted(os.listdir(tmp_path)) == [earlier.name, later.name]


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 10, seed=1)
    path = save(tmp_path, 10, seed=2)
    assert_parts(read(path), parts(2))
    assert os.listdir(tmp_path) == [path.name]


def write_often(root: str) -> None:
    """Saves one step again and again; its values say which process wrote."""
    who = float(os.environ["RANK"])
    whole = {part: {"w": torch.full((200_000,), who)} for part in checkpoint.PARTS}
    for _ in range(15):
        checkpoint.save(Path(root), 20, whole, {"who": who})


def test_two_writers_of_one_step_leave_a_whole_checkpoint_of_one_of_them(tmp_path):
    code, _, errors = warm.ranks(2, write_often, str(tmp_path), limit=WAIT, env={})
    assert code == 0, errors
    path = checkpoint.locate(tmp_path)
    record, found = checkpoint.read_record(path), read(path)
    assert checkpoint.is_whole(path)
    assert all((found[part]["w"] == record["who"]).all() for part in checkpoint.PARTS)
    assert os.listdir(tmp_path) == [path.name]
