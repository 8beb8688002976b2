"""A new task is shown its training data before the first step: all of them once, whatever the processes, and never on resume."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch

from diffcli import checkpoint
from diffcli import preset as presets
from diffcli.data.stream.stream_data import StreamData
from diffcli.engine.distributed import Group
from diffcli.engine.run import measuring
from diffcli.engine.run.measuring import shown
from diffcli.fields import Batch
from diffcli.tasks.diffusion import DiffusionTask
from diffcli.tasks.task import Ranks
from tests.conftest import Cli, changed
from tests.data.stream.streaming import write_shards
from tests.engine.one_level import SMALL

CPU = torch.device("cpu")
UNEVEN = {"train__batch_size": 700, "train__accumulate": 3, "data__flip": True}  # batches that end in the next pass


@pytest.mark.parametrize("world", [1, 2])
def test_all_processes_together_are_shown_every_image_as_it_is(world: int) -> None:
    preset = presets.build(changed(SMALL, **UNEVEN), "tiny")
    data = preset.data.build("train")
    parts = [list(shown(preset, Group(rank, world, CPU), data, None)) for rank in range(world)]
    seen = torch.cat([batch["index"] for part in parts for batch in part])
    assert torch.equal(seen.unique(), torch.arange(len(data)))
    assert len(seen) < len(data) + 700
    first = parts[0][0]
    assert torch.equal(first["image"], data.read(first["index"])["image"].float() / 127.5 - 1)


def test_no_more_is_shown_than_a_task_wants_to_see() -> None:
    preset = presets.build(changed(SMALL, **UNEVEN), "tiny")
    data = preset.data.build("train")
    assert sum(len(batch["index"]) for batch in shown(preset, Group(0, 1, CPU), data, 1000)) == 1400


@pytest.mark.parametrize(("count", "expected"), [(10, 12), (None, 20)], ids=["counted", "not counted"])
def test_all_of_a_stream_are_as_many_as_its_record_says_or_a_fixed_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int | None, expected: int
) -> None:
    monkeypatch.setattr(measuring, "OF_A_STREAM", 20)
    source = {"kind": "stream", "shards": write_shards(tmp_path, [5, 5]), "size": 2, "channels": 1, "lanes": 2}
    tree = changed(SMALL, data=source, task__conditioners=[], task__drop_condition=0, guidance=None)
    preset = presets.build(changed(tree, train__batch_size=4), "stream")
    data = preset.data.build("train")
    assert isinstance(data, StreamData)
    data.count = count
    seen = measuring.shown(preset, Group(0, 1, CPU), data.select({"image"}), None)
    assert sum(len(batch["image"]) for batch in seen) == expected


def test_what_a_task_measures_is_in_its_average_and_a_resumed_run_measures_nothing(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def measure(self: DiffusionTask, batches: Iterable[Batch], ranks: Ranks) -> None:
        seen = ranks.sum(torch.stack([batch["image"].sum() for batch in batches]).sum())
        self.denoiser.network.head.bias.fill_(float(seen))
        calls.append(float(seen))

    monkeypatch.setattr(DiffusionTask, "measures", 12)
    monkeypatch.setattr(DiffusionTask, "measure", measure)
    preset, run = tiny(train__optimizer__lr=1e-12, train__ema=0.9), tmp_path / "run"
    assert cli("train", "--preset", preset, "--run-dir", run, "--steps", 2, "--device", "cpu").code == 0
    assert cli("resume", run, "--steps", 4, "--device", "cpu").code == 0
    assert len(calls) == 1
    found = checkpoint.locate(run)
    for part in ("ema", "task"):
        bias = checkpoint.read_part(found, part, checkpoint.read_record(found))["denoiser.network.head.bias"]
        torch.testing.assert_close(bias, torch.full_like(bias, calls[0]))
