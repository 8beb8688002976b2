"""The losses of a run as a picture."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffcli.engine.run.showing.curves import COLOURS, SIZE, axis_of, panel, picture, series, smooth, write


def dark(image: Image.Image, colour: str) -> np.ndarray:
    """The columns and rows (N, 2) of the pixels of a colour, near enough."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    near = np.abs(np.asarray(image).astype(int) - wanted).max(2) < 24
    return np.argwhere(near)[:, ::-1]


def test_losses_and_scores_of_every_phase_are_read_and_nothing_else() -> None:
    lines = [
        {"step": 1, "loss": 0.5, "val_loss": 0.6, "mse": 0.5, "lr": 1e-3, "score": 9.0},
        {"step": 2, "loss": math.nan, "discriminator/loss": 2.0, "remarks": ["x"]},
    ]
    losses, scores = series(lines)
    assert losses == {"loss": [(1, 0.5)], "val_loss": [(1, 0.6)], "discriminator/loss": [(2, 2.0)]}
    assert scores == {"score": [(1, 9.0)]}


def test_a_running_mean_is_that_of_the_last_fortieth_of_the_points() -> None:
    points = [(float(i), float(i % 2)) for i in range(80)]
    assert smooth(points)[0] == (0, 0)
    assert all(value == 0.5 for _, value in smooth(points)[1:])
    assert smooth([(1.0, 3.0)]) == [(1.0, 3.0)]


def test_an_axis_is_logarithmic_where_values_span_more_than_ten_times() -> None:
    axis = axis_of([0.01, 1.0, 100.0])
    assert [axis.place(v) for v in (0.01, 1.0, 100.0)] == pytest.approx([0, 0.5, 1])
    assert not axis_of([1.0, 2.0]).logarithmic
    assert not axis_of([-1.0, 100.0]).logarithmic
    assert axis_of([3.0]).place(3.0) == 0.5


@pytest.mark.parametrize("values", [[0.01, 100.0], [0.2, 0.9], [-3.0, 4.0], [5.0], [1e-9, 2e-9]])
def test_ticks_are_few_and_lie_on_the_axis(values: list[float]) -> None:
    axis = axis_of(values)
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 12
    assert all(-1e-6 <= axis.place(tick) <= 1 + 1e-6 for tick in ticks)


def test_a_falling_loss_is_a_line_that_falls_from_left_to_right() -> None:
    spots = dark(panel({"loss": [(float(i), 1 - i / 200) for i in range(100)]}, ""), COLOURS[0])
    spots = spots[spots[:, 1] > 32]  # below the legend
    left, right = spots[spots[:, 0] < 200], spots[spots[:, 0] > 600]
    assert len(left)
    assert len(right)
    assert left[:, 1].mean() < right[:, 1].mean() - 100


def test_scores_have_a_panel_of_their_own_and_an_empty_log_no_picture(tmp_path: Path) -> None:
    lines = [{"step": i, "loss": 1 / i, "score": 10.0 - i} for i in range(1, 5)]
    drawn = picture(lines, "run")
    assert drawn is not None
    assert drawn.size == (SIZE[0], 2 * SIZE[1])
    assert picture([{"step": 1, "lr": 0.1}], "run") is None
    assert not write([], tmp_path / "loss.png", "run")
    assert list(tmp_path.iterdir()) == []
    assert write(lines, tmp_path / "loss.png", "run")
    assert [p.name for p in tmp_path.iterdir()] == ["loss.png"]


def test_a_log_of_many_lines_is_drawn_as_quickly_as_a_short_one() -> None:
    lines = [json.loads(json.dumps({"step": i, "loss": 1.0})) for i in range(1, 30_000)]
    assert picture(lines, "run") is not None
