"""Tables of renamings between our tensors and theirs, and the small engine that applies one in either direction.

A `Rule` says which tensors of theirs make which of ours (`read`) and back (`write`). A family of models is a list of rules:
every name is data. `write` also runs on meta tensors, which tells the shapes that their file must have.
"""

import pickle
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
WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every name
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")  # in a folder of diffusers
INSIDE = ("ema", "state_dict", "model")  # where training checkpoints keep the weights, the best first

ForeignTensors = Mapping[str, Tensor]
Change = Callable[..., Sequence[Tensor]]


def same(*tensors: Tensor) -> Sequence[Tensor]:
    """What most rules do: another name, the same numbers."""
    return tensors


class Rule(NamedTuple):
    """Tensors of ours made of tensors of theirs, and back; `theirs` is empty where theirs has no such part."""

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

    ours: tensors of the shapes wanted, on any device. source names their file in errors. ignored: names of theirs that say
    nothing. Raises UserError with the first few missing, unexpected and wrongly shaped names; nothing is made then.
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
    """The file of the weights of a network of diffusers."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: holds none of {', '.join(WEIGHTS)}", "download the folder again, whole")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors, float32, of a .safetensors file, or of a pickle (.pt, .bin) that holds nothing that could run code."""
    found = load_safetensors(path) if path.suffix == ".safetensors" else unwrap(unpickle(path), path)
    return {name: tensor.float() for name, tensor in found.items()}


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of such a file."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: is not a readable safetensors file ({first_line(error)})", stands_in(path) or "download it again"
        ) from error


def unpickle(path: Path) -> Any:
    """What a pickle holds, if torch's restricted reader takes it; of a checkpoint of pytorch-lightning the state dict alone."""
    if found := stands_in(path):
        raise UserError(f"{path}: is not a readable .pt file", found)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        state = inert_pickle.state_dict(path)
        if state is not None:
            return state
        raise UserError(
            f"{path}: is no pickle of tensors alone; others can run code and are never loaded",
            "where you trust it, save its weights again: torch.save(model.state_dict(), FILE)",
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
    for wrapper in WRAPPERS:
        if all(str(name).startswith(wrapper) for name in found):
            found = {str(name).removeprefix(wrapper): value for name, value in found.items()}
    return found


def first_line(error: Exception) -> str:
    """The cause, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]
