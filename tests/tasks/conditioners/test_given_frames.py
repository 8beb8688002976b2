"""Given frames: which are given by a pattern, that what is not given is not shown, and that the mixture is that of the preset."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from diffcli.config import UserError
from diffcli.fields import FieldSpec
from diffcli.noise import Domain, Noise
from diffcli.tasks.conditioners.conditioner import condition
from diffcli.tasks.conditioners.frame_patterns import frame_pattern
from diffcli.tasks.conditioners.given_frames import GIVEN, FramesConditionerConfig
from diffcli.tasks.diffusion_config import DiffusionConfig
from tests.conftest import TINY
from tests.engine.draw.clips.filming import film_preset, frames_of

T = 6
LIKE = torch.empty(3, 2, T, 4, 4)
KEEP, NONE = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)


def clip(frames: int = T, n: int = 3, size: int = 4) -> Tensor:
    return torch.rand(n, 2, frames, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def config(**keys: Any) -> FramesConditionerConfig:
    return FramesConditionerConfig(channels=2, **keys)


def streams(seeds: list[int]) -> Noise:
    return Noise(seeds, torch.device("cpu"), Domain.CONDITION)


def masks(given: dict[str, float], n: int, frames: int = T) -> Tensor:
    return config(given=given).build().drawn(n, frames, streams(list(range(n))))


@pytest.mark.parametrize(
    ("text", "frames", "expected"),
    [
        ("none", 4, "...."),
        ("first", 4, "#..."),
        ("first:3", 4, "###."),
        ("last:2", 5, "...##"),
        ("ends", 4, "#..#"),
        ("ends:2", 5, "##.##"),
        ("ends:2", 4, "##.#"),
        ("first:4", 4, "###."),
        ("first", 1, "."),
        ("ends:3", 1, "."),
        ("last:9", 2, ".#"),
    ],
)
def test_a_pattern_gives_its_frames_and_always_leaves_one(text: str, frames: int, expected: str) -> None:
    assert "".join("#" if given else "." for given in frame_pattern(text).mask(frames)) == expected


@pytest.mark.parametrize("text", ["none", "first:3", "last:1", "ends:2", "random:0.25"])
def test_a_pattern_is_named_as_it_is_read(text: str) -> None:
    assert str(frame_pattern(text)) == text


def test_what_is_not_given_is_not_shown_and_a_channel_says_which_frames_are() -> None:
    given = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 1]]).float()
    told = config().build()({"clip": clip(), GIVEN: given}, KEEP, LIKE).spatial
    assert told.shape == (3, config().build().shape.spatial, T, 4, 4) == (3, 3, T, 4, 4)
    assert torch.equal(told[:, 2], given[:, :, None, None].expand(-1, -1, 4, 4))
    assert torch.equal(told[:, :2], clip() * given[:, None, :, None, None])


def test_both_branches_see_the_frames_unless_they_are_declared_to_be_dropped() -> None:
    batch = {"clip": clip(), GIVEN: torch.ones(3, T)}
    assert torch.equal(config().build()(batch, NONE, LIKE).spatial, config().build()(batch, KEEP, LIKE).spatial)
    assert not config(drop=True).build()(batch, NONE, LIKE).spatial.any()
    assert (config().droppable, config(drop=True).droppable) == (False, True)


def test_without_a_clip_nothing_is_given() -> None:
    assert torch.equal(config().build()({}, KEEP, LIKE).spatial, torch.zeros(3, 3, T, 4, 4))


def test_a_position_of_latents_gets_all_pixels_over_it() -> None:
    conditioner = config(patch=2).build()
    told = conditioner({"clip": clip(size=8), GIVEN: torch.ones(3, T)}, KEEP, LIKE).spatial
    assert told.shape[1] == conditioner.shape.spatial == 9
    assert torch.equal(F.pixel_shuffle(told[:, :-1].transpose(1, 2), 2).transpose(1, 2), clip(size=8))


def test_the_mixture_has_the_shares_of_the_preset() -> None:
    n = 4000
    found = masks({"none": 1, "first:2": 2, "ends": 1}, n)
    kinds = [frame_pattern(text).mask(T) for text in ("none", "first:2", "ends")]
    shares = [float((found == kind).all(dim=1).float().mean()) for kind in kinds]
    for share, wanted in zip(shares, (0.25, 0.5, 0.25), strict=True):
        assert abs(share - wanted) < 4 * (wanted * (1 - wanted) / n) ** 0.5
    assert sum(shares) == pytest.approx(1), "no clip has another pattern"


def test_random_frames_have_their_share_and_never_all_are_given() -> None:
    many, few = masks({"random:0.3": 1}, 3000, 40), masks({"random:0.9": 1}, 3000, 2)
    assert float(many.float().mean()) == pytest.approx(0.3, abs=0.01)
    assert not few.all(dim=1).any()
    assert float(few.any(dim=1).float().mean()) == pytest.approx(1 - 0.1**2, abs=0.02)


def test_which_frames_are_given_follows_from_the_seed_of_the_clip_alone() -> None:
    conditioner = config(given={"first:2": 1, "random": 1, "none": 1}).build()
    whole = conditioner({"clip": clip()}, KEEP, LIKE, streams([5, 6, 7])).spatial
    alone = conditioner({"clip": clip()[1:2]}, KEEP[:1], LIKE[:1], streams([6])).spatial
    assert torch.equal(whole[1:2], alone)


def test_an_image_is_a_clip_of_one_frame_of_which_nothing_is_given() -> None:
    assert not masks({"first:4": 1, "random:0.9": 1, "ends": 1, "last": 1}, 200, 1).any()


def test_given_frames_stay_in_the_null_branch_beside_what_is_dropped() -> None:
    cond = condition([config(given={"first:2": 1}).build()], {"clip": clip(), "stream": torch.arange(3)}, NONE, LIKE)
    assert torch.equal(cond.spatial[:, :2, :2], clip()[:, :, :2])
    assert not cond.spatial[:, :, 2:].any()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"frist": 1}, ["'frist'", "first:K"]),
        ({"first:0": 1}, ["first:0", "from 1 on"]),
        ({"first:x": 1}, ["'x'", "first:K"]),
        ({"random:1": 1}, ["random:1", "between 0 and 1"]),
        ({"none:2": 1}, ["none:2"]),
        ({"none": 1}, ["none", "first:K"]),
        ({"first": -1, "none": 1}, ["given.first", "-1"]),
        ({"first": 0}, ["above 0"]),
    ],
)
def test_a_mixture_that_gives_nothing_or_is_misspelt_is_refused(given: dict[str, float], words: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        config(given=given)
    for word in words:
        assert word in str(caught.value)


def test_data_of_images_and_clips_of_other_channels_are_refused_with_the_key() -> None:
    conditioner = config().build()
    with pytest.raises(UserError) as caught:
        conditioner.check({"clip": FieldSpec("clip", (3, 16, 8, 8))}, "task.conditioners.1")
    assert "task.conditioners.1.channels=3" in caught.value.hint
    with pytest.raises(UserError, match="'clip'"):
        conditioner.check({"image": FieldSpec("image", (2, 8, 8))}, "task.conditioners.1")


@pytest.mark.parametrize(
    ("conditioners", "words"),
    [
        ([{"kind": "frames", "field": "clip"}], ["conditioners.0", "'clip'", "task.conditioners.0.field to image"]),
        ([{"kind": "frames", "field": "image"}] * 2, ["two of kind frames"]),
    ],
)
def test_a_task_has_the_frames_of_its_own_clip_once(conditioners: list[dict[str, str]], words: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        DiffusionConfig.model_validate({**TINY["task"], "conditioners": conditioners, "drop_condition": 0})
    for word in words:
        assert word in str(caught.value)


def test_frames_of_pixels_that_would_not_have_the_size_of_latents_are_refused() -> None:
    config(patch=8).check_patch("task.conditioners.1", 8)
    with pytest.raises(UserError, match=r"task\.conditioners\.1\.patch is 1") as caught:
        config().check_patch("task.conditioners.1", 8)
    assert "--set task.conditioners.1.patch=8" in caught.value.hint
    with pytest.raises(UserError, match=r"conditioners\.0\.patch is 2"):
        film_preset(task__conditioners=[frames_of({"first": 1}, patch=2)]).task.build(film_preset().specs)
