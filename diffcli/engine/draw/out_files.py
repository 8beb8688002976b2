"""What --out names: a file of some kind, or a folder. Imports nothing heavy, so that a mistake is reported at once."""

import os
from pathlib import Path

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
    kind = kind_of(path)
    folder = folder_allowed and not kind
    if not folder and kind not in suffixes:
        kinds = ", ".join(suffixes) + (" or a folder" if folder_allowed else "")
        raise UserError(f"--out {path}: cannot write '{kind or 'a folder'}'", f"end it in one of {kinds}")
    parent = path if folder else path.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        probe = parent / f".{path.name}.{os.getpid()}.probe"  # every worker of --nproc runs this
        probe.touch()
        probe.unlink()
        if path.is_dir() and not folder:
            raise IsADirectoryError(21, "is a folder")
    except OSError as error:
        raise UserError(
            f"--out {path}: cannot be written ({error.strerror})", "give a place that you may write to"
        ) from error
