"""Checkpoints: folders of safetensors files and one JSON record, written whole or not at all.

    step-00001000/  ema.safetensors  task.safetensors  optimizer.safetensors  checkpoint.json

checkpoint.json holds what the caller records (step, preset, class names, ...), the format number and a SHA-256 of each file. The
record also travels in the header of ema.safetensors, so that this one file can be sampled from. Nothing is ever unpickled.
"""

import errno
import json
import os
import re
import shutil
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from diffcli import tensor_file
from diffcli.config import UserError
from diffcli.digest import sha256, stands_in
from diffcli.lookup.checkpoint_files import RECORD, SUPERSEDED, checkpoints, step_dir
from diffcli.lookup.checkpoint_files import locate as locate
from diffcli.lookup.dependents import is_marked

FORMAT = 1
HEADER = "diffcli"  # key of the record in the metadata of ema.safetensors
PARTS = ("ema", "task", "optimizer")

Tensors = Mapping[str, Tensor]


def save(
    root: Path, step: int, parts: Mapping[str, Tensors], record: Mapping[str, Any], name: str | None = None
) -> Path:
    """Writes root/step-NNNNNNNN, or root/NAME, under a temporary name, flushes it to disk and renames it. Returns its path.

    parts: tensors of each of PARTS; record: JSON values. If the disk fails, nothing is left behind and UserError names
    the newest usable checkpoint.
    """
    final = step_dir(root, step) if name is None else root / name
    try:
        _replace(final, {part: parts[part] for part in PARTS}, {"format": FORMAT, "step": step, **record})
    except (OSError, SafetensorError) as error:
        kept = checkpoints(root)
        usable = f"{kept[-1]} stays usable" if kept else "no earlier checkpoint exists"
        raise UserError(
            f"{final}: cannot write the checkpoint of step {step} ({_reason(error)}); {usable}",
            f"free some disk space or mend the permissions of {root}, then "
            + ("resume the run" if kept else "train again: nothing was saved"),
        ) from error
    return final


def save_average(folder: Path, weights: Tensors, record: Mapping[str, Any]) -> Path:
    """Writes a checkpoint for sampling alone: `folder` with ema.safetensors and checkpoint.json. Returns its path.

    record: that of a checkpoint, with its step. A folder that is no checkpoint is never replaced.
    """
    if folder.exists() and not (folder / RECORD).is_file():
        raise UserError(f"{folder}: already exists and is no checkpoint", "give another folder with --out")
    try:
        _replace(folder, {"ema": weights}, {**_plain_record(record), "format": FORMAT})
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder}: cannot be written ({_reason(error)})", f"free some disk space or mend {folder.parent}"
        ) from error
    return folder


