"""Whether a run can begin or go on in a directory. Imports nothing heavy."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffcli.config import UserError, quoted
from diffcli.config_errors.schema_paths import value_at
from diffcli.lookup.checkpoint_files import checkpoints
from diffcli.lookup.preset_files import read
from diffcli.lookup.raw_preset import PRESET, overridden


def check_new(run: Path) -> None:
    """Raises UserError where --run-dir is a file, or holds a run that can be resumed."""
    if run.is_file():
        raise unwritable(run, "File exists")
    found = checkpoints(run / "checkpoints")
    if found:
        raise UserError(
            f"--run-dir {run}: already holds checkpoints up to {found[-1].name}",
            f"go on with `diffcli resume {quoted(run)}`, or give another --run-dir",
        )


def unwritable(run: Path, reason: str | None) -> UserError:
    """The error for a directory that a run cannot be written into."""
    return UserError(f"--run-dir {run}: cannot be written ({reason})", "give a folder of yours with --run-dir")


def nothing_to_do(run: Path, step: int, steps: int) -> UserError:
    """The error for a run that is at its last step."""
    return UserError(
        f"{run}: is at step {step} of {steps}: there is nothing left to do",
        f"give more: diffcli resume {quoted(run)} --steps {step * 2}",
    )


def check_to_do(run: Path, step: int, preset: Mapping[str, Any], settings: Sequence[str]) -> None:
    """Raises UserError where a run is at its last step, as far as its files tell. preset: raw, as its checkpoint recorded it.

    --set and --steps say how many steps there are, and else RUN/preset.yaml, if it was edited.
    """
    trees = [overridden(preset, settings, PRESET)[0]]
    if not any(item.startswith("train.steps=") for item in settings) and (run / "preset.yaml").is_file():
        trees.append(read(run / "preset.yaml"))
    ends = [value_at(tree, ["train", "steps"]) for tree in trees]
    if all(type(end) is int and step >= end for end in ends):
        raise nothing_to_do(run, step, max(ends))
