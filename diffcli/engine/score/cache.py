"""The cache of references: summaries of their features, by the name of the extractor. An unreadable file is made again."""

import hashlib
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from diffcli.metrics.keepers import CAP, Keep
from diffcli.metrics.summary import Summary

CACHE_FORMAT = 1


def cache_folder() -> Path:
    """DIFFCLI_CACHE, else XDG_CACHE_HOME/diffcli, else ~/.cache/diffcli."""
    if own := os.environ.get("DIFFCLI_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffcli"


def cache_file(fingerprint: str | None, name: str, layer: str, folder: Path) -> Path | None:
    """Where the features of a side are kept, of an extractor of this name and layer. None: nothing identifies the side."""
    if fingerprint is None:
        return None
    key = f"{CACHE_FORMAT}\0{CAP}\0{name}\0{layer}\0{fingerprint}"
    return folder / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"


def read_cache(path: Path, keeps: Collection[Keep], dim: int) -> Summary | None:
    """The summary of features (n, dim) in a file; None if it lacks one of these parts or is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            summary = Summary.from_arrays({name: file[name] for name in file.files})
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    fits = summary.given is None or len(summary.given.mu) == dim
    return summary if fits and set(keeps) <= summary.keeps and summary.n >= 2 else None


def write_cache(path: Path, summary: Summary) -> list[str]:
    """Writes a file whole or not at all; returns a warning if the folder cannot be written."""
    arrays: dict[str, Any] = dict(summary.arrays())
    return write_whole(path, lambda file: np.savez(file, **arrays), "the reference")


def write_whole(path: Path, write: Callable[[BinaryIO], object], what: str) -> list[str]:
    """Writes a file whole or not at all, and leaves no part of it; returns a warning about `what` if that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
            partial = Path(file.name)
        try:
            with partial.open("wb") as opened:
                write(opened)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        return [f"{what} could not be cached in {path.parent} ({error.strerror or error})"]
    return []
