"""The names that other libraries give to low-rank changes, in files and back.

    peft, diffusers   unet.LAYER.lora_A.weight, lora_B.weight; alpha in the header, or in adapter_config.json of a folder
    older diffusers   unet.LAYER.lora.down.weight, lora.up.weight, or unet.BLOCK.processor.to_q_lora.down.weight
    kohya             lora_unet_LAYER_WITH_UNDERSCORES.lora_down.weight, lora_up.weight, alpha

Where nothing tells alpha it is the rank, so that B A counts once.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffcli import tensor_file
from diffcli.config import UserError, quoted
from diffcli.interop.foreign import read_json
from diffcli.interop.weight_files import read_tensors, some
from diffcli.networks.lora import LowRank

CONFIG = "adapter_config.json"
FILES = (
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.bin",
)
HEADER = "lora_adapter_metadata"  # of diffusers' files
KOHYA = "lora_unet_"
TEXTS = ("lora_te", "text_encoder")  # what changes of text encoders begin with
WRAPPED = "base_model.model."  # peft's, before the names of the model
COMPONENTS = ("unet.", "transformer.")
PART = re.compile(
    r"(?P<layer>.+?)(?:\.lora_(?P<letter>[AB])(?:\.[^.]+)?\.weight|(?:\.lora|_lora|\.lora_linear_layer)\.(?P<way>down|up)\.weight"
    r"|\.lora_(?P<kohya>down|up)\.weight|\.(?P<alpha>(?:lora_)?alpha))"
)
OTHER = {  # parts of names that low-rank changes do not have
    "hada_": "a Hadamard product (LoHa)",
    "lokr_": "a Kronecker product (LoKr)",
    "lora_mid": "a third matrix (CP decomposition)",
    "dora_scale": "a magnitude (DoRA)",
    "lora_magnitude_vector": "a magnitude (DoRA)",
    "lora_embedding": "a change of a table",
}


class ForeignChanges(NamedTuple):
    """What a file holds. changes: by the names of layers of theirs, kohya's with underscores. texts: those of text encoders."""

    changes: dict[str, LowRank]
    texts: int


def read(path: Path) -> ForeignChanges:
    """The changes in a file, or in a folder of peft. Raises UserError where it is no such file, or one of another method."""
    file = inside(path)
    tensors, told = read_tensors(file), settings(path, file)
    for name in tensors:
        for mark, what in OTHER.items():
            if mark in name:
                raise UserError(
                    f"{file}: {name} belongs to {what}, which is no low-rank change alone",
                    "give a file of plain LoRA, or one that was merged into its model",
                )
    parts: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for name, tensor in tensors.items():
        found = PART.fullmatch(name)
        if found is None:
            unknown.append(name)
            continue
        kind = {"A": "down", "B": "up"}.get(found["letter"] or "") or found["way"] or found["kohya"] or "alpha"
        parts.setdefault(layer_name(found["layer"], bool(found["way"])), {})[kind] = tensor
    if unknown or not parts:
        raise UserError(
            f"{file}: {some(unknown) or 'nothing in it'} is no tensor of a low-rank change",
            "give a LoRA of diffusers, peft or kohya, or a LoRA run of diffcli",
        )
    texts = {name for name in parts if name.startswith(TEXTS)}
    changes = {name: whole(name, part, told, file) for name, part in parts.items() if name not in texts}
    return ForeignChanges(changes, len(texts))


def named_as_change(name: str) -> bool:
    """Whether a tensor of this name belongs to a low-rank change, or to one of a method that is refused."""
    return PART.fullmatch(name) is not None or any(mark in name for mark in OTHER)


def inside(path: Path) -> Path:
    """The file of weights that a path means. Raises UserError where there is none."""
    if not path.is_dir():
        return path
    found = next((path / name for name in FILES if (path / name).is_file()), None)
    if found is not None:
        return found
    others = sorted(path.glob("*.safetensors"))  # kohya's have any name
    if len(others) == 1:
        return others[0]
    if others:
        raise UserError(f"{path}: holds {len(others)} files of weights", f"name one, as {quoted(others[0])}")
    raise UserError(f"{path}: holds none of {', '.join(FILES)}", "give the .safetensors file of a LoRA")


