"""Progress of a training on stderr: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from diffcli.cli.console import say

if TYPE_CHECKING:
    from diffcli.engine.run.loop import Progress

QUIET_SECONDS = 60.0  # seconds without a line of the log, after which a step prints a sign of life
MUCH_WAIT = 0.3  # share of the training time that waiting for data may take before a hint is printed
WORTH_TELLING = 10.0  # seconds of it
NARROW, WIDE = 10, 30  # columns of a bar on terminals of less than ROOMY columns, and on others
ROOMY = 100


class LinePart(NamedTuple):
    """A part of a line. rank: 0 is the most important; the highest ranks are left out first if the line is too long."""

    rank: int
    text: str


def watch_training(steps: "Iterator[Progress]", leads: bool) -> "Progress | None":
    """Runs a training to its end and shows it if this process leads; every process prints notes on its data.

    Returns the last step; None if there was none or this process does not lead.
    """
    steps = _noting(steps)
    if not leads:
        for _ in steps:
            pass
        return None
    last = _bar(steps) if sys.stderr.isatty() else _lines(steps)
    if last is not None and last.data_wait > MUCH_WAIT and last.waited > WORTH_TELLING:
        say(
            "hint:  raise train.workers, prepare smaller images (diffcli prep-data --size), or set data.in_memory to true"
        )
    return last


def say_facts(facts: Mapping[str, str]) -> None:
    """Prints named lines with aligned values."""
    width = max(map(len, facts), default=0) + 1
    for name, value in facts.items():
        say(f"{name + ':':<{width}} {value}")


def duration(seconds: float) -> str:
    """Hours, minutes and seconds as a clock shows them: 0:01:05."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def fitting(parts: Sequence[LinePart], width: int) -> str:
    """The parts in their order, separated by two spaces, without those of the highest ranks that do not fit into `width`."""
    kept = list(parts)
    while len(kept) > 1 and len("  ".join(part.text for part in kept)) > width:
        kept.remove(max(kept, key=lambda part: part.rank))
    return "  ".join(part.text for part in kept)


def _noting(steps: "Iterator[Progress]") -> "Iterator[Progress]":
    for p in steps:
        for note in p.notes:
            say(f"note:  {note}")
        yield p


def _left(p: "Progress", begun_at: int) -> float:
    """Seconds that the remaining steps will take at the speed of this session."""
    return p.trained / max(1, p.step - begun_at) * (p.steps - p.step)


def _parts(p: "Progress", begun_at: int) -> list[LinePart]:
    """The text of a progress bar after a step."""
    losses = [LinePart(1, f"{name} {value:.4f}") for name, value in p.losses.items()]
    more = [
        LinePart(3, f"{p.images_per_s:.0f} {p.unit}/s"),
        LinePart(4, f"data wait {p.data_wait:.0%}"),
        LinePart(2, f"{duration(_left(p, begun_at))} left"),
    ]
    return [LinePart(0, f"{p.step}/{p.steps}"), *losses, *more]


def _bar(steps: "Iterator[Progress]") -> "Progress | None":
    """A bar that disappears at the end of the training, with lines above it for written files."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    screen = Console(stderr=True)
    bar_width = WIDE if screen.width >= ROOMY else NARROW
    columns = BarColumn(bar_width=bar_width), TextColumn("{task.fields[extra]}", markup=False)
    with Progress(*columns, console=screen, transient=True) as bar:
        task = p = None
        begun_at = 0
        for p in steps:
            if task is None:
                task, begun_at = bar.add_task("training", total=p.steps, extra=""), p.step - 1
            extra = fitting(_parts(p, begun_at), screen.width - bar_width - 1)
            bar.update(task, completed=p.step, total=p.steps, extra=extra)
    return p


def _lines(steps: "Iterator[Progress]") -> "Progress | None":
    """One line for each line of the log, with the time of day, and one after a long silence."""
    said, p, begun_at = time.monotonic(), None, None
    for p in steps:
        begun_at = p.step - 1 if begun_at is None else begun_at
        if p.event or time.monotonic() - said > QUIET_SECONDS:
            said = time.monotonic()
            say(_line(p, begun_at))
    return p


def _line(p: "Progress", begun_at: int) -> str:
    written = [part for part in p.event.split(", ") if part not in ("", "log")]
    values = [f"{name} {value:.4f}" for name, value in distinct(p.values).items()]
    rate = [f"{p.images_per_s:.0f} {p.unit}/s", f"data wait {p.data_wait:.0%}", f"{duration(_left(p, begun_at))} left"]
    now = time.strftime("%H:%M:%S")
    return "  ".join([f"step {p.step}/{p.steps}", now, *values, *rate, *(f"wrote {each}" for each in written)])


def distinct(values: Mapping[str, float]) -> dict[str, float]:
    """The values without terms that repeat the whole loss of their phase under another name."""

    def is_loss(name: str) -> bool:
        return name.rpartition("/")[2] == "loss"

    losses = {name.rpartition("/")[0]: value for name, value in values.items() if is_loss(name)}
    return {
        name: value for name, value in values.items() if is_loss(name) or losses.get(name.rpartition("/")[0]) != value
    }
