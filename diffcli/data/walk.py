"""The files of a folder that belong to a data set, the same for `train`, `prep-data` and `fid`.

Links to files and folders are followed, except a link to a folder that contains it, which would never end. Names that begin
with a dot, folders of systems and viewers (IGNORED), what diffcli wrote (runs below it, sets that it is
preparing, grids of samples beside their records), and pipes, sockets and devices are ignored.
"""

import json
import os
from collections import Counter
from pathlib import Path

from diffcli.data.leftovers import WORK
from diffcli.data.lock import LOCK

IGNORED = frozenset(
    {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
    | {"Thumbs.db", "ehthumbs.db", "desktop.ini"}
)
NO_FILE = "pipes, sockets or devices"
RUN = "folders of runs"  # those that `train` writes: their previews are no data
BEGUN_SET = "folders of sets that prep-data has not finished"
GRID = "grids of samples"  # with records beside them
LARGEST_RECORD = 1 << 20  # bytes


class Walk:
    """The content of a folder. files: by path below it; empty: folders without a file, without hidden ones.

    passed: the names of ignored files, `.ipynb_checkpoints`, RUN, BEGUN_SET, GRID or NO_FILE, with their number. Raises OSError
    for an unreadable folder.
    """

    def __init__(self, root: Path) -> None:
        self.files: dict[str, Path] = {}
        self.empty: list[str] = []
        self.passed: Counter[str] = Counter()
        self._enter(root, "", frozenset())

    def _enter(self, folder: Path, below: str, around: frozenset[str]) -> int:
        """Adds the content of a folder; returns its number of files and runs. around: the real paths of the folders around it."""
        real = os.path.realpath(folder)
        if real in around:
            return 0
        before, runs = len(self.files), 0
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        grids = grids_among(folder, {entry.name for entry in found if not entry.is_dir()})
        self.passed += Counter({GRID: len(grids)})
        records = {f"{name}.json" for name in grids}
        for entry in (entry for entry in found if entry.name not in grids | records):
            path = below + entry.name
            if is_ignored(entry.name):
                self.passed[shown_ignored(entry.name)] += 1
            elif entry.is_dir():
                if is_run(folder / entry.name):
                    runs += 1
                    self.passed[BEGUN_SET if (folder / entry.name / WORK).is_dir() else RUN] += 1
                elif not self._enter(folder / entry.name, f"{path}/", around | {real}):
                    self.empty.append(path)
            elif entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path)):  # reading it says so
                self.files[path] = folder / entry.name
            else:
                self.passed[NO_FILE] += 1
        return len(self.files) - before + runs


def is_run(folder: Path) -> bool:
    """Whether `train` has written a folder, or diffcli is writing into it."""
    return (folder / LOCK).is_file() or ((folder / "preset.yaml").is_file() and (folder / "checkpoints").is_dir())


def grids_among(folder: Path, names: set[str]) -> set[str]:
    """The files of a folder that, as the records beside them say, `sample` or `gif` made of several images."""
    return {name for name in names if f"{name}.json" in names and _is_record_of_several(folder / f"{name}.json")}


def _is_record_of_several(path: Path) -> bool:
    try:
        told = json.loads(path.read_text("utf-8")) if path.stat().st_size <= LARGEST_RECORD else None
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and {"checkpoint", "weights_sha256"} <= told.keys() and told.get("n") != 1


def is_ignored(part: str) -> bool:
    """Whether a file or folder of this name is ignored."""
    return part.startswith(".") or part in IGNORED


def shown_ignored(part: str) -> str:
    """The name of an ignored file, one name for all `._NAME` of macOS."""
    return "._*" if part.startswith("._") else part


def ignored_part(name: str) -> str | None:
    """The first ignored part of a path in an archive; None if there is none."""
    return next((part for part in name.split("/") if is_ignored(part)), None)
