"""The dependents of a checkpoint: runs that name it and do not hold its weights, in a list beside its record.

    step-00001000/needed-by.json    [{"role": "train.lora", "path": "/.../runs/digits-lora", "sha256": "..."}]

role: the key of the dependent's preset that names the checkpoint. path: of the dependent. sha256: the digest by which its records
name the weights, null where they name the place alone. One that was renamed, or moved together with the checkpoint, is found by
the digest. One that is not found may have been moved elsewhere, so that the checkpoint stays until its list is deleted.
"""

import json
import os
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from diffcli.lookup.checkpoint_files import RECORD, SUPERSEDED, WEIGHTS, checkpoints

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FILE = "needed-by.json"


class Dependent(NamedTuple):
    """A run, or a checkpoint made of one, that needs another checkpoint; see the module."""

    role: str
    path: Path
    sha256: str | None = None

    def __str__(self) -> str:
        return f"{self.path} ({self.role})"


def holder(path: Path) -> Path | None:
    """The checkpoint folder that a path is, or whose file it is; None of a file by itself and of a run."""
    folder = path.parent if path.suffix == WEIGHTS else path
    return folder if (folder / RECORD).is_file() else None


def is_there(path: Path) -> bool:
    """Whether a path is a checkpoint folder or a file."""
    return path.is_file() or holder(path) is not None


def listed_dependents(folder: Path) -> list[Dependent]:
    """All that a checkpoint's list names, those that are gone included; none where there is no list, or a damaged one."""
    try:
        found = json.loads((folder / FILE).read_bytes())
        return [Dependent(each["role"], Path(each["path"]), each["sha256"]) for each in found]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def dependents(folder: Path) -> list[Dependent]:
    """Those that need a checkpoint now, with the places where they lie."""
    known = listed_dependents(folder)
    found = ((each, _present(each, folder, {one.path for one in known})) for each in known)
    return list(dict.fromkeys(each._replace(path=place) for each, place in found if place is not None))


def is_marked(folder: Path) -> bool:
    """Whether a checkpoint has a list: it is not removed, also if none of those in it is found, who may have been moved."""
    return (folder / FILE).exists()


def needing(folder: Path) -> str:
    """Those in the list of a checkpoint, for notes; where none of them is found, what to do if they are gone for good."""
    present = dependents(folder)
    if present:
        return f"needed by {', '.join(map(str, present))}"
    named = ", ".join(map(str, listed_dependents(folder)))
    known = f"needed by {named}, not found there any more" if named else f"{FILE} in it cannot be read"
    return f"{known}; delete {folder / FILE} if nothing needs it"


def add_dependent(folder: Path, new: Dependent) -> None:
    """Adds one to the list of a checkpoint, once; others may do so at the same time. Raises OSError."""
    with _alone(folder):
        known = listed_dependents(folder)
        if new in known:
            return
        kept = [each for each in known if (each.role, each.path) != (new.role, new.path)]
        text = json.dumps([{**each._asdict(), "path": str(each.path)} for each in [*kept, new]], indent=1)
        partial = folder / f".{FILE}.{os.getpid()}"
        try:
            partial.write_text(text + "\n", encoding="utf-8")
            partial.replace(folder / FILE)
        finally:
            partial.unlink(missing_ok=True)


def same_weights(place: Path, sha256: str) -> list[Path]:
    """Checkpoints near a place whose lists name the digest: it was set aside in its run, or the run was renamed."""
    root = _root(place)
    near = [*root.glob(f"*/{FILE}"), *root.glob(f"{SUPERSEDED}/*/{FILE}")]
    near += [
        found
        for inner in ("*", f"{SUPERSEDED}/*")
        for found in _run(place).parent.glob(f"*/checkpoints/{inner}/{FILE}")
    ]
    found = [path.parent for path in near if not path.parent.name.startswith(".")]  # which is being written or removed
    return [each for each in dict.fromkeys(found) if any(one.sha256 == sha256 for one in listed_dependents(each))]


def beside(place: Path) -> Iterator[Path]:
    """The checkpoints and weight files in the folder of a place, those that were set aside there included."""
    root = _root(place)
    for path in [*sorted(root.glob("*")), *sorted(root.glob(f"{SUPERSEDED}/*"))]:
        if not path.name.startswith(".") and ((path / RECORD).is_file() or (path.suffix == WEIGHTS and path.is_file())):
            yield path


def _root(place: Path) -> Path:
    """The folder of a checkpoint; that of the run where it was set aside."""
    return place.parent.parent if place.parent.name == SUPERSEDED else place.parent


def _run(place: Path) -> Path:
    """The run that a checkpoint belongs to; of one by itself its own folder."""
    root = _root(place)
    return root.parent if root.name == "checkpoints" else place


def _present(dependent: Dependent, folder: Path, others: Set[Path]) -> Path | None:
    """Where a dependent of a checkpoint lies now; None where it is gone. others: the places of those that are known already."""
    if dependent.path.exists() and _names(dependent.path, dependent.sha256, unsaved=True):
        return dependent.path
    if dependent.sha256 is None:
        return None
    places = dict.fromkeys([dependent.path.parent, _run(folder.absolute()).parent])
    near = (each for place in places for each in sorted(place.glob("*")) if each not in others)
    return next((each for each in near if _names(each, dependent.sha256, unsaved=False)), None)


def _names(path: Path, sha256: str | None, unsaved: bool) -> bool:
    """Whether the newest record of a run or checkpoint names a digest. unsaved: the answer for a run without a record."""
    kept = [path] if (path / RECORD).is_file() else checkpoints(path / "checkpoints")
    if sha256 is None or not kept:
        return unsaved
    try:
        record: Any = json.loads((kept[-1] / RECORD).read_bytes())
        return any(isinstance(each, dict) and each.get("sha256") == sha256 for each in record.values())
    except (OSError, ValueError, AttributeError, RecursionError):
        return True  # what cannot be read may need it


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps other processes from changing the list, where the system has such locks."""
    descriptor = None if fcntl is None else os.open(folder, os.O_RDONLY)
    try:
        if descriptor is not None:
            with suppress(OSError):  # of a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
