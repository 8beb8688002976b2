"""Describes what libraries share beside whole models: a file or folder of low-rank changes, and the file of a new word.

    lora    {library, rank, alpha: [smallest, largest] each, layers: {ENDING: count}, texts, weights, says_base}
    word    {token, vectors, width}

Neither says by a digest which model it is for. `says_base` is the name that peft or kohya noted, if they did.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffcli import checkpoint, tensor_file
from diffcli.config import quoted
from diffcli.engine.words.word_files import FLAG, read_word
from diffcli.interop.adapters import lora_names

BASES = ("base_model_name_or_path", "ss_sd_model_name", "ss_base_model_version")  # keys of peft, then of kohya
ENDING = re.compile(  # of a name of kohya's, in which underscores stand for dots, too
    r".*?_(to_[qkv]|to_out_0|ff_net_0_proj|ff_net_2|proj_in|proj_out|conv_shortcut|conv_in|conv_out|time_emb_proj|conv\d?|[^_]+)"
)


def adapter(path: Path) -> dict[str, Any] | None:
    """The description of such a file or folder, its `kind` among it; None: it is none. Raises UserError where it is damaged."""
    file = _file(path)
    if file is None:
        return None
    if file.suffix != ".safetensors":  # a pickle, whose names cannot be read alone
        return _of_changes(path, file, {}) if file.name in lora_names.FILES else None
    try:
        told, entries = tensor_file.metadata(file), tensor_file.entries(file)
    except (OSError, ValueError):
        return None
    if checkpoint.HEADER in told:
        return None
    if any(lora_names.named_as_change(entry.name) for entry in entries):
        return _of_changes(path, file, told)
    if len(entries) == 1 and len(entries[0].shape) in (1, 2) and entries[0].dtype.is_floating_point:
        word = read_word(file)
        (vectors,) = word.vectors.values()
        return {"kind": "word", "token": word.name, "vectors": len(vectors), "width": vectors.shape[1]}
    return None


def _file(path: Path) -> Path | None:
    """The one file of tensors that a path means, if it means one."""
    if path.is_file():
        return path
    if not path.is_dir() or (path / checkpoint.RECORD).is_file():
        return None
    known = [path / name for name in lora_names.FILES if (path / name).is_file()]
    others = list(path.glob("*.safetensors"))
    return known[0] if known else others[0] if len(others) == 1 else None


def _of_changes(path: Path, file: Path, told: Mapping[str, str]) -> dict[str, Any]:
    found = lora_names.read(path)
    changes = found.changes
    kohya = any(name.startswith(lora_names.KOHYA) for name in changes)
    notes = {**told, **lora_names.settings(path, file)}
    return {
        "kind": "lora",
        "library": "kohya" if kohya else "diffusers",
        "rank": _ends(change.rank for change in changes.values()),
        "alpha": _ends(change.alpha for change in changes.values()),
        "layers": dict(Counter(_ending(name) for name in changes)),
        "texts": found.texts,
        "weights": sum(change.down.numel() + change.up.numel() for change in changes.values()),
        "says_base": next((str(notes[key]) for key in BASES if notes.get(key)), None),
    }


def _ends(values: Iterable[float]) -> list[float]:
    """The smallest and the largest; nothing of nothing."""
    found = sorted(values)
    return [found[0], found[-1]] if found else []


def _ending(name: str) -> str:
    """What a layer is within its block: to_q, to_out.0, conv1."""
    if name.startswith(lora_names.KOHYA):
        found = ENDING.fullmatch(name)
        return name if found is None else found[1]
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdecimal() else parts[-1]


def adapter_lines(found: Mapping[str, Any]) -> dict[str, str]:
    """The description for people, by topic."""
    path = quoted(found["path"])
    if found["kind"] == "word":
        vectors = f"{found['vectors']} vector{'s' * (found['vectors'] != 1)} of {found['width']}"
        needed = f"any whose encoder of texts it was learned with, {found['width']} wide"
        return {
            "token": f"{found['token']}, {vectors}",
            "base": f"not named in the file; {needed}",
            "next": f'diffcli sample MODEL --prompt "a {found["token"]}" {FLAG} {path}',
        }
    layers = ", ".join(f"{ending} ({count})" for ending, count in found["layers"].items())
    count = sum(found["layers"].values())
    held = (
        f"rank {_span(found['rank'])}, alpha {_span(found['alpha'])} on {count} layers: {layers}" if count else "none"
    )
    named = f"named {found['says_base']}, which nothing proves" if found["says_base"] else "not named in the file"
    return {
        "names": f"as {found['library']} has them",
        "changes": held,
        "weights": f"{found['weights']:,}",
        **({"left out": f"{found['texts']} changes of a text encoder"} if found["texts"] else {}),
        "base": f"{named}; a model with other layers refuses it",
        "next": f"diffcli sample MODEL --lora {path}",
    }


def _span(values: Sequence[float]) -> str:
    smallest, largest = values
    return f"{smallest:g}" if smallest == largest else f"{smallest:g} to {largest:g}"
