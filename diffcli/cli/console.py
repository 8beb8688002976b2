"""Output for people, on stderr: error and hint lines, progress bars on a terminal, plain lines elsewhere."""

import codecs
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from rich.progress import TaskID

    from diffcli.prep.progress import PrepReport

T = TypeVar("T")
QUIET_SECONDS = 10.0  # between plain lines of progress


class ShowCount(Protocol):
    """Shows progress. extra: further text for the line."""

    def __call__(self, what: str, done: int, total: int | None, extra: str = "") -> None: ...


def show_anything(stream: Any) -> None:
    """Lets a stream print every name: bytes of a path that are not UTF-8 as they are, characters that it lacks as escapes."""
    codecs.register_error("shown", _shown)
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="shown")


def _shown(error: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


def say(text: str) -> None:
    """Prints one line."""
    print(text, file=sys.stderr, flush=True)


def say_all(lines: Iterable[str], notes: Iterable[str] = ()) -> None:
    """Prints lines, then notes."""
    for line in lines:
        say(line)
    for note in notes:
        say(f"note:  {note}")


@contextmanager
def showing_notes() -> Iterator[None]:
    """Context in which a warning of class `Note` is printed as a `note:` line; other warnings keep their usual form."""

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        from diffcli.config import Note  # pydantic: too heavy for --help

        if issubclass(category, Note):
            say(f"note:  {message}")
        else:
            others(message, category, *where, **more)

    with warnings.catch_warnings():
        others, warnings.showwarning = warnings.showwarning, show  # type: ignore[assignment]
        yield


def complain(problem: str, hint: str, also: Iterable[str] = ()) -> None:
    """Prints the two lines of a user's mistake, and one line for each further mistake."""
    for begins, text in [("error:", problem), ("hint: ", hint), *(("also: ", other) for other in also)]:
        say(f"{begins} {' '.join(text.split())}")


def watch_preparation(reports: "Iterator[PrepReport]") -> str:
    """Runs prep-data to its end and prints what was skipped for which reason; returns a line about the outcome."""
    started, before = time.monotonic(), None
    with counting() as show:
        for last in reports:
            if last.fetched is None:
                show(last.what, last.done, last.total)
            else:
                before = last.fetched.total() if before is None else before  # by a run that was killed
                rate = (last.fetched.total() - before) / max(time.monotonic() - started, 1e-3)
                ends = ", ".join(f"{count} {end}" for end, count in last.fetched.most_common())
                show("downloading", last.fetched.total(), last.total - last.done, f"{rate:.0f} {last.unit}/s  {ends}")
    for reason, count in sorted(last.reasons.items(), key=lambda pair: -pair[1]):
        say(f"{count:>9}  {reason}")
    from diffcli.config import quoted
    from diffcli.data.description import describe_set

    holds = describe_set(last.out)
    say_all(holds.lines, (*last.notes, *holds.remarks))
    say(f"train on it: diffcli train --preset NAME --data {quoted(last.out)}")
    skipped = f", {last.skipped} skipped (see {last.out / 'skipped.jsonl'})" if last.skipped else ""
    return f"{last.out}: {last.written} {last.unit}{skipped}"


def track(items: Iterable[T], total: int | None, what: str) -> Iterator[T]:
    """Passes items through; shows how many of `total` are done. Batches of images count by their length."""
    done = 0
    with counting() as show:
        for item in items:
            yield item
            done += len(getattr(item, "images", "1"))
            show(what, done, total)


@contextmanager
def counting() -> Iterator[ShowCount]:
    """Context with a function that shows (what, done, total, extra): bars on a terminal, a line now and then elsewhere."""
    if not sys.stderr.isatty():
        yield _line_now_and_then()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    extra = TextColumn("{task.fields[extra]}")
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), extra
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int | None, extra: str = "") -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, extra=extra)
            bar.update(tasks[what], completed=done, total=total, extra=extra)

        yield show


def _line_now_and_then() -> ShowCount:
    last = time.monotonic()

    def show(what: str, done: int, total: int | None, extra: str = "") -> None:
        nonlocal last
        if time.monotonic() - last > QUIET_SECONDS:
            last = time.monotonic()
            say(f"{what}: {done}" + (f" of {total}" if total else "") + (f"  {extra}" if extra else ""))

    return show
