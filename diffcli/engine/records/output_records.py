"""The record beside an output: how it was made, so that `sample --like` can make it again.

The record of `samples.png` is `samples.png.json`, that of the folder `faces` is `faces.json`. It holds the command line and the
folder in which it was typed, and all that was chosen: checkpoint, digest of the weights, seeds, sampler. Before, that of
`samples.png` was `samples.json`; such records are still read.
"""

import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffcli import __version__, checkpoint
from diffcli.config import Note, UserError, quoted
from diffcli.digest import sha256
from diffcli.engine.draw.out_files import whole
from diffcli.engine.records.record_files import OURS, raw_record, sidecar
from diffcli.interop.adapters import lora_names
from diffcli.lookup.checkpoint_files import is_checkpoint

ADDED = {"loras": "--lora", "embeddings": "--embedding"}  # what is added to the weights, by key: its flag
LIKE = ("sample", "gif")  # commands that repeat their records


def check_record(path: Path) -> None:
    """Raises UserError, before any work, where the record of an output would take the place of another file."""
    place = sidecar(path)
    if place.exists() and not raw_record(place).keys() >= OURS:
        raise UserError(
            f"--out {path}: its record {place} would overwrite a file that is no record of diffcli",
            f"move that file away, or give another --out, for example {quoted(path.with_name(f'drawn-{path.name}'))}",
        )


def write_record(path: Path, description: Mapping[str, Any]) -> None:
    """Writes the record of an output, whole or not at all. Raises UserError where it cannot be, and as `check_record`."""
    check_record(path)
    typed = {"command": shlex.join(["diffcli", *sys.argv[1:]]), "folder": os.getcwd()}
    place = sidecar(path)
    try:
        place.unlink(missing_ok=True)  # of what stood there before
        with whole(place) as partial:
            partial.write_text(json.dumps({**description, **typed}, indent=1, default=int) + "\n")
    except OSError as error:
        raise UserError(
            f"{path} is written, but its record {place} cannot be ({error.strerror})",
            "free some space, and draw again where you want to repeat it with --like",
        ) from error


def repeated(path: Path, record: Mapping[str, Any], command: str = "sample") -> list[str]:
    """The words after `diffcli COMMAND` that made an output. Raises UserError where the record does not hold them."""
    words = shlex.split(str(record.get("command", "")))[1:]
    if not words:
        seeds, steps = record.get("seeds") or [0], record.get("steps")
        typed = f"diffcli sample {quoted(record['checkpoint'])} --n {record.get('n', 1)} --seed {seeds[0]}"
        problem = f"--like {path}: was written by diffcli {record['version']}, which did not note the command"
        raise UserError(problem, f"type it, as {typed}" + (f" --steps {steps}" if steps else ""))
    if words[0] != command:
        again = f"diffcli {words[0]} --like {quoted(path)} --out NEW{output_of(path).suffix}"
        hint = again if words[0] in LIKE else f"repeat it as it was typed: {record['command']}"
        raise UserError(f"--like {path}: was made by `diffcli {words[0]}`, not by `diffcli {command}`", hint)
    return words[1:]


def output_of(path: Path) -> Path:
    """The output that a record tells of, by either name."""
    return path.with_suffix("") if path.suffix == ".json" else path


def stages(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records of the stages of a cascade, that of the first one first; of a single model its own."""
    earlier = _earlier(record)
    return [*([] if earlier is None else stages(earlier)), dict(record)]


def _earlier(node: Any) -> dict[str, Any] | None:
    """The record of the previous stage, which is part of the condition that holds its pictures."""
    if isinstance(node, Mapping):
        stage = node.get("stage")
        inner = node.values()
        return stage if isinstance(stage, dict) else next(filter(None, map(_earlier, inner)), None)
    return next(filter(None, map(_earlier, node)), None) if isinstance(node, list) else None


def same_weights(path: Path, record: Mapping[str, Any], folder: Path) -> Path:
    """The checkpoint of a record, found from `folder`, its weights, and those of other runs, as the record names them.

    Raises UserError where they are others by now, or gone.
    """
    controls = record.get("control")
    others = [each for each in controls.values() if "checkpoint" in each] if isinstance(controls, Mapping) else []
    for each in (record, *others):
        place = folder / str(each["checkpoint"])
        if not place.exists():  # moved, or removed while its run went on
            raise UserError(
                f"--like {path}: {place}, which drew it, is not there",
                "put it back, or draw with a checkpoint that is there, by the options under `command` in the record",
            )
        if not place.is_dir():
            continue
        part = "ema" if each.get("ema", True) else "task"
        now = checkpoint.read_record(checkpoint.locate(place)).get("sha256", {}).get(f"{part}.safetensors")
        if now != each.get("weights_sha256", now):
            raise UserError(
                f"--like {path}: {place} has other weights now than when it was drawn",
                "give the same options to `diffcli sample` for images of the present weights",
            )
    added = [(flag, each) for key, flag in ADDED.items() for each in record.get(key) or ()]
    for flag, each in added:
        if _digest_now(folder / each["path"]) != each["sha256"]:
            raise UserError(
                f"--like {path}: {flag} {each['path']} has other weights by now than those that it was drawn with",
                "give the same options to `diffcli sample` for images of the present weights",
            )
    return folder / str(record["checkpoint"])


def _digest_now(path: Path) -> str | None:
    """Of the file that a --lora reads; None where it is not there any more."""
    if path.is_dir() and is_checkpoint(path):
        return checkpoint.read_record(checkpoint.locate(path)).get("sha256", {}).get("ema.safetensors")
    try:
        return sha256(lora_names.inside(path))
    except OSError:
        return None


def differences(record: Mapping[str, Any]) -> list[Note]:
    """Reasons why an image may differ although the options are the same."""
    if record["version"] == __version__:
        return []
    return [Note(f"the record was written by diffcli {record['version']}, this is {__version__}: images may differ")]
