"""Checkpoints: folders of safetensors files and one JSON record, written whole or not at all.

    step-00001000/  ema.safetensors  task.safetensors  optimizer.safetensors  checkpoint.json

checkpoint.json holds what the caller records (step, preset, class names, ...), the format number and a SHA-256 of each file. The
record also travels in the header of ema.safetensors, so that this one file can be sampled from. Nothing is ever unpickled.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffcli.config import RunFailed, UserError

FORMAT = 1
RECORD = "checkpoint.json"
HEADER = "diffcli"  # key of the record in the metadata of ema.safetensors
PARTS = ("ema", "task", "optimizer")
PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin")

Tensors = Mapping[str, Tensor]


def step_dir(root: Path, step: int) -> Path:
    """Where the checkpoint of `step` stands below the folder `root` of checkpoints."""
    return root / f"step-{step:08d}"


def save(root: Path, step: int, parts: Mapping[str, Tensors], record: Mapping[str, Any]) -> Path:
    """Writes root/step-NNNNNNNN under a temporary name, flushes it to disk and renames it. Returns its path.

    parts: tensors of each of PARTS; record: JSON values. Where the disk fails, nothing of it stays and RunFailed names the
    newest checkpoint that does.
    """
    final, partial = step_dir(root, step), root / f".partial-step-{step:08d}"
    body = {"format": FORMAT, "step": step, **record}
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        digests = {}
        for name in PARTS:
            path = partial / f"{name}.safetensors"
            header = {HEADER: json.dumps(body, sort_keys=True)} if name == "ema" else {}
            save_file(_plain(parts[name]), path, metadata=header)
            digests[path.name] = sha256(path)
        (partial / RECORD).write_text(json.dumps(body | {"sha256": digests}, indent=1, sort_keys=True) + "\n")
        for path in [*partial.iterdir(), partial]:
            _flush(path)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _flush(root)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        kept = checkpoints(root)
        usable = f"{kept[-1]} stays usable" if kept else "no earlier checkpoint exists"
        raise RunFailed(
            f"{final}: cannot write the checkpoint of step {step} ({_reason(error)}); {usable}",
            f"free some disk space or mend the permissions of {root}, then resume the run",
        ) from error
    return final


def prune(root: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints; a removed one vanishes by a rename first, so it is never half there."""
    for path in checkpoints(root)[:-keep]:
        gone = root / f".removed-{path.name}"
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def checkpoints(root: Path) -> list[Path]:
    """The checkpoint folders below `root`, oldest first."""
    return sorted(p for p in root.glob("step-????????") if (p / RECORD).is_file())


def locate(path: Path) -> Path:
    """The checkpoint that PATH means: a run directory (its newest), one checkpoint folder, or an exported .safetensors file."""
    if not path.exists():
        raise UserError(
            f"{path}: no such checkpoint", "give a run directory, a checkpoint folder or a .safetensors file"
        )
    if path.is_file():
        return _refuse_foreign(path)
    if (path / RECORD).is_file():
        return path
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found = checkpoints(root)
    if not found:
        raise UserError(
            f"{path}: holds no whole checkpoint",
            "give the run directory that `diffcli train` printed, or wait for its first checkpoint (train.every.save)",
        )
    return found[-1]


def read_record(path: Path) -> dict[str, Any]:
    """The JSON record of a located checkpoint. Raises UserError for a damaged one or one of another format."""
    try:
        if path.is_file():
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            if HEADER not in metadata:
                raise UserError(
                    f"{path}: is a safetensors file, but not one of diffcli's",
                    "give the ema.safetensors of a checkpoint",
                )
            record = json.loads(metadata[HEADER])
        else:
            record = json.loads((path / RECORD).read_text())
        if isinstance(record, dict) and record.get("format") == FORMAT and not isinstance(record.get("step"), int):
            raise ValueError("it has no step")
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as a checkpoint ({_reason(error)})", _another(path)) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else None
        raise UserError(
            f"{path}: checkpoint format is {found!r}, this diffcli reads format {FORMAT}",
            f"use the diffcli version that wrote it ({record.get('version') if isinstance(record, dict) else 'unknown'})",
        )
    return record


def read_part(path: Path, part: str, record: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of one of PARTS, on the CPU, checked against the digest in the record."""
    if path.is_file() and part != "ema":
        raise UserError(
            f"{path}: an exported file has no '{part}' weights", "give the checkpoint folder or the run directory"
        )
    file = path if path.is_file() else path / f"{part}.safetensors"
    expected = record.get("sha256", {}).get(file.name)
    try:
        if path.is_dir() and sha256(file) != expected:
            raise UserError(f"{file}: does not match the digest in {RECORD}: truncated or changed", _another(path))
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read ({_reason(error)})", _another(path)) from error


def is_whole(path: Path) -> bool:
    """Every file is there and matches its digest."""
    try:
        digests = read_record(path)["sha256"]
        return all(sha256(path / f"{part}.safetensors") == digests[f"{part}.safetensors"] for part in PARTS)
    except (UserError, OSError, KeyError):
        return False


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _another(path: Path) -> str:
    whole = [p for p in checkpoints(path.parent) if p != path and is_whole(p)]
    if whole:
        return f"use an older checkpoint that is whole: {whole[-1]} (resume: --from {int(whole[-1].name[5:])})"
    return "no other whole checkpoint stands beside it; copy the folder again from where it was written"


def _refuse_foreign(path: Path) -> Path:
    with path.open("rb") as file:
        start = file.read(2)
    if path.suffix in PICKLES or start in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise UserError(
            f"{path}: is a pickle or a zip, not a diffcli checkpoint; pickles can run code and are never loaded",
            "give a run directory, a checkpoint folder or an ema.safetensors file",
        )
    return path


def _plain(tensors: Tensors) -> dict[str, Tensor]:
    """Contiguous in the default order and on the CPU: the file does not depend on device or memory format."""
    return {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error).splitlines()[0]
