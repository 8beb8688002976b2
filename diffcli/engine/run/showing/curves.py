"""The losses of a run as a picture, `RUN/loss.png`: curves over steps, drawn with Pillow alone.

Each curve is a line of its numbers, pale, under a running mean of a fortieth of them, dark. The axis of values is logarithmic
where all are positive and the largest is more than LOG_FROM times the smallest. A second panel shows the scores of a run.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

SIZE = (800, 400)  # pixels of a panel, width and height
FINE = 2  # drawn so many times as large, then made smaller: smooth lines
MARGIN = (70, 32, 20, 40)  # pixels left of, above, right of and below the curves
COLOURS = ("#1f5fa8", "#c2571a", "#2a8a3e", "#8a2a80", "#6b6b6b", "#a8901f")
PAPER, INK, FAINT = "#ffffff", "#222222", "#dddddd"
LOG_FROM = 10.0
TICKS = 5
MOST_POINTS = 2000  # of a curve that are drawn
SCORE = "score"

Points = list[tuple[float, float]]


class Axis(NamedTuple):
    """From values to [0, 1]."""

    low: float
    high: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """0 at `low`, 1 at `high`."""
        low, high, value = (math.log(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """Round values within it, about TICKS of them."""
        if self.logarithmic:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            found = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
            found = [tick for tick in found if self.low <= tick <= self.high]
            return found[:: math.ceil(len(found) / (2 * TICKS))] or [self.low, self.high]
        rough = (self.high - self.low) / TICKS
        size = 10.0 ** math.floor(math.log10(rough))
        step = next(m * size for m in (1, 2, 5, 10) if m * size >= rough)
        first, last = math.ceil(self.low / step), math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]


def axis_of(values: Iterable[float], logarithmic: bool = True) -> Axis:
    """The axis of finite values; around a single value it has a small range."""
    values = list(values)
    low, high = min(values), max(values)
    if logarithmic and low > 0 and high > LOG_FROM * low:
        return Axis(low, high, True)
    return Axis(low, high) if high > low else Axis(low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2)


def series(lines: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Points], dict[str, Points]]:
    """The losses of lines of a log, by name, and its scores; each (step, value), of finite values alone."""
    losses: dict[str, Points] = {}
    scores: dict[str, Points] = {}
    for line in lines:
        for name, value in line.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                continue
            if name == SCORE:
                scores.setdefault(name, []).append((float(line["step"]), float(value)))
            elif name.rpartition("/")[2] in ("loss", "val_loss"):
                losses.setdefault(name, []).append((float(line["step"]), float(value)))
    return losses, scores


def smooth(points: Points) -> Points:
    """Running means of a fortieth of the points, up to each of them."""
    width = max(1, len(points) // 40)
    found, total = [], 0.0
    for i, (step, value) in enumerate(points):
        total += value - (points[i - width][1] if i >= width else 0.0)
        found.append((step, total / min(i + 1, width)))
    return found


def picture(lines: Iterable[Mapping[str, Any]], title: str) -> Image.Image | None:
    """The curves of a log's lines; None where they hold no loss."""
    panels = [each for each in series(lines) if each]
    if not panels:
        return None
    sheet = Image.new("RGB", (SIZE[0], SIZE[1] * len(panels)), PAPER)
    for i, curves in enumerate(panels):
        sheet.paste(panel(curves, title if i == 0 else SCORE), (0, i * SIZE[1]))
    return sheet


def write(lines: Iterable[Mapping[str, Any]], path: Path, title: str) -> bool:
    """Writes the picture of a log; whether there was anything to show."""
    drawn = picture(lines, title)
    if drawn is not None:
        partial = path.with_name(f".{path.name}.partial")
        drawn.save(partial, "PNG", compress_level=1)  # a plain picture is small at any level, and this the fastest
        partial.replace(path)
    return drawn is not None


def panel(curves: Mapping[str, Points], title: str) -> Image.Image:
    """One picture of curves with axes, a legend and a title."""
    width, height = SIZE[0] * FINE, SIZE[1] * FINE
    left, top, right, bottom = (margin * FINE for margin in MARGIN)
    image = Image.new("RGB", (width, height), PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12 * FINE)
    across = axis_of((step for points in curves.values() for step, _ in points), logarithmic=False)
    up = axis_of(value for points in curves.values() for _, value in points)

    def spot(step: float, value: float) -> tuple[float, float]:
        x = left + across.place(step) * (width - left - right)
        return x, height - bottom - up.place(value) * (height - top - bottom)

    for tick in up.ticks():
        y = spot(across.low, tick)[1]
        draw.line([(left, y), (width - right, y)], fill=FAINT, width=FINE)
        draw.text((left - 8 * FINE, y), f"{tick:.4g}", fill=INK, font=font, anchor="rm")
    for tick in across.ticks():
        x = spot(tick, up.low)[0]
        draw.line([(x, top), (x, height - bottom)], fill=FAINT, width=FINE)
        draw.text((x, height - bottom + 6 * FINE), f"{tick:,.0f}", fill=INK, font=font, anchor="ma")
    draw.text((width - right, height - 4 * FINE), "step", fill=INK, font=font, anchor="rd")
    for points, colour in zip(curves.values(), _colours(len(curves)), strict=True):
        _draw_curve(draw, [spot(*point) for point in _thinned(points)], _pale(colour), FINE)
        _draw_curve(draw, [spot(*point) for point in _thinned(smooth(points))], colour, 2 * FINE)
    _legend(draw, font, title, curves, (left, 8 * FINE))
    return image.reduce(FINE)


def _legend(
    draw: ImageDraw.ImageDraw, font: Any, title: str, curves: Mapping[str, Points], at: tuple[float, float]
) -> None:
    """The title and the names of the curves with their last values, beside each other."""
    x, y = at
    words = [(title, INK)] * bool(title)
    words += [
        (f"{name} {smooth(points)[-1][1]:.4g}", colour)
        for (name, points), colour in zip(curves.items(), _colours(len(curves)), strict=True)
    ]
    for text, colour in words:
        draw.text((x, y), text, fill=colour, font=font)
        x += font.getlength(text) + 20 * FINE


def _draw_curve(draw: ImageDraw.ImageDraw, spots: Sequence[tuple[float, float]], colour: str, width: int) -> None:
    if len(spots) == 1:
        (x, y), r = spots[0], 2 * width
        draw.ellipse([x - r, y - r, x + r, y + r], fill=colour)
    else:
        draw.line(list(spots), fill=colour, width=width, joint="curve")


def _thinned(points: Points) -> Points:
    """Some of the points, spread evenly, the last among them."""
    step = math.ceil(len(points) / MOST_POINTS)
    return points[(len(points) - 1) % step :: step]


def _colours(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


def _pale(colour: str) -> str:
    """Two thirds of the way to white."""
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(255 - (255 - part) / 3):02x}" for part in parts)
