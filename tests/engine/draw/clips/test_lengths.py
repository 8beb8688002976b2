"""How long clips are: as in training, as --frames says, and in windows where that is longer."""

from typing import Any

import pytest
import torch

from diffcli.config import UserError
from diffcli.engine.draw.clips.lengths import guides_of_length
from tests.engine.draw.clips.filming import FRAMES, FilmNet, asked, drawn, film_model
from tests.engine.draw.making import FREE, made


def test_a_clip_has_the_length_and_speed_of_training() -> None:
    req = asked(film_model())
    assert req.shape == (1, FRAMES, 4, 6)
    assert req.describe()["clip"] == {"frames": FRAMES, "fps": 12.0}
    assert drawn(film_model()).shape == (2, 1, FRAMES, 4, 6)


def test_of_several_lengths_the_longest_is_drawn() -> None:
    model = film_model(data__frames=[2, 5, 3])
    assert asked(model).shape == (1, 5, 4, 6)
    assert asked(model, frames=4).shape == (1, 4, 4, 6)


@pytest.mark.parametrize("frames", [1, 3, FRAMES])
def test_a_shorter_clip_is_predicted_whole(frames: int) -> None:
    req = asked(film_model(), frames=frames)
    assert req.frame.tiles is None
    assert drawn(film_model(), frames=frames).shape == (2, 1, frames, 4, 6)


def test_a_longer_clip_is_predicted_in_windows_of_the_trained_length() -> None:
    described = asked(film_model(), frames=15).describe()["clip"]
    assert described == {"frames": 15, "fps": 12.0, "windows": {"size": FRAMES, "overlap": 3, "count": 4}}
    chosen = asked(film_model(), frames=15, window=5, window_overlap=1).describe()["clip"]["windows"]
    assert chosen == {"size": 5, "overlap": 1, "count": 4}


def test_a_clip_does_not_depend_on_the_batch_it_is_drawn_in() -> None:
    for options in ({}, {"frames": 14}):
        together = drawn(film_model(), n=3, **options)
        assert torch.equal(together, drawn(film_model(), n=3, batch_size=1, **options))
        assert torch.equal(together[1:], drawn(film_model(), n=2, seed=1, **options))


def test_the_noise_of_a_frame_depends_on_the_seed_and_the_frame_alone() -> None:
    short, long = (asked(film_model(), frames=frames).task.start([7, 8]) for frames in (4, 40))
    assert torch.equal(short[0], long[0][:, :, :4])
    assert torch.equal(short[1](short[0]), long[1](long[0])[:, :, :4]), "the second draw, of a stochastic sampler"
    assert len(long[0][0].unique(dim=1)[0]) == 40, "no two frames share their noise"


def test_frames_that_no_other_window_reaches_do_not_depend_on_the_length() -> None:
    """One step: a network that looks 2 frames far, in windows of 6, of which the second begins at frame 5."""
    options: dict[str, Any] = {"steps": 1, "window": FRAMES, "window_overlap": 1}
    one, other = drawn(film_model(), frames=16, **options), drawn(film_model(), frames=26, **options)
    settled = 16 - FRAMES  # where the last window of the shorter clip begins, which ends with it
    assert torch.equal(one[:, :, :settled], other[:, :, :settled])


def seam(model: Any, frames: int, **options: Any) -> tuple[float, float, float]:
    """Mean difference of neighbouring frames at the first frame that only the second window covers; elsewhere; its spread."""
    clips = drawn(model, n=16, frames=frames, **options).float()
    steps = (clips[:, :, 1:] - clips[:, :, :-1]).square().mean(dim=(0, 1, 3, 4)).sqrt()
    windows = asked(model, frames=frames, **options).frame.tiles
    cuts = [span.start - 1 for span in windows.spans(frames)[1:]] + [
        span.stop - 1 for span in windows.spans(frames)[:-1]
    ]
    inside = torch.tensor([i for i in range(len(steps)) if i not in cuts])
    return float(steps[cuts].max()), float(steps[inside].mean()), float(steps[inside].std())


def test_the_difference_across_a_seam_is_within_the_spread_of_neighbours() -> None:
    at, mean, spread = seam(film_model(), 20)
    assert abs(at - mean) < 3 * spread


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frames": 8}, ["--frames 8", "still images"]),
        ({"fps": 12.0}, ["--fps 12", "leave --fps out"]),
        ({"window": 4}, ["--window 4"]),
        ({"window_overlap": 2}, ["--window-overlap 2"]),
        ({"given_frames": "first:2"}, ["--given-frames first:2"]),
    ],
)
def test_a_model_of_images_refuses_the_options_of_clips(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        asked(made(**FREE), **options)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frames": 20, "window": 4, "window_overlap": 4}, ["--window-overlap 4", "--window-overlap 2", "--window 8"]),
        ({"frames": 4, "window_overlap": 2}, ["--window-overlap 2", "4 frames", "--window 2"]),
        ({"tile": 4}, ["--tile 4", "leave --tile out"]),
        ({"size": (4, 6), "image": None, "images": ()}, []),
    ],
)
def test_windows_that_cannot_be_are_refused_with_what_to_type(options: dict[str, Any], words: list[str]) -> None:
    options.pop("image", None)
    if not words:
        assert drawn(film_model(), **options).shape[3:] == (4, 6)
        return
    with pytest.raises(UserError) as caught:
        asked(film_model(), **options)
    for word in words:
        assert word in str(caught.value)


def test_a_clip_of_another_size_is_drawn() -> None:
    assert drawn(film_model(), size=(8, 10)).shape == (2, 1, FRAMES, 8, 10)


def test_a_weaker_model_guides_clips_of_the_length_that_is_drawn() -> None:
    model, weaker = film_model(), film_model(data__frames=3)
    assert guides_of_length({"weaker": weaker}, asked(model, frames=9).frame)["weaker"].task.shape == (1, 9, 4, 6)
    still = made(**FREE)
    assert guides_of_length({"weaker": still}, asked(model, frames=9).frame)["weaker"] is still


def test_the_network_of_these_tests_looks_two_frames_far() -> None:
    assert FilmNet.reach == 2
