"""Paths that flags name: whether there is something to read, and room to write. Imports nothing heavy."""

from collections.abc import Iterable
from pathlib import Path

from diffcli.config import UserError, did_you_mean
from diffcli.lookup.checkpoint_files import PRESETS, locate

EXTRACTORS = ("inception", "r3d_18")  # names that --features takes beside paths
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"  # the hex digits begin its SHA-256
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
DESCRIBED = "give a run, a checkpoint, an export or a prepared set"


def unreadable(flag: str, path: object, reason: str | None) -> UserError:
    """The error for a picture that a flag names and that cannot be opened."""
    return UserError(f"{flag} {path}: cannot be read ({reason})", "give the path of an image file")


def check_pictures(given: Iterable[tuple[str, Path]]) -> None:
    """Raises UserError where a flag names a picture, or a folder of some, that is not there."""
    for flag, path in given:
        if not path.exists():
            raise unreadable(flag, path, "No such file or directory")


def check_described(path: Path) -> None:
    """Raises UserError where nothing is at the path that `info` describes, or a preset."""
    if not path.exists():
        raise UserError(f"{path}: does not exist", DESCRIBED)
    if path.is_file() and path.suffix in PRESETS:
        locate(path)


def check_features(features: str | None) -> None:
    """Raises UserError where --features is no name of an extractor and no path."""
    if features is None or features.lower() in EXTRACTORS or Path(features).expanduser().exists():
        return
    raise UserError(
        f"--features {features}: is neither an extractor nor a run",
        did_you_mean(features, EXTRACTORS)
        + ", or give the run directory of a classifier trained by diffcli, a TorchScript file of an I3D or the folder of a CLIP",
    )


def check_weights(path: Path | None, features: str | None = None) -> None:
    """Raises UserError where --weights is given for features that bring their own, or is no file."""
    if path is None:
        return
    if features is not None and features.lower() not in EXTRACTORS:
        raise UserError(f"--weights {path} given with --features {features}, which brings its own", "drop --weights")
    if not path.is_file():
        first = f"download {INCEPTION_URL} and give that file" if features in (None, "inception") else "give their file"
        hint = f"{first}, or score with --features RUN, a classifier trained by diffcli"
        raise UserError(f"--weights {path} is not a file", hint)


def check_empty(out: Path) -> None:
    """Raises UserError if --out already exists and is no empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: is not empty", "give a new or empty folder")
