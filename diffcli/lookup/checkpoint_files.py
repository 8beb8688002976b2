"""Finds checkpoints and the one that a path means; reads no weights and imports no torch."""

import json
from pathlib import Path
from typing import Any

from diffcli.config import UserError, quoted

RECORD = "checkpoint.json"
WEIGHTS = ".safetensors"
SUPERSEDED = "superseded"  # folder for what an earlier course of a run has left
ANY = "give a run directory, a checkpoint folder or a .safetensors file"
SHOWN = 8  # runs that a hint names
PRESETS = (".yaml", ".yml")
PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin")


def step_dir(root: Path, step: int) -> Path:
    """The path of the checkpoint of `step` below the folder `root` of checkpoints."""
    return root / f"step-{step:08d}"


def checkpoints(root: Path) -> list[Path]:
    """The checkpoint folders below `root`, oldest first."""
    found = [p for p in root.glob("step-*") if p.name[5:].isdecimal() and (p / RECORD).is_file()]
    return sorted(found, key=lambda p: int(p.name[5:]))


def locate(path: Path) -> Path:
    """The checkpoint that PATH means: a run directory (its newest), one checkpoint folder, or an exported .safetensors file."""
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint", _in_runs(path) or ANY)
    if path.is_file():
        return _refuse_foreign(path)
    if (path / RECORD).is_file():
        return path
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found = checkpoints(root)
    if not found:
        raise UserError(
            f"{path}: holds no whole checkpoint",
            runs_inside(path)
            or "give the run directory that `diffcli train` printed, or wait for its first checkpoint (train.every.save)",
        )
    return found[-1]


def glance(path: Path) -> dict[str, Any]:
    """The record of the checkpoint that PATH means, unchecked, for early answers; empty where it cannot be read so simply."""
    try:
        found = json.loads((locate(path) / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def is_checkpoint(path: Path) -> bool:
    """Whether a path looks like a run, a checkpoint or an exported file."""
    exported = path.suffix == WEIGHTS and path.is_file()
    return exported or (path / "checkpoints").is_dir() or (path / RECORD).is_file() or bool(checkpoints(path))


def weights_to_import(path: Path) -> Path:
    """A file or folder of other people's weights. Raises UserError where there is none."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder", "give a .pt or .safetensors file, or a diffusers folder")
    return path


def run_directory(path: Path) -> Path:
    """The directory of a run. Raises UserError where there is none."""
    if not path.is_dir():
        hint = _in_runs(path) or "give the directory that `diffcli train` printed"
        raise UserError(f"{path}: no such run directory", hint)
    return path


def runs_inside(path: Path) -> str:
    """A hint that names the runs in a folder; empty where there are none."""
    found = sorted(each.parent for each in path.glob("*/checkpoints"))
    more = ", ..." * (len(found) > SHOWN)
    return f"give one of the runs in it: {', '.join(map(quoted, found[:SHOWN]))}{more}" if found else ""


def _in_runs(path: Path) -> str:
    """A hint at the run of this name, which lies in `runs`; empty where there is none."""
    run = Path("runs", path.name)
    return f"did you mean {quoted(run)}?" if (run / "checkpoints").is_dir() else ""


def _refuse_foreign(path: Path) -> Path:
    with path.open("rb") as file:
        start = file.read(9)
    if path.suffix in PICKLES or start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise UserError(
            f"{path}: is a pickle or a zip, not a diffcli checkpoint; pickles can run code and are never loaded",
            "give a run directory, a checkpoint folder or an ema.safetensors file",
        )
    if path.suffix != WEIGHTS and start[8:] != b"{":  # of safetensors, JSON follows the 8 bytes of its length
        raise UserError(f"{path}: is no checkpoint", _beside(path))
    return path


def _beside(path: Path) -> str:
    """What to type instead of a file that is none of a checkpoint's weights."""
    if (path.parent / "checkpoints").is_dir():
        return f"give the run that it lies in: {path.parent}"
    if (path.parent / RECORD).is_file():
        return f"give the checkpoint that it lies in: {path.parent}"
    if path.suffix in PRESETS:
        return f"`diffcli train --preset {quoted(path)}` trains a preset, and prints the run directory to give"
    return ANY
