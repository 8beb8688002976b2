"""Times drawn by their losses: the history is in the checkpoint, resuming is exact, and no split of a batch changes it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Cli, in_ranks

# few times and a short memory, so that the uniform start is over after a few of the steps
AWARE = {
    "train__steps": 8,
    "train__every": {"log": 1, "preview": 0, "save": 4},
    "task__schedule": {"kind": "cosine", "steps": 4},
    "task__times": {"kind": "loss_aware", "window": 2},
    "sampler": {"kind": "ddim", "steps": 3},
}


def history(run: Path, step: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """(count, losses) of a checkpoint."""
    tensors = load_file(run / "checkpoints" / f"step-{step:08d}" / "task.safetensors")
    return tensors["history.count"], tensors["history.losses"]


@pytest.mark.slow
def test_a_resumed_run_draws_the_times_of_the_one_in_one_go(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    whole, broken, preset = tmp_path / "whole", tmp_path / "broken", tiny(**AWARE)
    assert cli("train", "--preset", preset, "--run-dir", whole).code == 0
    assert cli("train", "--preset", preset, "--run-dir", broken, "--steps", 4).code == 0
    assert int(history(broken, 4)[0].min()) >= 2  # warm: from here on the times follow the losses
    assert cli("resume", broken, "--steps", 8).code == 0
    for name in ("ema", "task", "optimizer"):
        file = f"checkpoints/step-00000008/{name}.safetensors"
        assert load_file(whole / file).keys() == load_file(broken / file).keys()
        for key, value in load_file(whole / file).items():
            assert torch.equal(value, load_file(broken / file)[key]), key


@pytest.mark.parametrize("nproc", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_history_does_not_depend_on_micro_batches_or_processes(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path, nproc: int
) -> None:
    """Uneven ones: 7 images in 3 micro-batches, or on 2 processes."""
    preset = tiny(**AWARE, train__batch_size=7)
    one, split = tmp_path / "one", tmp_path / "split"
    command = ["train", "--preset", preset, "--device", "cpu", "--run-dir"]
    assert cli(*command, one).code == 0
    if nproc == 1:
        done = cli(*command, split, "--set", "train.accumulate=3")
    else:
        done = in_ranks(*command, split, "--nproc", nproc)
    assert done.code == 0, done.err
    count, losses = history(one)
    assert int(count.sum()) == 8 * 7
    assert torch.equal(history(split)[0], count)
    torch.testing.assert_close(history(split)[1], losses, rtol=5e-2, atol=5e-3)
