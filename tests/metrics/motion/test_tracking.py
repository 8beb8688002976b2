"""Motion is measured from pixels: exact on clips whose motion is known, and told apart from jitter."""

import pytest
import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.data.moving_digits import MovingDigits, fold, shifted
from diffcli.fields import FieldSpec
from diffcli.metrics.metric import empty_summaries
from diffcli.metrics.motion.tracking import (
    Motion,
    MotionMeasures,
    Room,
    accelerations,
    centroids,
    ink,
    pieces,
    reflections,
)


def bouncing(n: int = 200, frames: int = 16, lost: float = 0.0) -> Tensor:
    """Places (n, T, 2) between walls at 3 and 17; a share `lost` of the speed is lost at the first wall of each axis."""
    draw = torch.Generator().manual_seed(0)
    start = 14 * torch.rand(n, 1, 2, generator=draw, dtype=torch.float64)
    speed = (1 + torch.rand(n, 1, 2, generator=draw, dtype=torch.float64)) * (-1) ** torch.arange(2)
    line = start + speed * torch.arange(frames)[:, None]
    beyond = torch.where(line > 14, line - 14, 0) + torch.where(line < 0, line, 0)
    return 3 + fold(line - lost * beyond, torch.tensor(14.0))


def scores(samples: Tensor, reference: Tensor) -> dict[str, float]:
    metric = Motion()
    of = empty_summaries([metric])
    for side, places in (("samples", samples), ("reference", reference)):
        for part in places.split(64):
            of[side, "motion"].update({"places": part})
    return metric.compute(of)


def test_a_straight_path_between_walls_has_no_acceleration_and_loses_no_speed_at_them():
    found = scores(bouncing(), bouncing())
    assert found["acceleration"] < 1e-9
    assert found["reflection"] < 1e-9
    assert found["step"] == pytest.approx(found["step_reference"])
    assert 1 < found["step"] < 2 * 2**0.5


