"""Tables of renamings between our tensors and theirs, and the small engine that applies one in either direction.

A `Rule` converts tensors of theirs to ours (`read`) and back (`write`). A family of models is a list of rules, so every name is
data. `write` also runs on meta tensors, which gives the shapes that their file must have.
"""

import json
import pickle
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffcli.config import UserError
from diffcli.digest import stands_in
from diffcli.interop import inert_pickle

FEW = 4  # names that an error lists of each kind
WRAPPERS = ("module.", "_orig_mod.", "model.")  # what DataParallel, torch.compile and trainers put before every name
UNWRAPPED = "model.diffusion_model."  # names of CompVis, which begin as a wrapper does
WEIGHTS = (  # in a folder of diffusers, the most exact first; .json names the shards that hold each tensor
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.bin.index.json",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.safetensors.index.fp16.json",
    "diffusion_pytorch_model.fp16.bin",
)
HALF = ".fp16."
INSIDE = ("ema", "state_dict", "model")  # keys of the weights in training checkpoints, the best first
ARGUMENTS = "args"  # key of the arguments of their training

ForeignTensors = Mapping[str, Tensor]
Change = Callable[..., Sequence[Tensor]]


def same(*tensors: Tensor) -> Sequence[Tensor]:
    """The most common conversion: another name, the same numbers."""
    return tensors


