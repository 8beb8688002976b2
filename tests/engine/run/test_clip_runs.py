"""Runs of clips: begun from a run of images, resumed to the byte, on two processes, with single images among the clips."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffcli.diffusion.samplers import Ddim, last
from diffcli.engine.model import load_model
from diffcli.engine.run import loop
from diffcli.engine.run.feed import open_feed
from diffcli.fields import Batch
from diffcli.networks.conditioning import Conditioning
from diffcli.tasks.diffusion import DiffusionTask
from tests.conftest import Cli, in_ranks
from tests.engine.run.test_exact_resume import LINEAR, bytes_of, close, lines
from tests.networks.waking import normal

CPU = torch.device("cpu")
DATA = {"kind": "moving_digits", "size": 8, "digit": 6, "frames": 3}
UNET = {
    "kind": "unet",
    "width": 8,
    "mult": [1],
    "blocks": ["res", "attention"],
    "middle": ["res"],
    "attend_at": [8],
    "head_dim": 8,
}
DIT = {"kind": "dit", "patch": 2, "width": 16, "depth": 2, "heads": 2}
IMAGES: dict[str, Any] = {"data": DATA, "train__steps": 2, "train__batch_size": 4}


def over_time(network: dict[str, Any]) -> dict[str, Any]:
    return IMAGES | {"task__field": "clip", "task__network": network | {"temporal": {}, "dropout": 0.1}}


def denoiser(run: Path) -> DiffusionTask:
    task = load_model(run, CPU, precision="fp32").task
    assert isinstance(task, DiffusionTask)
    return task


@pytest.mark.parametrize("network", [UNET, DIT], ids=["unet", "dit"])
def test_a_run_from_one_of_images_begins_equal_to_it_on_every_frame(
    network: dict[str, Any], tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    """Only layers over time learn here, by less than float32 can tell, so that the checkpoint is the beginning."""
    images, clips = tmp_path / "images", tmp_path / "clips"
    preset = tiny(**IMAGES | {"task__network": network, "train__optimizer": {"kind": "adamw", "lr": 0.02}})
    assert cli("train", "--preset", preset, "--run-dir", images).code == 0
    frozen = {"train__freeze": ["*", "!*.temporal.*"], "train__optimizer": {"kind": "adamw", "lr": 1e-30}}
    preset = tiny(**over_time(network) | frozen)
    planned = cli("train", "--preset", preset, "--from", images, "--dry-run")
    assert planned.code == 0, planned.err
    done = cli("train", "--preset", preset, "--from", images, "--run-dir", clips, "--steps", 1)
    assert done.code == 0, done.err
    for told in (planned, done):
        assert "*.temporal.*" in told.out + told.err
        assert "added as 0" not in told.out + told.err
    image, video = denoiser(images), denoiser(clips)
    x, t, vector = normal(2, 1, 3, 8, 8), torch.tensor([3.0, 800.0]), normal(2, 8, seed=2)
    with torch.no_grad():
        each = [image.denoiser.network(frame, t, Conditioning(vector=vector)) for frame in x.unbind(2)]
        found = video.denoiser.network(x, t, Conditioning(vector=vector))
        assert found.std() > 0.01
        torch.testing.assert_close(found, torch.stack(each, dim=2), atol=1e-5, rtol=1e-5)
        batch = {"label": torch.tensor([3, 4])}
        still = last(image.trajectory(batch, [5, 6], Ddim(steps=2), 2.0)).x
        assert torch.equal(last(video.of_frames(1).trajectory(batch, [5, 6], Ddim(steps=2), 2.0)).x[:, :, 0], still)


def test_a_run_of_another_network_is_refused_as_the_beginning_of_one_of_clips(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    assert cli("train", "--preset", tiny(**IMAGES | {"task__network": DIT}), "--run-dir", tmp_path / "dit").code == 0
    done = cli("train", "--preset", tiny(**over_time(UNET)), "--from", tmp_path / "dit", "--run-dir", tmp_path / "run")
    done.refused("is of another network")


def test_a_resumed_run_of_clips_is_the_run_in_one_go_to_the_byte(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    keys = {"train__steps": 4, "train__every": {"log": 1, "preview": 2, "save": 2}, "data__flip": True}
    preset, one, two = tiny(**over_time(UNET) | keys), tmp_path / "one", tmp_path / "two"
    assert cli("train", "--preset", preset, "--run-dir", one).code == 0
    assert cli("train", "--preset", preset, "--run-dir", two, "--steps", 2).code == 0
    assert cli("resume", two, "--steps", 4).code == 0
    last_of = [{n: b for n, b in bytes_of(run).items() if "04/" in n and n.endswith("tensors")} for run in (one, two)]
    assert last_of[0] == last_of[1]
    assert lines(one) == lines(two)


def test_micro_batches_give_the_run_of_whole_batches(tiny: Callable[..., Path], cli: Cli, tmp_path: Path) -> None:
    preset, whole, parts = tiny(**over_time(UNET) | LINEAR), tmp_path / "whole", tmp_path / "parts"
    assert cli("train", "--preset", preset, "--run-dir", whole).code == 0
    assert cli("train", "--preset", preset, "--run-dir", parts, "--set", "train.accumulate=2").code == 0
    close(whole, parts, 2)


LENGTHS = {1: 1, 2: 1, 3: 3, 4: 2}  # frames of the clips of each step: images first


class Mixed:
    """A feed whose clips are cut to the length of the step."""

    def __init__(self, feed: Any) -> None:
        self.feed = feed

    def __getattr__(self, name: str) -> Any:
        return getattr(self.feed, name)

    def batches(self, first: int) -> Iterator[tuple[int, Batch]]:
        for step, batch in self.feed.batches(first):
            yield step, {**batch, "clip": batch["clip"][:, :, : LENGTHS[step]]}


def test_images_and_clips_of_many_lengths_are_one_run_that_resumes_to_the_byte(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images teach nothing of time: until clips come, layers over time stay as they began, and the optimizer knows none."""
    monkeypatch.setattr(loop, "open_feed", lambda *given: Mixed(open_feed(*given)))
    keys = {"train__steps": 4, "train__optimizer": {"kind": "adamw", "lr": 0.01, "weight_decay": 0.1}}
    preset, one, two = tiny(**over_time(UNET) | keys), tmp_path / "one", tmp_path / "two"
    assert cli("train", "--preset", preset, "--run-dir", one).code == 0
    assert cli("train", "--preset", preset, "--run-dir", two, "--steps", 2).code == 0
    moments = load_file(two / "checkpoints/step-00000002/optimizer.safetensors")
    assert not [name for name in moments if ".temporal." in name]
    assert cli("resume", two, "--steps", 4).code == 0
    last_of = [{n: b for n, b in bytes_of(run).items() if "04/" in n and n.endswith("tensors")} for run in (one, two)]
    assert last_of[0] == last_of[1]
    before, after = (load_file(one / f"checkpoints/step-0000000{step}/task.safetensors") for step in (2, 4))
    over = [name for name in before if ".temporal." in name]
    assert all(not before[name].any() for name in over if name.endswith("out.weight"))
    assert all(after[name].any() for name in over if name.endswith("out.weight"))


@pytest.mark.slow
def test_two_processes_give_the_run_of_one_with_images_among_the_clips(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    """At first images alone, of which no layer over time gets a gradient on any process."""
    stills = {"data": {"kind": "digits"}, "last": 2}
    clips = {"data": {"kind": "moving_digits", "digit": 6, "frames": 3}, "first": 2}
    keys = {"data": {"kind": "mix", "size": 8, "channels": 1, "parts": [stills, clips]}, "train__steps": 4}
    preset, one, two = tiny(**over_time(UNET) | keys | LINEAR), tmp_path / "one", tmp_path / "two"
    assert cli("train", "--preset", preset, "--run-dir", one).code == 0
    done = in_ranks("train", "--preset", preset, "--run-dir", two, "--nproc", 2, "--device", "cpu")
    assert done.code == 0, done.err
    close(one, two, 4)
