"""How a command runs: in one process or as workers of a group, with an exit code for every outcome."""

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from diffcli.cli.console import complain, counting, say, say_all, show_anything, showing_notes
from diffcli.cli.parsing.mistakes import in_our_words
from diffcli.cli.watching import say_facts, watch_training

if TYPE_CHECKING:
    from diffcli.config import UserError
    from diffcli.engine.distributed import Group, Launch
    from diffcli.engine.draw.sample import SampleOptions
    from diffcli.engine.model import Model
    from diffcli.engine.run.runlog import RunDir
    from diffcli.preset import Preset

TRACEBACKS = "DIFFCLI_TRACEBACK"  # set it to see where a user's error was raised
WORKER = "LOCAL_RANK"  # set by torchrun for each of its workers


def run(app: typer.Typer) -> int:
    """Runs the command line; returns 0, 2 for the user's mistakes, 130 for interruption. Other exceptions pass: exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        show_anything(stream)
    try:
        with showing_notes():
            code = _command(app)(prog_name="diffcli", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of the output has closed the pipe
        return 0
    except Exception as error:
        return _exit_code(error)


@lru_cache(maxsize=1)
def _command(app: typer.Typer) -> Callable[..., Any]:
    """The parser of all commands, made once: a program that runs many commands waits for it with the first alone."""
    return typer.main.get_command(app)


def leave(code: int) -> NoReturn:
    """Ends the process with an exit code.

    A worker skips the interpreter's finalisation. Otherwise a thread of its process group could still need the interpreter and
    abort the process ("terminate called without an active exception"), so that a finished run would count as failed.
    """
    if WORKER not in os.environ:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _exit_code(error: Exception) -> int:
    """Prints a mistake of the user and returns its exit code; raises everything else again."""
    if hasattr(error, "format_message"):  # the command-line parser's own errors, whichever click typer carries
        context = getattr(error, "ctx", None)
        if context is not None and type(error).__name__ == "NoArgsIsHelpError":
            if text := error.format_message():  # that of rich is on the screen already
                print(text)
            return 2
        complain(*in_our_words(error))
        return 2
    from diffcli.config import UserError

    if not isinstance(error, UserError):
        if "torch" in sys.modules and _lost_a_peer():
            return 1
        raise error
    if TRACEBACKS in os.environ:
        raise error
    if not _told_to_launcher(error):
        complain(error.problem, error.hint, error.also)
    return error.exit_code


def _told_to_launcher(error: "UserError") -> bool:
    """Passes an error to the launcher of this worker, which prints it; False if no launcher of diffcli started this process."""
    if WORKER not in os.environ:
        return False  # without importing torch
    from diffcli.engine.distributed import tell_launcher

    return tell_launcher(error)


def _lost_a_peer() -> bool:
    """Whether another worker of the same launch has reported an error, which explains this one's broken connection."""
    from diffcli.engine.distributed import is_worker, told_errors

    return is_worker() and bool(told_errors())


def in_group(work: "Callable[[Group], None]", device: str, how: "Launch") -> None:
    """Calls `work` in this process, or starts workers that run this same command line and call it there."""
    from diffcli.config import UserError
    from diffcli.engine.distributed import is_worker, join, launch, pick_device, tell_launcher

    if how.world > 1 and not is_worker():
        pick_device(device, how.nproc)  # type: ignore[arg-type]
        code = launch(how, sys.argv[1:])
        if code == 130:
            from diffcli.engine.run.signals import Interrupted

            raise Interrupted  # workers save before they leave
        if code:
            raise typer.Exit(code)
        return
    with join(device) as group:  # type: ignore[arg-type]
        try:
            work(group)
        except UserError as error:
            tell_launcher(error)  # before leaving the group, which the others notice
            raise


