"""The loss on held-out images: the same images, times and noise every time, on any number of processes; and data-wait."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffcli import noise, preset
from diffcli.data.datasets import Digits
from diffcli.engine.distributed import Group
from diffcli.engine.run.loop import Waits
from diffcli.engine.run.runlog import CLOCKED, read_log
from diffcli.engine.run.state import build_state
from diffcli.engine.run.validation import SEED, Validation
from diffcli.fields import to_float
from diffcli.noise import Domain
from tests.conftest import Cli, changed, in_ranks
from tests.data.making import encoded
from tests.engine.one_level import SMALL

ALONE = Group(0, 1, torch.device("cpu"))
VALIDATED = {"train__every": {"log": 2, "preview": 0, "save": 2, "validate": 2}, "train__validate_images": 11}


def build(**keys: object) -> tuple[preset.Preset, torch.nn.Module]:
    found = preset.build(changed(SMALL, **(VALIDATED | keys)), "tiny")
    return found, build_state(found, ALONE.device).ema.module


def test_it_is_the_loss_of_the_task_on_images_spread_over_the_test_split():
    chosen, task = build()
    data, rows = Digits(size=8).build("test"), torch.arange(11) * 1000 // 11
    place = torch.arange(11)
    batch = {"image": to_float(data.images[rows]), "label": data.labels[rows], "position": place}
    batch["stream"] = noise.derive(SEED, Domain.TRAIN, place)
    expected = task(batch)["loss"].item()
    assert Validation(chosen, ALONE, task).loss(task) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("keys", [{}, {"task__coupling": "optimal_transport"}, {"task__times": {"kind": "loss_aware"}}])
def test_it_depends_neither_on_batches_nor_on_the_hour(keys: dict):
    chosen, task = build(**keys)
    one = Validation(chosen, ALONE, task)
    other = Validation(
        preset.build(changed(SMALL, **VALIDATED, **keys, train__batch_size=4, seed=5), "tiny"), ALONE, task
    )
    objective = task.objective
    first = one.loss(task)
    assert first == one.loss(task)
    assert first == pytest.approx(other.loss(task), rel=1e-6)
    assert task.objective == objective


@pytest.mark.parametrize("count", [11, 2])  # with 2 a rank has none
def test_the_ranks_share_the_images(count: int):
    class Rank(Group):
        def mean(self, values: torch.Tensor) -> torch.Tensor:
            sums.append(values.clone())
            return values

    chosen, task = build(train__validate_images=count)
    sums: list[torch.Tensor] = []
    for rank in range(3):
        Validation(chosen, Rank(rank, 3, torch.device("cpu")), task).loss(task)
    total = sum(sums)
    assert total[1] == count
    assert float(total[0] / total[1]) == pytest.approx(Validation(chosen, ALONE, task).loss(task), rel=1e-6)


def test_a_run_logs_it_and_resuming_gives_the_same_lines(tiny: Callable[..., Path], cli: Cli, tmp_path: Path) -> None:
    path = tiny(**VALIDATED, train__steps=4)
    outcome = cli("train", "--preset", path, "--run-dir", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert "val_loss" in outcome.err
    lines = list(read_log(tmp_path / "run/log.jsonl"))
    assert [line["step"] for line in lines] == [2, 4]
    assert all(math.isfinite(line["val_loss"]) for line in lines)
    assert lines[0]["val_loss"] != lines[1]["val_loss"]
    assert cli("train", "--preset", path, "--run-dir", tmp_path / "half", "--steps", 2).code == 0
    assert cli("resume", tmp_path / "half", "--steps", 4).code == 0
    again = list(read_log(tmp_path / "half/log.jsonl"))
    assert strip(again) == strip(lines)


def strip(lines: list[dict]) -> list[str]:
    return [json.dumps({k: v for k, v in line.items() if k not in CLOCKED}) for line in lines]


def test_a_set_without_held_out_images_is_refused_at_the_start(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(encoded(Image.new("L", (8, 8)), "PNG"))
    data = {"kind": "folder", "root": str(tmp_path / "images"), "size": 8, "channels": 1}
    path = tiny(**VALIDATED, data=data, task__conditioners=[], task__drop_condition=0, guidance=1)
    outcome = cli("train", "--preset", path, "--run-dir", tmp_path / "run")
    outcome.refused("train.every.validate is 2", "no split 'test'", "data.validation")


def test_every_log_line_tells_how_long_training_waited_for_data(trained: Path) -> None:
    shares = [line["data_wait"] for line in read_log(trained / "log.jsonl")]
    assert len(shares) == 4
    assert all(0 <= share <= 1 for share in shares)


def test_waiting_is_counted_and_work_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("diffcli.engine.run.loop.time.perf_counter", lambda: now[0])

    def slow():
        for step in (1, 2):
            now[0] += 3
            yield step, {}

    waits = Waits(slow())
    for _ in waits:
        now[0] += 1  # the step
        waits.trained += 4
        assert waits.recent_share() == 0.75
    assert (waits.waited, waits.trained, waits.share) == (6, 8, 0.75)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """30 noisy pictures of three aspect ratios."""
    rng = np.random.default_rng(0)
    (tmp_path / "photographs").mkdir()
    for number in range(30):
        shape = [(12, 12, 3), (10, 21, 3), (25, 14, 3)][number % 3]
        image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        (tmp_path / f"photographs/{number:02d}.png").write_bytes(encoded(image, "PNG"))
    return tmp_path / "photographs"


def bucketed(photographs: Path) -> dict:
    data = {
        "kind": "folder",
        "root": str(photographs),
        "size": 8,
        "buckets": [[8, 8], [6, 11], [13, 7]],
        "crop": "random",
    }
    return {"data": data, "task__conditioners": [], "task__drop_condition": 0, "guidance": 1, "train__batch_size": 4,
            "train__steps": 10, "train__every": {"log": 1, "preview": 5, "save": 5}}  # fmt: skip


def test_training_in_buckets_resumes_exactly_and_samples_in_the_size_of_the_set(
    tiny: Callable[..., Path], cli: Cli, photographs: Path, tmp_path: Path
) -> None:
    path = tiny(**bucketed(photographs))
    whole, half = tmp_path / "whole", tmp_path / "half"
    assert cli("train", "--preset", path, "--run-dir", whole).code == 0
    assert cli("train", "--preset", path, "--run-dir", half, "--steps", 5).code == 0
    assert cli("resume", half, "--steps", 10).code == 0
    assert strip(list(read_log(half / "log.jsonl"))) == strip(list(read_log(whole / "log.jsonl")))
    epochs = [line["epoch"] for line in read_log(whole / "log.jsonl")]
    assert (epochs[5], epochs[8]) == (1, 1.5)  # 2 batches of each of 3 buckets; 2 images of each sit out
    weights = [run / "checkpoints/step-00000010/task.safetensors" for run in (whole, half)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert cli("sample", "--ckpt", whole, "--n", 2, "--out", tmp_path / "x").code == 0
    assert Image.open(tmp_path / "x/000000.png").size == (8, 8)


@pytest.mark.slow
def test_two_processes_train_in_the_buckets_of_one(
    tiny: Callable[..., Path], cli: Cli, photographs: Path, tmp_path: Path
) -> None:
    linear = {
        "train__optimizer": {"kind": "adamw", "lr": 1.0, "eps": 100}
    }  # steps proportional to gradients: only rounding
    path = tiny(**bucketed(photographs) | linear)
    assert cli("train", "--preset", path, "--run-dir", tmp_path / "one").code == 0
    two = in_ranks("train", "--preset", path, "--run-dir", tmp_path / "two", "--nproc", 2)
    assert two.code == 0, two.err
    losses = [[line["loss"] for line in read_log(tmp_path / name / "log.jsonl")] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_bucket_that_patches_do_not_divide_is_refused(tiny: Callable[..., Path], cli: Cli) -> None:
    network = {"kind": "dit", "patch": 2, "width": 16, "depth": 1, "heads": 2}
    outcome = cli("presets", "check", tiny(task__network=network, data__buckets=[[8, 8], [6, 11]]))
    outcome.refused("data.buckets holds 6x11", "patch 2")
