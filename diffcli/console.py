"""What a person sees: error and hint lines, progress bars on a terminal, plain lines elsewhere. All of it on stderr."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from diffcli.data.prep import PrepReport
    from diffcli.engine.train import Progress

T = TypeVar("T")
QUIET_SECONDS = 10.0  # between plain lines of progress


def say(text: str) -> None:
    """A line of talk."""
    print(text, file=sys.stderr, flush=True)


def complain(problem: str, hint: str) -> None:
    """The two lines of a user's mistake."""
    say(f"error: {' '.join(problem.split())}")
    say(f"hint:  {' '.join(hint.split())}")


def watch_training(steps: "Iterator[Progress]", leads: bool) -> None:
    """Runs a training to its end, showing it where this process leads."""
    if not leads:
        for _ in steps:
            pass
    elif sys.stderr.isatty():
        _bar(steps)
    else:
        _lines(steps)


def watch_preparation(reports: "Iterator[PrepReport]") -> str:
    """Runs prep-data to its end; returns the line that tells its outcome."""
    *_, last = _tracked_reports(reports) if sys.stderr.isatty() else _report_lines(reports)
    for note in last.notes:
        say(f"note:  {note}")
    skipped = f", {last.skipped} skipped (see {last.out / 'skipped.jsonl'})" if last.skipped else ""
    return f"{last.out}: {last.written} images{skipped}"


def track(items: Iterable[T], total: int | None, what: str) -> Iterator[T]:
    """Passes items through; shows how many of `total` are done. Batches of images count by their length."""
    if not sys.stderr.isatty():
        yield from _track_lines(items, total, what)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        for item in items:
            yield item
            bar.advance(task, _count(item))


def _track_lines(items: Iterable[T], total: int | None, what: str) -> Iterator[T]:
    done, told = 0, time.monotonic()
    for item in items:
        yield item
        done += _count(item)
        if time.monotonic() - told > QUIET_SECONDS:
            told = time.monotonic()
            say(f"{what}: {done}" + (f" of {total}" if total else ""))


def _tracked_reports(reports: "Iterator[PrepReport]") -> "Iterator[PrepReport]":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("preparing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("preparing")
        for report in reports:
            bar.update(task, total=report.total, completed=report.done)
            yield report


def _report_lines(reports: "Iterator[PrepReport]") -> "Iterator[PrepReport]":
    told = time.monotonic()
    for report in reports:
        if time.monotonic() - told > QUIET_SECONDS:
            told = time.monotonic()
            say(f"preparing: {report.done} of {report.total}")
        yield report


def _count(item: object) -> int:
    images = getattr(item, "images", None)
    return len(images) if images is not None else 1


def _bar(steps: "Iterator[Progress]") -> None:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = None
        for p in steps:
            task = bar.add_task("training", total=p.steps, told="") if task is None else task
            bar.update(task, completed=p.step, told=f"loss {p.values['loss']:.4f}  {p.images_per_s:.0f} images/s")


def _lines(steps: "Iterator[Progress]") -> None:
    told = time.monotonic()
    for p in steps:
        if p.event or time.monotonic() - told > QUIET_SECONDS:
            told = time.monotonic()
            values = "  ".join(f"{name} {value:.4f}" for name, value in p.values.items())
            written = [part for part in p.event.split(", ") if part not in ("", "log")]
            say(
                f"step {p.step}/{p.steps}  {values}  {p.images_per_s:.0f} images/s"
                + "".join(f"  wrote {w}" for w in written)
            )
