"""The folder of a prepared set: whether one is finished there, and whether one can be written there. Imports nothing heavy."""

from pathlib import Path

from diffcli.config import UserError
from diffcli.data.labels_file import is_labels_file
from diffcli.data.leftovers import REQUEST, WORK

DATASET = "dataset.json"


def is_prepared(path: Path) -> bool:
    """Whether `diffcli prep-data` finished a set in this folder."""
    return (file := path.expanduser() / DATASET).is_file() and not is_labels_file(file)


def check_own(out: Path) -> None:
    """Raises UserError if --out holds other files than a prepared set or part of one."""
    if out.is_file():
        raise UserError(f"--out is '{out}', which is a file", "give a folder that is new or empty")
    work = out / WORK
    begun = work.is_dir() and ((work / REQUEST).is_file() or not any(out.glob("[!.]*")))  # else it is a stranger's
    if out.is_dir() and not is_prepared(out) and not begun:
        other = next((path.name for path in sorted(out.iterdir()) if not path.name.startswith(".")), None)
        if other:
            raise UserError(
                f"--out is '{out}', which holds other files ('{other}')", "give a folder that is new or empty"
            )
