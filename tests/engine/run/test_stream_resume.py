"""A run on a stream, stopped in the middle of an epoch and resumed, sees the samples that the uninterrupted run saw."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffcli import preset as presets
from diffcli.engine.run.feed import crowding
from diffcli.engine.run.runlog import CLOCKED, read_log
from tests.conftest import Cli, in_ranks
from tests.data.stream.streaming import serving, shard, write_shards

SIZES = [9, 5, 8, 7, 6]  # an epoch is 35 samples, 6 steps

# as in test_exact_resume: updates proportional to the gradients, so that sums in another order stay close
LINEAR = {"train__optimizer": {"kind": "adamw", "lr": 1.0, "eps": 100}}


def options(shards: object, **more: object) -> dict[str, object]:
    data = {"kind": "stream", "size": 8, "channels": 1, "classes": list("0123456789"), "pause": 0.001, "retries": 2}
    return {"data": {**data, "shards": shards, "shuffle": 12, "lanes": 3, "flip": True, **more}, "train__steps": 16}


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / f"step-{step:08d}"
    return {
        f"{name}/{key}": v
        for name in ("ema", "optimizer", "task")
        for key, v in load_file(folder / f"{name}.safetensors").items()
    }


def lines(run: Path) -> list[dict[str, object]]:
    return [{k: v for k, v in line.items() if k not in CLOCKED} for line in read_log(run / "log.jsonl")]


def record(run: Path, step: int) -> dict[str, object]:
    return json.loads((run / "checkpoints" / f"step-{step:08d}" / "checkpoint.json").read_text())


def same(one: Path, other: Path, step: int) -> None:
    ours, theirs = weights(one, step), weights(other, step)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert record(one, step)["feed"] == record(other, step)["feed"]


@pytest.mark.parametrize(
    ("lanes", "world", "shards", "batch", "told"),
    [
        (32, 8, 100, 128, []),
        (8, 8, 100, 128, ["8 processes", "1 of its train.workers 2", "data.lanes=16"]),
        (8, 16, 100, 128, ["2 of 16 processes", "same shard", "data.lanes=32"]),
        (4, 16, 4, 128, ["4 of 16 processes", "4 shards"]),
        (4, 1, 4, 128, []),
        (1, 1, 1, 128, []),
    ],
)
def test_too_few_lanes_for_the_processes_are_noted_with_what_they_cost(
    tiny: Callable[..., Path], lanes: int, world: int, shards: int, batch: int, told: list[str]
) -> None:
    chosen = presets.load(str(tiny(train__batch_size=batch)))
    notes = crowding(lanes, chosen, world, shards)
    assert len(notes) == bool(told)
    assert all(word in notes[0] for word in told)


@pytest.mark.parametrize("nproc", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_stream_resumed_in_the_middle_of_an_epoch_is_the_run_in_one_go(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path, nproc: int
) -> None:
    preset = tiny(**options(write_shards(tmp_path / "shards", SIZES)), train__every__save=9)
    command = cli if nproc == 1 else lambda *arguments: in_ranks(*arguments, "--nproc", nproc)
    straight, run = tmp_path / "straight", tmp_path / "run"
    done = command("train", "--preset", preset, "--run-dir", run)
    assert done.code == 0, done.err
    shutil.copytree(run, straight)
    done = command("resume", run, "--from", 9)
    assert done.code == 0, done.err
    same(straight, run, 16)
    assert lines(straight) == lines(run)
    assert lines(run)[-1]["epoch"] > 2


@pytest.mark.slow
def test_a_stream_goes_on_with_another_number_of_processes_up_to_rounding(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    preset = tiny(**LINEAR, **options(write_shards(tmp_path / "shards", SIZES)), train__batch_size=7)
    moved, stayed = tmp_path / "moved", tmp_path / "stayed"
    assert cli("train", "--preset", preset, "--run-dir", moved, "--steps", 7).code == 0
    resumed = in_ranks("resume", moved, "--steps", 16, "--nproc", 2)
    assert resumed.code == 0, resumed.err
    assert cli("train", "--preset", preset, "--run-dir", stayed).code == 0
    assert record(moved, 16)["feed"] == record(stayed, 16)["feed"]
    ours, theirs = weights(moved, 16), weights(stayed, 16)
    for name in (key for key in ours if key.startswith("task")):
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


def test_broken_shards_and_samples_are_counted_in_the_log_across_a_resume(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    files = {f"{n}.tar": shard(100 * n, 12, **{f"{n}99999__png": b"none", f"{n}99999__cls": b"1"}) for n in range(4)}
    files["3.tar"] = files["3.tar"][:6000]
    with serving(files) as server:
        preset = tiny(**options(f"{server.url}/{{0..4}}.tar", lanes=2), train__previews=2, train__every__preview=5)
        straight, parted = tmp_path / "straight", tmp_path / "parted"
        done = cli("train", "--preset", preset, "--run-dir", straight)
        assert done.code == 0, done.err
        assert "4.tar: HTTP 404" in done.err
        assert "3.tar: it breaks off" in done.err
        assert done.err.count("sample left out") == 1
        assert cli("train", "--preset", preset, "--run-dir", parted, "--steps", 9).code == 0
        assert cli("resume", parted, "--steps", 16).code == 0
    same(straight, parted, 16)
    assert lines(straight) == lines(parted)
    last = lines(straight)[-1]
    assert last["broken_shards"] > 1
    assert last["broken_samples"] > 1


def test_dry_run_tells_the_number_of_shards_and_fid_says_why_a_stream_is_no_reference(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    shards = write_shards(tmp_path / "shards", SIZES)
    preset = tiny(**options(shards))
    done = cli("train", "--preset", preset, "--dry-run")
    assert done.code == 0, done.err
    assert "# shards: 5" in done.out
    assert "# images: unknown: data.kind 'stream'" in done.out
    cli("fid", f"{preset}:train", f"{preset}:train").refused("data.kind 'stream'", "data.test_shards")
    cli("fid", f"{preset}:test", f"{preset}:test").refused("no split 'test'")


def test_data_on_the_command_line_may_be_an_address(tiny: Callable[..., Path], cli: Cli, tmp_path: Path) -> None:
    with serving({"a.tar": shard(0, 12)}) as server:
        url = f"{server.url}/{{a,b}}.tar"
        for preset in (tiny(), tiny("streamed", **options("none.tar"))):
            done = cli("train", "--preset", preset, "--data", url, "--dry-run")
            assert done.code == 0, done.err
            assert f"shards: {url}" in done.out
        done = cli("train", "--preset", preset, "--data", url, "--steps", 2, "--run-dir", tmp_path / "run")
        assert done.code == 0, done.err
        assert "b.tar: HTTP 404" in done.err


def test_a_run_goes_on_where_its_shards_have_moved_but_not_on_others(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    shards, run = write_shards(tmp_path / "shards", SIZES), tmp_path / "run"
    assert cli("train", "--preset", tiny(**options(shards)), "--run-dir", run, "--steps", 2).code == 0
    (tmp_path / "shards").rename(tmp_path / "moved")
    moved = shards.replace("/shards/", "/moved/")
    cli("resume", run, "--steps", 4, "--set", f"data.shards={tmp_path}/moved/train-{{000000..000003}}.tar").refused(
        "names 4 shards, the run was trained on 5"
    )
    cli("resume", run, "--steps", 4).refused("none of the 5 shards can be read", "No such file")
    done = cli("resume", run, "--steps", 4, "--set", f"data.shards={moved}")
    assert done.code == 0, done.err
