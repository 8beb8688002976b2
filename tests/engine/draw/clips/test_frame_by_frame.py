"""Clips through a cascade of image models: frame by frame, with one noise a clip, so that what stands still stands still."""

from pathlib import Path
from typing import Any

import pytest
import torch

from diffcli.config import UserError
from diffcli.engine.distributed import Group
from diffcli.engine.draw.clips.frame_by_frame import FrameByFrame
from diffcli.engine.draw.pictured.cascade import cascade
from diffcli.engine.draw.sample import SampleOptions, draw, request_of
from diffcli.engine.model import Model
from tests.engine.draw.clips.filming import CPU, film_model
from tests.engine.draw.pictured.small import opened, upscaler

SIDE = 8


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return opened(tmp_path_factory.mktemp("second") / "up", upscaler())


def enlarged(model: Model, clips: torch.Tensor, **options: Any) -> torch.Tensor:
    """Clips uint8 (n, 1, T, 8, 8) as the second stage of a cascade draws them."""
    from diffcli.engine.draw.clips.frame_by_frame import frame_by_frame

    def following(shared: SampleOptions, n: int, labels: torch.Tensor | None) -> SampleOptions:
        return shared.model_copy(update={"n": n, "batch_size": 3} | options)

    made = frame_by_frame(model, SampleOptions(seed=4), clips, {}, following, None, request_of)
    return torch.cat([each.images for each in draw(made, Group(0, 1, CPU))])


def noise_clip(frames: int, n: int = 2) -> torch.Tensor:
    return torch.randint(
        0, 256, (n, 1, frames, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_a_clip_that_stands_still_does_not_flicker_when_it_is_enlarged(second: Model, sampler: str) -> None:
    still = noise_clip(1).expand(-1, -1, 4, -1, -1)
    large = enlarged(second, still, sampler=sampler)
    assert large.shape == (2, 1, 4, 16, 16)
    assert int((large[:, :, 1:].int() - large[:, :, :-1].int()).abs().max()) <= 1, "up to rounding in another batch"
    assert not torch.equal(large[0], large[1])


def test_each_frame_is_what_the_model_makes_of_it_alone_with_the_seed_of_the_clip(second: Model) -> None:
    clips = noise_clip(3)
    large = enlarged(second, clips)
    for number in range(2):
        for frame in range(3):
            alone = enlarged(second, clips[number : number + 1, :, frame : frame + 1], seed=(4 + number,))
            assert int((large[number, :, frame].int() - alone[0, :, 0].int()).abs().max()) <= 1


def test_neighbours_differ_less_under_one_noise_than_under_one_each(second: Model) -> None:
    """A clip that changes slowly: the noise of each frame of its own would add its whole difference to that of the clip."""
    clip = noise_clip(1, 1).expand(-1, -1, 6, -1, -1).clone()
    clip[:, :, :, 0, 0] = torch.arange(6, dtype=torch.uint8) * 10
    shared = enlarged(second, clip).float()
    apart = torch.cat([enlarged(second, clip[:, :, i : i + 1], seed=(90 + i,)) for i in range(6)], dim=2).float()
    one, other = ((each[:, :, 1:] - each[:, :, :-1]).square().mean().sqrt() for each in (shared, apart))
    assert one < 0.2 * other


def stages(second: Path, **options: Any) -> list[Any]:
    first = film_model(data__size=[SIDE, SIDE])
    models = {Path("films"): first, second: None}
    found = []
    chosen = SampleOptions(n=2, **options)
    for stage in cascade(
        [Path("films"), second], chosen, Group(0, 1, CPU), lambda path: models[path] or opened_again(path)
    ):
        found.append((stage.req, torch.cat([each.images for each in stage.drawn()]), stage.req.describe()))
    return found


def opened_again(path: Path) -> Model:
    from diffcli.engine.model import load_model

    return load_model(path, CPU)


def test_a_cascade_of_a_model_of_clips_and_one_of_images_gives_clips(tmp_path: Path, second: Model) -> None:
    (_, small, _), (req, large, record) = stages(second.path, frames=5)
    assert small.shape == (2, 1, 5, SIDE, SIDE)
    assert large.shape == (2, 1, 5, 2 * SIDE, 2 * SIDE)
    assert isinstance(req, FrameByFrame)
    assert req.shape == (1, 5, 2 * SIDE, 2 * SIDE)
    assert record["n"] == 2
    assert record["seeds"] == [0, 1]
    assert record["clip"] == {"frames": 5, "fps": 12.0}


def test_the_steps_of_a_stage_that_draws_frames_are_not_animated(second: Model) -> None:
    first = film_model(data__size=[SIDE, SIDE])
    with pytest.raises(UserError, match="--then") as caught:
        next(
            cascade([first.path, second.path], SampleOptions(n=1), Group(0, 1, CPU), lambda path: first, animated=True)
        )
    assert "diffcli sample --out" in caught.value.hint
