"""What --out names: a file of some kind, or a folder; it is written whole or not at all.

Imports nothing heavy, so that a mistake is answered at once.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from diffcli.config import UserError

STILLS = (".png", ".npz")
ANIMATIONS = (".gif", ".mp4", ".webp")


def kind_of(path: Path) -> str:
    """The suffix of a file in small letters, ".png" of `A.PNG`; "" where the path names a folder, as `cfg_2.5` and `v1.0` do.

    No kind of file begins with a digit, and a folder that is there is one whatever its name, unless it has that of a file.
    """
    suffix = path.suffix.lower()
    folder = suffix[1:2].isdigit() or (suffix not in STILLS + ANIMATIONS and path.is_dir())
    return "" if folder else suffix


def check_output(path: Path, suffixes: tuple[str, ...], folder_allowed: bool) -> None:
    """Raises UserError, before any work, where `path` cannot become a file of one of these kinds (or a folder)."""
    if not path.name:
        raise UserError(f"--out {path}: names no file", "give a name, for example --out samples.png")
    kind = kind_of(path)
    folder = folder_allowed and not kind
    if not folder and kind not in suffixes:
        kinds = ", ".join(suffixes) + (" or a folder" if folder_allowed else "")
        raise UserError(f"--out {path}: cannot write '{kind or 'a folder'}'", f"end it in one of {kinds}")
    missing = missing_folders(path if folder else path.parent)
    place = missing[0].parent if missing else path if folder else path.parent
    longest = max([path.name, *(each.name for each in missing)], key=len)  # a name may be too long for the file system
    try:
        probe = place / f".{longest}.{os.getpid()}.probe"  # every worker of --nproc runs this
        probe.touch()
        probe.unlink()
        if path.is_dir() and not folder:
            raise IsADirectoryError(21, "is a folder")
    except OSError as error:
        raise UserError(
            f"--out {path}: cannot be written ({error.strerror})", "give a place that you may write to"
        ) from error


def missing_folders(folder: Path) -> list[Path]:
    """The folders that are to be made for this one to be there, the outermost first."""
    return [each for each in [*reversed(folder.parents), folder] if not os.path.lexists(each)]


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Makes a folder and those around it. After an error those that are new and empty are gone again."""
    new = missing_folders(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for each in reversed(new):
            with suppress(OSError):  # others may have put files there
                each.rmdir()
        raise


def check_arrangement(path: Path, kinds: Sequence[str], layout: Mapping[str, Any]) -> None:
    """Raises UserError, before any work, for layout options if the output is no file of these kinds.

    layout: the options by their flags; None and False were not given.
    """
    for flag, value in layout.items():
        if value is not None and value is not False and kind_of(path) not in kinds:
            shown = flag if value is True else f"{flag} {value}"
            raise UserError(
                f"{shown} with --out {path}: only {' and '.join(kinds)} are laid out; elsewhere images stay as they are",
                f"end --out in {kinds[0]}, or leave {flag} out",
            )


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path of the same kind, which becomes `path` once all is written: an earlier file is never half replaced."""
    partial = path.with_name(f".{path.stem}.{os.getpid()}{kind_of(path)}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def all_or_none(path: Path) -> Iterator[list[Path]]:
    """A list for the files that are written for `--out path`, each before it is: where one cannot be, all of them are removed.

    Makes the folders, and removes those of them that stay empty. Raises UserError that names `path` in place of OSError, as of a
    full disk.
    """
    folder = path.parent if kind_of(path) else path
    begun: list[Path] = []
    try:
        with made(folder):
            try:
                yield begun
            except OSError:
                for file in begun:
                    file.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise UserError(
            f"--out {path}: cannot be written ({error.strerror or error})", "free some space, or give another place"
        ) from error