def layer_name(name: str, former: bool) -> str:
    """A layer's name without what wraps it; former: whether the file may have the names of attention processors."""
    name = name.removeprefix(WRAPPED)
    if former:
        name = name.replace(".processor.", ".")
        name = f"{name}.0" if name.endswith(".to_out") else name
    for prefix in COMPONENTS:
        name = name.removeprefix(prefix)
    return name


def whole(name: str, part: Mapping[str, Tensor], told: Mapping[str, Any], file: Path) -> LowRank:
    """A change of its matrices. Raises UserError where one is missing, or where their ranks differ."""
    down, up = part.get("down"), part.get("up")
    if down is None or up is None or down.ndim < 2 or up.ndim < 2 or len(down) != up.shape[1]:
        held = ", ".join(f"{kind} {list(tensor.shape)}" for kind, tensor in part.items())
        raise UserError(f"{file}: the change of {name} is not whole: {held}", "download the file again")
    alpha = float(part["alpha"]) if "alpha" in part else stated_alpha(name, len(down), told)
    return LowRank(down, up, alpha)


def stated_alpha(name: str, rank: int, told: Mapping[str, Any]) -> float:
    """What settings of peft say of the alpha of a layer; the rank, where they say nothing."""
    patterns: Mapping[str, float] = told.get("alpha_pattern") or {}
    own = next((a for key, a in patterns.items() if re.fullmatch(rf"(.*\.)?({key.lstrip('^')})", name)), None)
    alpha = told.get("lora_alpha", rank) if own is None else own
    return float(alpha) * (rank**0.5 if told.get("use_rslora") else 1.0)


def settings(path: Path, file: Path) -> Mapping[str, Any]:
    """What peft says of the changes beside their tensors: in the folder, or in the header of the file."""
    if path.is_dir() and (path / CONFIG).is_file():
        return read_json(path / CONFIG)
    if file.suffix != ".safetensors":
        return {}
    try:
        found = json.loads(tensor_file.metadata(file).get(HEADER, "{}"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: {HEADER} in its header is no JSON ({error})", "download the file again") from error
    for prefix in COMPONENTS:
        own = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
        if own:
            return own
    return found if isinstance(found, dict) else {}


def of_peft(changes: Mapping[str, LowRank], component: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a file that diffusers and peft load."""
    tensors = {}
    for name, change in changes.items():
        tensors[f"{component}.{name}.lora_A.weight"] = change.down
        tensors[f"{component}.{name}.lora_B.weight"] = change.up
    ranks = {name: change.rank for name, change in changes.items()}
    alphas = {name: change.alpha for name, change in changes.items()}
    rank, alpha = most_common(ranks.values()), most_common(alphas.values())
    told: dict[str, Any] = {
        "r": int(rank),
        "lora_alpha": alpha,
        "rank_pattern": {name: own for name, own in ranks.items() if own != rank},
        "alpha_pattern": {name: own for name, own in alphas.items() if own != alpha},
        "target_modules": sorted(changes),
    }
    header = {f"{component}.{key}": value for key, value in told.items()}
    return tensors, {"format": "pt", HEADER: json.dumps(header, sort_keys=True)}


def of_kohya(changes: Mapping[str, LowRank]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a file as kohya's scripts write it."""
    tensors = {}
    for name, change in changes.items():
        place = KOHYA + name.replace(".", "_")
        tensors[f"{place}.lora_down.weight"] = change.down
        tensors[f"{place}.lora_up.weight"] = change.up
        tensors[f"{place}.alpha"] = torch.tensor(float(change.alpha))
    return tensors, {"format": "pt", "ss_network_module": "networks.lora"}


def most_common(values: Iterable[float]) -> float:
    return Counter(values).most_common(1)[0][0]
