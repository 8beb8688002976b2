"""An update of the loop neither copies in the way of the device nor reads from it: counted on the meta device, seen on CUDA."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from diffcli import preset as presets
from diffcli.engine.distributed import Group
from diffcli.engine.run.loop import Loop
from diffcli.engine.run.runlog import RunDir
from diffcli.engine.run.state import build_state, resolved
from tests.conftest import TINY, changed
from tests.counting import META, count

WAYS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "accumulated": {"train__accumulate": 3},
    "unclipped": {"train__clip": None},
    "sgd": {"train__optimizer": {"kind": "sgd", "lr": 0.1}},
    "several averages": {"train__ema": [0.9, 0.99]},
    "mirrored": {"data__flip": True},
}


def loop(device: torch.device, path: Path, **keys: Any) -> Loop:
    """The loop of a new run of the tiny preset."""
    group = Group(0, 1, device)
    preset = resolved(presets.build(changed(TINY, **keys), "tiny"), device)
    with torch.device(device if device.type == "meta" else "cpu"):
        state = build_state(preset, device)
    return Loop(preset, RunDir(path), group, state, preset.data.build("train"), {})


@pytest.mark.parametrize("keys", WAYS.values(), ids=WAYS.keys())
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
