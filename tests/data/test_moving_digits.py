"""Moving digits: straight between the walls, reflected by them, known to a fraction of a pixel, one clip a number."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from diffcli.config import ImageShape
from diffcli.data.datasets import Digits
from diffcli.data.loader import batches
from diffcli.data.moving_digits import MovingDigits, fold, shifted
from diffcli.fields import FieldSpec

CPU = torch.device("cpu")
ROWS = torch.arange(40)


def centroid(frames: Tensor) -> Tensor:
    """Centre of mass (row, column) of (..., H, W): (..., 2)."""
    mass = frames.double()
    down = (mass.sum(-1) * torch.arange(frames.shape[-2])).sum(-1)
    across = (mass.sum(-2) * torch.arange(frames.shape[-1])).sum(-1)
    return torch.stack([down, across], -1) / mass.sum((-1, -2))[..., None]


def test_the_set_declares_clip_frame_rate_a_frame_and_the_digit():
    config = MovingDigits(size=(20, 24), digit=10, frames=5, channels=3)
    data = config.build("test")
    shapes = {"image": FieldSpec("image", (3, 20, 24)), "clip": FieldSpec("clip", (3, 5, 20, 24))}
    assert config.specs == shapes | {"fps": FieldSpec("number")}
    assert data.specs == config.specs | {"label": FieldSpec("classes", (), tuple("0123456789"))}
    assert data.shape == ImageShape(3, 20, 24)
    fields = data.read(ROWS)
    assert fields["clip"].shape == (40, 3, 5, 20, 24)
    assert fields["clip"].dtype == torch.uint8
    assert torch.equal(fields["image"], fields["clip"][:, :, 0])
    assert fields["fps"].tolist() == [10] * 40


def test_groups_of_look_alikes_take_the_place_of_the_classes_and_change_no_clip():
    plain, grouped = (MovingDigits(size=16, digit=12, frames=2, groups=count).build("train") for count in (None, 20))
    assert grouped.specs["label"] == FieldSpec(
        "classes", (), tuple(f"group {number} of 20 at 12 pixels" for number in range(20))
    )
    assert torch.equal(plain.read(ROWS)["clip"], grouped.read(ROWS)["clip"])
    counts = torch.bincount(grouped.labels, minlength=20)
    assert counts.min() > 0
    together = torch.zeros(20, 10).index_put_((grouped.labels, plain.labels), torch.ones(len(plain)), accumulate=True)
    assert together.amax(1).sum() > 0.6 * len(plain), "a group is mostly of one digit"
    held_out = MovingDigits(size=16, digit=12, frames=2, groups=20).build("test")
    digits = Digits().build("test").labels
    assert (together.argmax(1)[held_out.labels] == digits).float().mean() > 0.6, "groups are those of training"


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_clip_shows_the_digit_of_its_number_and_the_splits_share_none(split: str):
    data, digits = MovingDigits().build(split), Digits().build(split)
    assert torch.equal(data.labels, digits.labels)
    still = MovingDigits(size=28, digit=28, frames=2).build(split).read(ROWS)["clip"]
    assert torch.equal(still, digits.read(ROWS)["image"][:, :, None].expand(-1, -1, 2, -1, -1))


def test_between_walls_a_digit_is_exactly_where_its_path_says():
    data = MovingDigits(size=30, digit=13, frames=12, speed=(5, 40)).build("test")
    paths = data.paths(ROWS)
    ink = data.ink[paths.which[:, 0]]
    frames = shifted(ink, paths.corner[:, 0], (30, 30))
    assert (centroid(frames) - (paths.corner[:, 0] + centroid(ink)[:, None])).abs().max() < 1e-5
    assert torch.allclose(frames.sum((-1, -2)), ink.sum((-1, -2))[:, None].expand(-1, 12), rtol=1e-5), "none is cut off"
    levels = data.read(ROWS)["clip"][:, 0]
    assert (centroid(levels) - centroid(frames)).abs().max() < 0.05, "rounded to levels"


def test_paths_are_straight_but_for_reflections():
    room = 30 - 13
    corner = MovingDigits(size=30, digit=13, frames=40, speed=(30, 60)).build("test").paths(ROWS).corner[:, 0]
    assert corner.min() >= 0
    assert corner.max() <= room
    steps = corner.diff(dim=1)
    speed = steps.abs().amax(1, keepdim=True)
    moved = (corner[:, :-1] > speed) & (corner[:, :-1] < room - speed)  # cannot reach a wall in this step
    assert moved.sum() > 1000
    assert torch.allclose(steps.abs()[moved], speed.expand_as(steps)[moved])
    turned = steps[:, :-2].sign() != steps[:, 2:].sign()  # in the step before, the one between or the one after
    assert turned.float().mean() > 0.1, "digits bounce"
    walls = torch.minimum(corner, room - corner)
    near = torch.minimum(walls[:, 1:-2], walls[:, 2:-1])
    assert (near <= speed.expand_as(near) + 1e-9)[turned].all(), "at walls alone"


def test_a_line_is_folded_like_a_ball_between_two_walls():
    line = torch.tensor([-1.0, 0, 3, 4, 5, 8, 9, -5], dtype=torch.float64)
    assert fold(line, torch.tensor(4.0)).tolist() == [1, 0, 3, 4, 3, 0, 1, 3]
    assert fold(line, torch.tensor(0.0)).tolist() == [0] * 8


@pytest.mark.parametrize("digits", [1, 2])
def test_a_clip_follows_from_its_number_alone_and_in_training_from_its_draw(digits: int):
    data = MovingDigits(digits=digits, frames=4, fps=(5, 10)).build("train")
    draws = ROWS * 7919 + 1
    for given in (None, draws):
        whole = data.read(ROWS, given)
        for i in (0, 3, 39):
            alone = data.read(ROWS[i : i + 1], None if given is None else given[i : i + 1])
            assert all(torch.equal(alone[name][0], whole[name][i]) for name in whole)
    other = data.read(ROWS, draws)
    assert not torch.equal(other["clip"], data.read(ROWS)["clip"])
    found = (other["clip"] == other["image"][:, :, None]).flatten(3).all(3)[:, 0]  # (B, T): the frame that image is
    assert found.any(1).all()
    assert found.any(0).all(), "every frame is chosen"


def test_longer_clips_go_on_where_shorter_ones_end():
    short, long = (MovingDigits(frames=n).build("test").read(ROWS)["clip"] for n in (3, 11))
    assert torch.equal(long[:, :, :3], short)


def test_of_several_lengths_each_batch_has_one_and_all_else_the_longest():
    captions = {"templates": ["a {name}"]}
    data = MovingDigits(frames=(5, 2), captions=captions).build("test").select({"clip", "label", "text"})
    assert data.specs["clip"].shape == (1, 5, 28, 28)
    assert data.read(ROWS)["clip"].shape[2] == 5
    found = [batch for _, batch in batches(data, batch_size=4, seed=0, first=0, last=8, flip=False, device=CPU)]
    assert {batch["clip"].shape[2] for batch in found} == {2, 5}
    for batch in found:
        assert batch["text"] == [f"a {label}" for label in data.labels[batch["index"]].tolist()]


def test_at_half_the_frame_rate_a_clip_shows_every_other_frame():
    slow, fast = (MovingDigits(frames=n, fps=fps).build("test") for n, fps in ((4, 5), (7, 10)))
    assert torch.equal(slow.read(ROWS)["clip"], fast.read(ROWS)["clip"][:, :, ::2])
    mixed = MovingDigits(frames=4, fps=(5, 10)).build("test").read(ROWS)
    rates = mixed["fps"].tolist()
    assert set(rates) == {5, 10}
    for rate, clip, half, whole in zip(
        rates, mixed["clip"], slow.read(ROWS)["clip"], fast.read(ROWS)["clip"], strict=True
    ):
        assert torch.equal(clip, half if rate == 5 else whole[:, :4])


def test_two_digits_have_twice_the_ink_unless_they_cross_and_no_class():
    one, two = (MovingDigits(size=48, digits=n, frames=2).build("test") for n in (1, 2))
    assert "label" not in two.specs
    paths = two.paths(ROWS)
    assert paths.which.shape == (40, 2)
    assert (paths.which[:, 0] == ROWS).all()
    corner = paths.corner
    apart = ((corner[:, 0] - corner[:, 1]).abs() > two.config.digit).any(-1)  # (B, T)
    assert apart.any()
    parts = [shifted(two.ink[paths.which[:, k]], corner[:, k], (48, 48)) for k in (0, 1)]
    levels = two.read(ROWS)["clip"][:, 0].float() / 255
    assert ((sum(parts) - levels)[apart].abs() <= 0.5 / 255 + 1e-6).all()
    assert (levels.sum((-1, -2)) <= sum(parts).sum((-1, -2)) + 1).all()
    assert one.read(ROWS)["clip"].float().mean() < levels.mean() * 255


def test_training_batches_hold_the_clip_as_values_and_mirror_it_with_its_frame():
    data = MovingDigits(frames=3).build("test").select({"clip", "fps", "label"})
    assert data.specs.keys() == {"clip", "fps", "label"}
    batch = dict(batches(data, batch_size=16, seed=1, first=0, last=1, flip=True, device=CPU))[1]
    assert batch["clip"].shape == (16, 1, 3, 28, 28)
    assert batch["clip"].min() == -1
    assert 0.9 < batch["clip"].max() <= 1
    other = MovingDigits(frames=3).build("test")
    whole = dict(batches(other, batch_size=16, seed=1, first=0, last=1, flip=True, device=CPU))[1]
    same = (whole["clip"] == whole["image"][:, :, None]).flatten(3).all(3)
    assert same.any(2).all(), "the frame of a mirrored clip is mirrored, too"


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"root": "here"}, "root"),
        ({"digit": 40}, "data.digit=28"),
        ({"speed": (3, 1)}, "data.speed"),
        ({"speed": (math.nan, 1)}, "speed"),
        ({"fps": ()}, "data.fps"),
        ({"fps": 0}, "fps"),
        ({"frames": 0}, "frames"),
        ({"frames": ()}, "data.frames"),
        ({"digits": 3}, "digits"),
        ({"digits": 2, "groups": 10}, "groups"),
        ({"groups": 1}, "groups"),
        ({"crop": "random"}, "crop"),
    ],
)
def test_what_cannot_be_computed_is_refused(keys: dict, named: str):
    with pytest.raises(ValidationError, match=named):
        MovingDigits(**keys)
