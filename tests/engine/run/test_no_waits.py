"""An update of the loop neither copies in the way of the device nor reads from it: counted on the meta device, seen on CUDA."""

from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from diffcli import preset as presets
from diffcli.engine.distributed import Group
from diffcli.engine.run.loop import Loop
from diffcli.engine.run.numbers import Numbers
from diffcli.engine.run.runlog import RunDir
from diffcli.engine.run.state import build_state, resolved
from tests.conftest import changed
from tests.counting import META, count
from tests.engine.one_level import SMALL

WAYS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "accumulated": {"train__accumulate": 3},
    "unclipped": {"train__clip": None},
    "sgd": {"train__optimizer": {"kind": "sgd", "lr": 0.1}},
    "several averages": {"train__ema": [0.9, 0.99]},
    "mirrored": {"data__flip": True},
    "times by past losses": {"task__times": {"kind": "loss_aware"}},
    "masks in one step": {
        "data": {"kind": "digits_segmentation", "size": 8},
        "task": {"kind": "segmentation", "network": SMALL["task"]["network"]},
        "guidance": 1,
    },
    "masks by diffusion": {
        "data": {"kind": "digits_segmentation", "size": 8},
        "task__field": "mask",
        "task__codec": {"kind": "one_hot", "classes": 2},
        "task__conditioners": [{"kind": "spatial", "field": "image", "channels": 1}],
        "task__drop_condition": 0,
        "guidance": 1,
    },
}
MUON = {"train__optimizer": {"kind": "muon", "lr": 0.01}}  # whose fp16 waits, see Muon
ALL = {**WAYS, "muon": MUON}
QUICK = ("adamw", "accumulated", "masks by diffusion", "muon")


def loop(device: torch.device, path: Path, **keys: Any) -> Loop:
    """The loop of a new run of the tiny preset."""
    group = Group(0, 1, device)
    preset = resolved(presets.build(changed(SMALL, **keys), "tiny"), device)
    with torch.device(device if device.type == "meta" else "cpu"):
        state = build_state(preset, device)
    return Loop(preset, RunDir(path), group, state, preset.data.build("train"), {})


@pytest.mark.parametrize(
    "keys", [pytest.param(keys, id=way, marks=() if way in QUICK else pytest.mark.slow) for way, keys in ALL.items()]
)
def test_a_batch_and_its_update_neither_copy_in_the_way_nor_read(
    keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no meta device
    run = loop(META, tmp_path, **keys)
    run.state.task.train()
    batches = run.feed.batches(0)

    def work() -> None:
        step, batch = next(batches)
        run.update(step, batch, stopping=True)

    for _ in range(2):  # the first update makes the optimizer's moments
        counts = count(work)
        assert counts.copies  # the image travels
        assert not counts.blocking
        assert not counts.reads


class Reading(Numbers):
    """Numbers that tell when they are read."""

    def read(self) -> dict[str, float]:
        EVENTS.append(f"read {self.step}")
        return super().read()


EVENTS: list[str] = []


def watched(path: Path, monkeypatch: pytest.MonkeyPatch, stopping: int) -> Loop:
    """Five steps on a device that is no CPU; writes into EVENTS what happens. stopping: the step that a rank wants to stop at."""
    run = loop(META, path, train__steps=5, train__every={"log": 4, "preview": 0, "save": 0})

    def update(step: int, batch: Any, wanted: bool) -> Numbers:
        EVENTS.append(f"update {step}")
        return Reading(step, ("loss", "stop"), torch.tensor([0.5, float(step == stopping)]), None)

    EVENTS.clear()
    monkeypatch.setattr(run, "update", update)
    monkeypatch.setattr(run, "after", lambda step, *_: EVENTS.append(f"write {step}") or "")
    return run


def test_the_numbers_of_a_step_are_read_when_the_next_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = [p.step for p in watched(tmp_path, monkeypatch, stopping=0).steps(0)]
    assert seen == [1, 2, 3, 4, 5]
    order = ["update 1", "update 2", "read 1", "update 3", "read 2"]
    order += ["update 4", "read 3", "read 4", "write 4"]  # what is written is awaited
    assert [*order, "update 5", "read 5", "write 5"] == EVENTS


def test_a_wish_to_stop_is_heard_a_step_later_and_saves_that_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = watched(tmp_path, monkeypatch, stopping=2).steps(0)
    assert [progress.step for progress in islice(steps, 3)] == [1, 2, 3]
    with pytest.raises(KeyboardInterrupt):
        next(steps)
    assert EVENTS[-4:] == ["update 3", "read 2", "read 3", "write 3"]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("keys", WAYS.values(), ids=WAYS.keys())
def test_cuda_does_not_wait_in_updates_whose_numbers_are_read_afterwards(
    keys: dict[str, Any], precision: str, tmp_path: Path
) -> None:
    run = loop(torch.device("cuda"), tmp_path, **keys, train__precision=precision)
    run.state.task.train()
    batches = run.feed.batches(0)
    run.update(*next(batches), stopping=False)  # fills caches, loads kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = [run.update(*next(batches), stopping=True) for _ in range(2)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(numbers.values.is_pinned() for numbers in found)
    assert all(run.settle(numbers).stopping for numbers in found)
