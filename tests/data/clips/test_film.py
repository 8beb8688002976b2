"""Which frames of a film a clip consists of follows from its time stamps alone, whatever the file is."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from PIL import Image

from diffcli.data.clips.film import TOLERANCE, Film, NoFrames, Shot, Timing, taken


class Stamped(Film):
    """Frames at these times, in seconds; a frame is grey of its number. claimed: its length according to its header."""

    size = (1, 1)

    def __init__(self, times: Sequence[float], end: float, claimed: float | None = None) -> None:
        self.times, self.end = [*times, end], end
        self.seconds = end if claimed is None else claimed
        self.rate = len(times) / self.seconds

    def shots(self, start: float) -> Iterator[Shot]:
        first = max(i for i, time in enumerate(self.times[:-1]) if i == 0 or time <= start + 1e-6)
        for number in range(first, len(self.times) - 1):
            now, after = self.times[number : number + 2]
            yield Shot(now, after - now, lambda number=number: Image.new("L", (1, 1), number))


def frames(film: Film, timing: Timing, share: float = 0.0) -> list[int]:
    return [int(frame[0, 0, 0]) for frame in taken(film, timing, share, lambda image: np.array(image)[None]).frames]


def steady(count: int, fps: float) -> Stamped:
    return Stamped([i / fps for i in range(count)], count / fps)


@pytest.mark.parametrize("fps", [8, 12.5, 24000 / 1001, 30, 60])
def test_at_its_own_rate_a_film_is_taken_frame_by_frame(fps: float):
    assert frames(steady(10, fps), Timing(10, fps)) == frames(steady(10, fps), Timing(10)) == list(range(10))


@pytest.mark.parametrize("fps", [24, 24000 / 1001, 25])
def test_a_film_is_resampled_to_what_is_shown_at_each_time(fps: float):
    expected = [int((j / 8 + TOLERANCE) * fps) for j in range(16)]
    assert frames(steady(60, fps), Timing(16, 8)) == expected


def test_a_slow_film_is_resampled_by_repeating_what_is_shown():
    assert frames(steady(4, 2), Timing(8, 4)) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_variable_rate_is_resampled_by_time_stamps():
    film = Stamped([0, 0.1, 0.2, 1.0, 1.5], 2.0)
    assert frames(film, Timing(4, 2)) == [0, 2, 3, 4]
    assert frames(film, Timing(5)) == [0, 1, 2, 3, 4]


def test_time_stamps_in_whole_milliseconds_are_those_of_the_rate():
    film = Stamped([round(1000 * i / 24) / 1000 for i in range(48)], 2.0)
    assert frames(film, Timing(16, 8)) == list(range(0, 48, 3))


@pytest.mark.parametrize("fps", [None, 8.0])
def test_a_stride_takes_every_second_frame_and_halves_the_rate(fps: float | None):
    assert frames(steady(9, 8), Timing(5, fps, stride=2)) == [0, 2, 4, 6, 8]
    assert Timing(5, fps, stride=2).shown_rate(8) == 4


@pytest.mark.parametrize("fps", [None, 8.0])
def test_each_start_from_which_the_clip_lies_in_the_film_is_equally_likely(fps: float | None):
    firsts = [frames(steady(10, 8), Timing(4, fps), (i + 0.5) / 70)[0] for i in range(70)]
    assert np.bincount(firsts).tolist() == [10] * 7


@pytest.mark.parametrize("fps", [None, 8.0])
def test_a_film_as_long_as_the_clip_has_one_start_and_a_shorter_one_none(fps: float | None):
    assert frames(steady(5, 8), Timing(5, fps), 0.99) == [0, 1, 2, 3, 4]
    with pytest.raises(NoFrames, match=r"4 frames at 8 a second.*needs 5"):
        frames(steady(4, 8), Timing(5, fps))


def test_a_film_that_ends_before_its_header_says_has_its_clips_before_that_end():
    """As where the sound goes on behind the last frame."""
    film = Stamped([i / 8 for i in range(8)], 1.0, claimed=2.0)
    film.rate = 8
    assert frames(film, Timing(4, 8), 0.99) == [4, 5, 6, 7]
    with pytest.raises(NoFrames, match="too short"):
        frames(film, Timing(9, 8), 0.99)
