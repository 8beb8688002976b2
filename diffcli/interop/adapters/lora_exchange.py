"""Low-rank changes of diffusers, peft and kohya as changes of our layers, and back into files that those load."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from safetensors.torch import save_file

from diffcli.config import UserError
from diffcli.interop.adapters import lora_names
from diffcli.interop.adapters.lora_places import component, layer_places
from diffcli.interop.importing import check_empty
from diffcli.interop.weight_files import some
from diffcli.networks.lora import LowRank
from diffcli.preset import Preset

LoraFormat = Literal["peft", "kohya"]
PEFT_FILE = "pytorch_lora_weights.safetensors"  # what diffusers looks for in a folder


class ImportedLora(NamedTuple):
    """Changes by the names of our layers, and what is to be said of the file."""

    changes: dict[str, LowRank]
    notes: tuple[str, ...]


def read_lora(path: Path, preset: Preset) -> ImportedLora:
    """The changes in a file or folder of theirs, for the model of a preset. Raises UserError where they are of another model."""
    found = lora_names.read(path)
    places = layer_places(preset)
    known = {name: place for place in places.values() for name in place.theirs}
    known |= {lora_names.KOHYA + name.replace(".", "_"): place for name, place in known.items()}
    dotted = {lora_names.KOHYA + name.replace(".", "_"): name for place in places.values() for name in place.theirs}
    strange = [name for name in found.changes if name not in known]
    if strange:
        raise UserError(
            f"{path}: changes {some(strange)}, which the network of {preset.name} does not have: it is of another model",
            "give the model that it was trained on, or another LoRA",
        )
    theirs = {dotted.get(name, name): change for name, change in found.changes.items()}
    changes = {}
    for place in places.values():
        if any(name in theirs for name in place.theirs):
            try:
                changes[place.layer] = place.joined(theirs)
            except ValueError as error:
                raise UserError(
                    f"{path}: {error}: it is of another model", "give the model that it was trained on, or another LoRA"
                ) from error
    told = f"{path}: {found.texts} changes of a text encoder are left out: diffcli changes the network alone"
    return ImportedLora(changes, (told,) if found.texts else ())


def write_lora(preset: Preset, changes: Mapping[str, LowRank], out: Path, form: LoraFormat) -> Path:
    """Writes changes of the model of a preset into a new folder, as one file; returns it. Raises UserError where it cannot be."""
    check_empty(out)
    places, name = layer_places(preset), component(preset)
    if form == "kohya" and name != "unet":
        raise UserError("--to kohya: the model is a transformer, for which those files have no names", "give --to peft")
    strange = [layer for layer in changes if layer not in places]
    if strange:
        raise UserError(
            f"--to {form}: {some(strange)} is no layer that other libraries change",
            "merge it instead: diffcli export --merge",
        )
    theirs = {name: part for layer, change in changes.items() for name, part in places[layer].split(change).items()}
    if not theirs:
        raise UserError(f"--to {form}: every change is still 0, so that there is nothing to write", "train first")
    tensors, header = lora_names.of_peft(theirs, name) if form == "peft" else lora_names.of_kohya(theirs)
    file = out / (PEFT_FILE if form == "peft" else f"{preset.name}.safetensors")
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file, metadata=header)
    except OSError as error:
        raise UserError(
            f"--out {out}: cannot be written ({error.strerror})", "free some space, or give another place"
        ) from error
    return file
