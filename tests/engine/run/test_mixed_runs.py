"""A run on images and clips of one preset: an image phase, then both."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.conftest import Cli, in_ranks
from tests.engine.run.test_clip_runs import DATA, UNET, over_time
from tests.engine.run.test_exact_resume import LINEAR, bytes_of, close, lines

IMAGES = {"kind": "digits", "size": 8}
MIX = {
    "kind": "mix",
    "size": 8,
    "channels": 1,
    "parts": [{"data": IMAGES, "last": 2}, {"data": IMAGES, "first": 3}, {"data": DATA, "first": 3, "weight": 3}],
}
KEYS: dict[str, Any] = over_time(UNET) | {"data": MIX, "train__steps": 4}


def test_an_image_phase_and_a_phase_of_clips_are_one_run_that_resumes_to_the_byte(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    keys = KEYS | {"train__every": {"log": 1, "preview": 2, "save": 2}}
    preset, one, two = tiny(**keys), tmp_path / "one", tmp_path / "two"
    done = cli("train", "--preset", preset, "--run-dir", one)
    assert done.code == 0, done.err
    assert cli("train", "--preset", preset, "--run-dir", two, "--steps", 2).code == 0
    resumed = cli("resume", two, "--steps", 4)
    assert resumed.code == 0, resumed.err
    last_of = [{n: b for n, b in bytes_of(run).items() if "04/" in n and n.endswith("tensors")} for run in (one, two)]
    assert last_of[0] == last_of[1]
    assert lines(one) == lines(two)
    images, clips = (load_file(one / f"checkpoints/step-0000000{step}/task.safetensors") for step in (2, 4))
    over = [name for name in images if ".temporal." in name and name.endswith("out.weight")]
    assert over
    assert not any(images[name].any() for name in over), "images teach nothing of time"
    assert all(clips[name].any() for name in over)


def test_the_plan_of_a_mixture_says_what_its_parts_are(tiny: Callable[..., Path], cli: Cli) -> None:
    done = cli("train", "--preset", tiny(**KEYS), "--dry-run")
    assert done.code == 0, done.err
    assert "data.parts.0" in done.out
    assert "from step 3 to the end" in done.out


@pytest.mark.slow
def test_two_processes_give_the_mixed_run_of_one(tiny: Callable[..., Path], cli: Cli, tmp_path: Path) -> None:
    preset, one, two = tiny(**KEYS | LINEAR | {"train__steps": 4}), tmp_path / "one", tmp_path / "two"
    assert cli("train", "--preset", preset, "--run-dir", one).code == 0
    done = in_ranks("train", "--preset", preset, "--run-dir", two, "--nproc", 2, "--device", "cpu")
    assert done.code == 0, done.err
    close(one, two, 4)