def run_training(
    preset: "Preset", run: "RunDir", start: Path | None, device: str, how: "Launch", base: Path | None = None
) -> None:
    """Trains or resumes, shows progress, and prints the resume command after an interruption. base: see `train`."""
    from diffcli.checkpoint import checkpoints
    from diffcli.config import quoted
    from diffcli.data.leftovers import tidied
    from diffcli.engine.data_records import fitted_to_data
    from diffcli.engine.distributed import pick_device, speaks
    from diffcli.engine.draw.guides import check_named
    from diffcli.engine.lora.lora_training import check_base
    from diffcli.engine.run.origin.source_reading import described
    from diffcli.engine.run.personal.class_pictures import check_preserving
    from diffcli.engine.run.resume import changes, edits, hints_to_resume
    from diffcli.engine.run.showing import run_facts
    from diffcli.engine.run.showing.trackers import check_trackers
    from diffcli.engine.run.signals import Interrupted
    from diffcli.engine.run.state import build_on_meta
    from diffcli.engine.run.train import Scoring, begun, check_processes
    from diffcli.engine.stage_reading import completed

    how.check()
    pick_device(device, how.nproc)  # type: ignore[arg-type]
    check_processes(preset, how.world)
    check_trackers(preset.train.log)
    in_its_words = nullcontext if start is None else hints_to_resume
    with in_its_words():
        preset = completed(fitted_to_data(preset))
    with tidied(run.path) if speaks() else nullcontext():
        if speaks():
            check_base(preset)
            check_preserving(preset)
            if start is None and preset.origin is not None:
                described(preset.origin)
            build_on_meta(preset)  # an impossible network is refused before data are read and folders made
            if start is None:
                check_named(preset.drawing.named)
                run.claim()
            notes = [*edits(run).notes, *changes(preset, start)] if start else run.notes()
            for advice in [*preset.advice(), *notes]:
                say(f"note:  {advice}")

        scoring: Scoring | None = None
        if preset.train.every.score:
            from diffcli.engine.score.training.small_score import SmallScore

            scoring = SmallScore

        def work(group: "Group") -> None:
            with (
                in_its_words(),
                begun(preset, run, group, start, counting if group.leads else None, scoring, base) as ready,
            ):
                if group.leads:
                    say_facts({**run_facts.beginning(ready.loop, ready.first, ready.holds.facts), **ready.taken})
                    say_all((), ready.notes)
                last = watch_training(ready.loop.steps(ready.first), group.leads)
                if last is not None:
                    say_facts(run_facts.ending(ready.loop, last, ready.first))

        try:
            in_group(work, device, how)
        except KeyboardInterrupt as stop:
            if speaks():
                kept = checkpoints(run.checkpoints)
                command = f"go on with: diffcli resume {quoted(run.path)}" if kept else "nothing was saved yet"
                lost = f" without saving: what came after {kept[-1].name} is lost" if kept else ""
                say(f"{'interrupted' if isinstance(stop, Interrupted) else f'stopped at once{lost}'}; {command}")
            raise
    if speaks():
        print(run.path)


def open_model(ckpt: Path, options: "SampleOptions", group: "Group", ema: bool) -> "Model":
    """The checkpoint, loaded with the options."""
    from diffcli.engine.model import load_model

    how: dict[str, Any] = {"precision": options.precision, "compile": options.compile}
    how |= {"base": options.base, "loras": options.loras, "embeddings": options.embeddings}
    return load_model(ckpt, group.device, ema, options.overrides, **how)


def opening(options: "SampleOptions", group: "Group", ema: bool) -> "Callable[[Path], Model]":
    """Loads the checkpoints of a cascade, one a call, in their order; changes of weights are those of the first."""
    first, later = iter([options]), options.model_copy(update={"loras": (), "base": None, "embeddings": ()})
    return lambda ckpt: open_model(ckpt, next(first, later), group, ema)


def print_plan(preset: "Preset", path: Path, device: str, how: "Launch") -> None:
    """The resolved preset as YAML, then facts as comments of it."""
    from diffcli.engine.data_records import fitted_to_data
    from diffcli.engine.distributed import pick_device
    from diffcli.engine.lora.lora_training import check_base
    from diffcli.engine.run.plan import plan
    from diffcli.engine.run.state import resolved
    from diffcli.engine.run.train import check_processes
    from diffcli.engine.stage_reading import completed
    from diffcli.preset import dump

    how.check()
    check_processes(preset, how.world)
    check_base(preset)
    preset = resolved(completed(fitted_to_data(preset)), pick_device(device))  # type: ignore[arg-type]
    facts = plan(preset, path, how.world)
    print(dump(preset), end="")
    for name, value in facts.items():
        print(f"# {name}: {value}")
    for advice in preset.advice():
        say(f"note:  {advice}")