def export(file: Path, weights: Tensors, record: Mapping[str, Any]) -> Path:
    """Writes weights and their record as one .safetensors file to sample from; on failure no file is left."""
    partial = _own(file.parent, "partial", file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _sweep(file.parent)
        save_file(_plain(weights), partial, metadata=_header_of({**_plain_record(record), "format": FORMAT}))
        _flush(partial)
        partial.replace(file)
        _flush(file.parent)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            partial.unlink()
        raise UserError(
            f"{file}: cannot be written ({_reason(error)})",
            f"free some disk space or mend the permissions of {file.parent}, then resume the run",
        ) from error
    return file


def prune(root: Path, keep: int, forever: int = 0) -> list[Path]:
    """Removes all but the newest `keep` checkpoints and those whose step is a multiple of `forever`, if that is not 0.

    Those that are marked as needed stay, and are not counted. Returns the ones that stay for this reason alone.
    A checkpoint is renamed before its files are deleted, so no reader finds half of one.
    """
    found = checkpoints(root)
    needed = [path for path in found if is_marked(path)]
    free = [path for path in found if path not in needed]
    old = [*free[:-keep], *(each for each in found[:-keep] if each in needed)]
    return [path for path in old if (not forever or int(path.name[5:]) % forever) and not _discard(path)]


def set_aside(path: Path, name: str | None = None) -> Path:
    """Moves a checkpoint or a file to `superseded` in its folder, as `name` or its own, numbered if taken. Returns its path."""
    wanted = kept = path.parent / SUPERSEDED / (name or path.name)
    kept.parent.mkdir(exist_ok=True)
    number = 0
    while kept.exists():
        number += 1
        kept = wanted.with_stem(f"{wanted.stem}-{number}")
    return path.rename(kept)


def read_record(path: Path) -> dict[str, Any]:
    """The JSON record of a located checkpoint. Raises UserError for a damaged one or one of another format."""
    try:
        record = _header(path) if path.is_file() else json.loads((path / RECORD).read_text())
    except (OSError, ValueError, RecursionError) as error:
        problem = f"{path}: cannot be read as a checkpoint ({_reason(error)})"
        raise UserError(problem, stands_in(path) or _another(path)) from error
    if record is None and path.is_file():
        raise UserError(
            f"{path}: is a safetensors file, but not one of diffcli's", "give the ema.safetensors of a checkpoint"
        )
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else None
        raise UserError(
            f"{path}: checkpoint format is {found!r}, this diffcli reads format {FORMAT}",
            f"use the diffcli version that wrote it ({record.get('version') if isinstance(record, dict) else 'unknown'})",
        )
    if path.is_dir() and not _record_agrees(path, record):
        raise UserError(f"{path / RECORD}: does not match the record in ema.safetensors: changed", _another(path))
    return record


def read_part(path: Path, part: str, record: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of one of PARTS, on the CPU, checked against the digest in the record."""
    return read_contents(path, part, record).tensors


def read_contents(path: Path, part: str, record: Mapping[str, Any]) -> tensor_file.FileContents:
    """`read_part` and the SHA-256 of the file, which is read once."""
    if path.is_file() and part != "ema":
        raise UserError(
            f"{path}: an exported file has no '{part}' weights", "give the checkpoint folder or the run directory"
        )
    file = path if path.is_file() else path / f"{part}.safetensors"
    wanted = _digests(record).get(file.name) if path.is_dir() else None
    try:
        found = tensor_file.read(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({_reason(error)})", _another(path)) from error
    except ValueError as error:  # a file without its folder has no digest to compare
        if path.is_dir():
            raise _changed(file, path) from error
        raise UserError(f"{file}: cannot be read ({_reason(error)})", _another(path)) from error
    if path.is_dir() and found.sha256 != wanted:
        raise _changed(file, path)
    return found


def _changed(file: Path, path: Path) -> UserError:
    return UserError(
        f"{file}: does not match the digest in {RECORD}: {stands_in(file) or 'truncated or changed'}", _another(path)
    )


def holds(part: str, path: Path, record: Mapping[str, Any]) -> bool:
    """Whether a located checkpoint has this one of PARTS; an exported file and an average of a run have `ema` alone."""
    return part == "ema" if path.is_file() else f"{part}.safetensors" in _digests(record)


def is_whole(path: Path) -> bool:
    """Whether every file exists, matches its digest, and has this format."""
    try:
        record = json.loads((path / RECORD).read_text())
        files = {f"{part}.safetensors": path / f"{part}.safetensors" for part in PARTS}
        return (
            isinstance(record, dict)
            and record.get("format") == FORMAT
            and _record_agrees(path, record)
            and {name: sha256(file) for name, file in files.items()} == _digests(record)
        )
    except (OSError, ValueError):
        return False


def _another(path: Path) -> str:
    whole = [p for p in checkpoints(path.parent) if p != path and is_whole(p)]
    if whole:
        return f"use an older checkpoint that is whole: {whole[-1]} (resume: --from {int(whole[-1].name[5:])})"
    return "no other whole checkpoint is beside it; copy the folder again from where it was written"


def _header(file: Path) -> Any:
    """The record in the header of a safetensors file; None if diffcli did not write it."""
    text = tensor_file.metadata(file).get(HEADER)
    return None if text is None else json.loads(text)


def _record_agrees(path: Path, record: Mapping[str, Any]) -> bool:
    """Whether checkpoint.json, which has no digest of its own, says what the digested ema.safetensors says."""
    try:
        inside = _header(path / "ema.safetensors")
    except (OSError, ValueError, RecursionError):
        return True  # that file is damaged, which its reader reports
    return inside == {key: value for key, value in record.items() if key != "sha256"}


def _digests(record: Mapping[str, Any]) -> dict[str, str]:
    found = record.get("sha256")
    return found if isinstance(found, dict) else {}


def _plain_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without what belongs to the files it came with."""
    return {key: value for key, value in record.items() if key != "sha256"}


def _header_of(body: Mapping[str, Any]) -> dict[str, str]:
    return {HEADER: json.dumps(body, sort_keys=True)}


def _replace(final: Path, parts: Mapping[str, Tensors], body: Mapping[str, Any]) -> None:
    """Writes a checkpoint under a temporary name beside `final`, flushes it to disk and renames it; on failure nothing stays."""
    root = final.parent
    partial = _own(root, "partial", final)
    try:
        _sweep(root)
        partial.mkdir(parents=True)
        _write(partial, parts, body)
        _put(partial, final)
        _flush(root)
    except (OSError, SafetensorError):
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write(folder: Path, parts: Mapping[str, Tensors], body: Mapping[str, Any]) -> None:
    """All files of a checkpoint, flushed to disk."""
    digests = {}
    for name, tensors in parts.items():
        path = folder / f"{name}.safetensors"
        save_file(_plain(tensors), path, metadata=_header_of(body) if name == "ema" else {})
        digests[path.name] = sha256(path)
    (folder / RECORD).write_text(json.dumps({**body, "sha256": digests}, indent=1, sort_keys=True) + "\n")
    for path in [*folder.iterdir(), folder]:
        _flush(path)


def _plain(tensors: Tensors) -> dict[str, Tensor]:
    """Contiguous in the default order and on the CPU: the file does not depend on device or memory format."""
    return {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}


def _own(root: Path, purpose: str, path: Path) -> Path:
    """A hidden name that is unique among all processes and hosts, so two writers never share a half-written folder."""
    return root / f".{purpose}-{path.name}.{socket.gethostname()}.{os.getpid()}"


def _put(partial: Path, final: Path) -> None:
    """Renames `partial` to `final` and replaces what another writer has put there; what others need is set aside."""
    while True:
        if not _discard(final):
            set_aside(final)
        try:
            partial.rename(final)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        else:
            return


def _discard(path: Path) -> bool:
    """Renames a folder, then deletes it, so no reader finds half of it; does nothing if it does not exist.

    Returns whether it is gone: one that is marked as needed stays.
    """
    if is_marked(path):
        return False
    gone = _own(path.parent, "removed", path)
    shutil.rmtree(gone, ignore_errors=True)
    with suppress(FileNotFoundError):
        path.rename(gone)
    if is_marked(gone):  # by a run that has begun since
        gone.rename(path)
        return False
    shutil.rmtree(gone, ignore_errors=True)
    return True


def _sweep(root: Path) -> None:
    """Removes unfinished folders of processes of this host that died.

    Only names that `_own` gives on this host are touched: a process of another host may still be writing, and other names
    belong to other programs.
    """
    ours = re.compile(rf"\.(?:partial|removed)-.+\.{re.escape(socket.gethostname())}\.(\d+)")
    for path in [*root.glob(".partial-*"), *root.glob(".removed-*")]:
        found = ours.fullmatch(path.name)
        if found and (int(found[1]) == os.getpid() or not _runs(found[1])):
            shutil.rmtree(path, ignore_errors=True)
            if path.is_file():
                path.unlink(missing_ok=True)


def _runs(pid: str) -> bool:
    """Whether a process of this machine has the id."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error).splitlines()[0]