def test_jitter_is_acceleration_of_its_own_size():
    noise = torch.randn(200, 16, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = scores(bouncing() + 0.1 * noise, bouncing())
    assert found["acceleration"] == pytest.approx(0.1 * 6**0.5 * (2 / torch.pi) ** 0.5, rel=0.05)  # E |N(0, 6)|


@pytest.mark.parametrize("kept", [0.5, 0.8, 1.25])
def test_a_wall_that_takes_or_gives_speed_is_found_by_the_share_that_it_takes(kept: float):
    draw = torch.Generator().manual_seed(0)
    times, hit = torch.arange(9, dtype=torch.float64), 3 + torch.rand(50, 1, generator=draw, dtype=torch.float64) * 2
    speed = 0.5 + torch.rand(50, 1, generator=draw, dtype=torch.float64)
    line = torch.where(times < hit, 17 - speed * (hit - times), 17 - kept * speed * (times - hit))
    places = torch.stack([line, torch.full_like(line, 9)], -1)
    lost, mean = reflections(places, Room.around(torch.cat([places, bouncing(50, 9)])))
    assert 30 <= len(lost) <= 50, "one for each, but for ties"
    exact = (lost / mean - abs(1 - kept) / ((1 + kept) / 2)).abs() < 1e-9
    assert exact.float().mean() > 0.5, "but for those whose slowest step is not the one that meets the wall"


def test_frames_in_random_places_have_neither():
    places = 3 + 14 * torch.rand(200, 16, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = scores(places, bouncing())
    assert found["acceleration"] > 5
    assert found["reflection"] > 0.3


def test_only_what_cannot_have_bounced_is_called_acceleration():
    places = bouncing(frames=40)
    room = Room.around(places)
    inside = ~room.near(places[:, 1:-1])
    assert 0.2 < inside.float().mean() < 0.9
    bend = (places[:, 2:] - 2 * places[:, 1:-1] + places[:, :-2]).abs()
    assert bend.max() > 1, "bounces are there"
    assert accelerations(places, room).max() < 1e-9
    lost, speed = reflections(places, room)
    assert len(lost) > 500
    assert (speed >= 1 - 1e-9).all()


def test_what_cannot_be_measured_is_left_out_and_said():
    metric, still = Motion(), torch.full((3, 6, 2), 5.0)
    of = empty_summaries([metric])
    for side in ("samples", "reference"):
        of[side, "motion"].update({"places": still})
    found = metric.compute(of)
    assert found == {"step": 0, "step_reference": 0}
    assert len(metric.warnings(of)) == 4
    assert "unknown" in metric.lines(found, {})["motion"]


def test_moving_digits_measured_from_their_levels_are_nearly_exact():
    data = MovingDigits(frames=16).build("test")
    rows = torch.arange(150)
    clips = data.read(rows)["clip"]
    places = MotionMeasures(16)({"clip": clips}, range(150))["places"]
    ways = data.paths(rows)
    floor = centroids(data.ink[ways.which[:, 0]])[:, None] + ways.corner[:, 0]
    assert (places - floor).abs().mean() < 0.3
    assert (places.diff(dim=1) - ways.corner[:, 0].diff(dim=1)).abs().mean() < 0.08, "steps are"
    found = scores(places, places)
    assert found["acceleration"] < 0.15
    assert found["reflection"] < 0.1
    shuffled = scores(places[:, torch.randperm(16, generator=torch.Generator().manual_seed(0))], places)
    assert shuffled["acceleration"] > 10 * found["acceleration"]


def test_faint_noise_does_not_move_a_centroid():
    picture = torch.zeros(1, 5, 5)
    picture[0, 1:4, 1:4] = 1
    clip = shifted(picture, torch.tensor([[[3.25, 8.5]]], dtype=torch.float64), (20, 24))[:, None]
    levels = (clip * 255).to(torch.uint8)
    noise = (60 * torch.rand(levels.shape, generator=torch.Generator().manual_seed(0))).to(torch.uint8)
    dirty = torch.maximum(levels, noise)
    assert torch.equal(centroids(ink(levels)), centroids(ink(dirty)))
    assert (centroids(clip[:, 0])[0, 0] - torch.tensor([5.25, 10.5])).abs().max() < 1e-5


def test_a_dim_thing_has_the_place_of_a_bright_one_and_a_blank_frame_none():
    clip = MovingDigits(frames=4).build("test").read(torch.arange(20))["clip"]
    found = centroids(ink(clip))
    assert (centroids(ink(clip // 3)) - found).abs().max() < 0.1
    assert pieces(ink(clip // 25) > 0).sum() == 0


def test_the_place_of_nothing_is_the_middle():
    assert centroids(torch.zeros(1, 3, 5)).tolist() == [[1, 2]]
    assert pieces(torch.zeros(2, 3, 5, dtype=torch.bool)).tolist() == [0, 0]


def test_pieces_are_counted_however_they_wind():
    drawn = [
        "#....#####",
        "#....#...#",
        "#....#.#.#",
        "#....#.###",
        "#....#....",
        "#....#####",
    ]
    mask = torch.tensor([[letter == "#" for letter in row] for row in drawn])
    assert pieces(mask).item() == 2
    mask[0, [2, 4]] = True  # a bridge of which each pixel is in reach of the next
    assert pieces(mask[None]).tolist() == [1]


def test_clips_of_two_digits_are_mostly_in_two_pieces():
    one, two = (MovingDigits(size=40, digits=n, frames=4).build("test").read(torch.arange(60))["clip"] for n in (1, 2))
    counts = [MotionMeasures(4)({"clip": clips}, range(60))["pieces"] for clips in (one, two)]
    assert (counts[0] == 1).float().mean() > 0.97
    assert 1.4 < counts[1].mean() < 2


def test_sides_without_clips_and_clips_too_short_to_bounce_are_refused():
    extractor = MotionMeasures()
    with pytest.raises(UserError, match="x: --metrics motion reads the field 'clip'") as error:
        extractor.check("x", {"image": FieldSpec("image", (1, 8, 8))})
    assert "moving-digits:test" in error.value.hint
    with pytest.raises(UserError, match="3 frames"):
        extractor.check("x", {"clip": FieldSpec("clip", (1, 3, 8, 8))})
    extractor.check("x", {"clip": FieldSpec("clip", (1, None, 8, 8))})