class Rule(NamedTuple):
    """Converts tensors of theirs to ours and back; `theirs` is empty if theirs has no such part."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    read: Change = same  # (*theirs) -> ours
    write: Change = same  # (*ours) -> theirs


def layer(ours: str, theirs: str) -> list[Rule]:
    """Weight and bias of a layer, renamed."""
    return [Rule((below(ours, part),), (below(theirs, part),)) for part in ("weight", "bias")]


def layers(ours: str, theirs: str, table: Mapping[str, str]) -> list[Rule]:
    """The layers of a block, renamed by a table of ours to theirs."""
    return [rule for mine, other in table.items() for rule in layer(below(ours, mine), below(theirs, other))]


def below(parent: str, name: str) -> str:
    """The name of a part; the parent "" is the model itself."""
    return f"{parent}.{name}" if parent else name


def absent(names: Iterable[str], shapes: ForeignTensors) -> Rule:
    """A residual part that theirs does not have: zeros, so that it is the identity."""
    ours = tuple(names)
    return Rule(ours, (), lambda: [torch.zeros(shapes[name].shape) for name in ours], lambda *_: [])


def read(
    rules: Sequence[Rule], theirs: ForeignTensors, ours: ForeignTensors, source: str, ignored: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Our tensors made of theirs.

    ours: tensors of the shapes wanted, on any device. source names their file in errors. ignored: names of theirs to
    ignore. Raises UserError with the first few missing, unexpected and wrongly shaped names.
    """
    wanted = wanted_shapes(rules, ours)
    problems = {
        "missing": [name for name in wanted if name not in theirs],
        "unexpected": sorted(set(theirs) - set(wanted) - set(ignored)),
        "wrongly shaped": [
            f"{name} {list(theirs[name].shape)} instead of {list(shape)}"
            for name, shape in wanted.items()
            if name in theirs and theirs[name].shape != shape
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{len(names)} {kind} ({some(names)})" for kind, names in problems.items() if names)
        raise UserError(
            f"{source}: its tensors do not fit the model: {listed}",
            "give the preset that describes this model: --as PRESET (see `diffcli presets list`), or change its keys",
        )
    made: dict[str, Tensor] = {}
    for rule in rules:
        made.update(zip(rule.ours, rule.read(*(theirs[name] for name in rule.theirs)), strict=True))
    return {name: made[name].contiguous() for name in ours}


def write(rules: Sequence[Rule], ours: ForeignTensors) -> dict[str, Tensor]:
    """Their tensors made of ours."""
    made: dict[str, Tensor] = {}
    for rule in rules:
        made.update(zip(rule.theirs, rule.write(*(ours[name] for name in rule.ours)), strict=True))
    return {name: tensor.clone() for name, tensor in made.items()}  # no two may share memory in a file


def wanted_shapes(rules: Sequence[Rule], ours: ForeignTensors) -> dict[str, torch.Size]:
    """Name and shape of every tensor that their file must have."""
    shapes = {name: torch.empty(tensor.shape, device="meta") for name, tensor in ours.items()}
    return {name: tensor.shape for name, tensor in write(rules, shapes).items()}


def some(names: Sequence[str]) -> str:
    """The first few of the names."""
    return ", ".join(names[:FEW]) + (", ..." if len(names) > FEW else "")


def weights_in(folder: Path) -> Path:
    """The file of the weights of a network of diffusers, or the index of its shards."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: holds none of {', '.join(WEIGHTS)}", "download the folder again, whole")


def half_note(folder: Path) -> tuple[str, ...]:
    """A note on the precision of the weights in a folder."""
    file = weights_in(folder)
    return (f"{file}: weights of half precision, the only ones in that folder",) if HALF in file.name else ()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors, float32, of a .safetensors file, of the shards that an index.json names, or of a pickle (.pt, .bin) that holds
    nothing that could run code.
    """
    return read_with_arguments(path)[0]


def read_with_arguments(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """The tensors, and the arguments of training (`args`) in a training checkpoint; none if it has none."""
    if path.suffix == ".json":
        found: Any = {name: tensor for shard in shards(path) for name, tensor in load(shard).items()}
    else:
        found = load(path)
    arguments = found.get(ARGUMENTS) if isinstance(found, dict) else None
    tensors = {name: tensor.float() for name, tensor in unwrap(found, path).items()}
    return tensors, vars(arguments) if isinstance(arguments, Namespace) else {}


def load(path: Path) -> Any:
    """The content of a file."""
    return load_safetensors(path) if path.suffix == ".safetensors" else unpickle(path)


def shards(index: Path) -> list[Path]:
    """The files that an index names, each once. Raises UserError if it names none, or one that is not beside it."""
    try:
        names = list(dict.fromkeys(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: is no index of shards ({first_line(error)})", "download it again") from error
    missing = [str(name) for name in names if Path(str(name)).name != name or not (index.parent / name).is_file()]
    if missing or not names:
        raise UserError(
            f"{index}: names {some(missing) or 'no file'}, which {'is' if missing else 'are'} not beside it",
            "download the folder again, whole",
        )
    return [index.parent / name for name in names]


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of such a file."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: is not a readable safetensors file ({first_line(error)})", stands_in(path) or "download it again"
        ) from error


def unpickle(path: Path) -> Any:
    """The content of a pickle that torch's restricted reader accepts, or the state dict in one of pytorch-lightning."""
    if found := stands_in(path):
        raise UserError(f"{path}: is not a readable .pt file", found)
    try:
        with torch.serialization.safe_globals([Namespace]):  # attributes alone, without code
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        state = inert_pickle.state_dict(path)
        if state is not None:
            return state
        raise UserError(
            f"{path}: is not a pickle of tensors alone; other pickles can run code and are never loaded",
            "if you trust it, save its weights again: torch.save(model.state_dict(), FILE)",
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, BadZipFile) as error:
        raise UserError(f"{path}: is not a readable .pt file ({first_line(error)})", "download it again") from error


def unwrap(found: Any, path: Path) -> dict[str, Tensor]:
    """The state dict inside what training code saved, without the prefixes of wrappers."""
    for name in INSIDE:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
            break
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(
            f"{path}: holds {type(found).__name__}, not a state dict of tensors", "save model.state_dict() alone"
        )
    names = [str(name) for name in found]
    while (around := wrapper(names)) is not None:
        names = [name.removeprefix(around) for name in names]
    return dict(zip(names, found.values(), strict=True))


def wrapper(names: Sequence[str]) -> str | None:
    """The wrapper that stands before every name."""
    if all(name.startswith(UNWRAPPED) for name in names):
        return None
    return next((around for around in WRAPPERS if all(name.startswith(around) for name in names)), None)


def first_line(error: Exception) -> str:
    """The cause, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]
