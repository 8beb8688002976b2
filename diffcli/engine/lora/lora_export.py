"""Checkpoints of low-rank changes on their way out: merged into their base as a whole checkpoint, or as matrices alone."""

from collections.abc import Sequence
from pathlib import Path

import torch

from diffcli import checkpoint
from diffcli.config import UserError, quoted
from diffcli.engine.lora import lora_bases
from diffcli.engine.lora.lora_weights import changes_in
from diffcli.engine.model import load_model
from diffcli.interop.adapters.lora_exchange import LoraFormat, write_lora
from diffcli.interop.importing import check_empty
from diffcli.lookup.checkpoint_files import step_dir
from diffcli.networks.lora import of_change
from diffcli.preset import build

MERGED = "merged"  # key of the record: what was merged into the weights
FOLLOWS = ("feed", "base", "from", "format", "sha256")  # entries of a record that are about going on with its run


def export_merged(ckpt: Path, out: Path, use_ema: bool, loras: Sequence[str], base: Path | None) -> Path:
    """Writes out/step-NNNNNNNN, a checkpoint that needs no base, as one that `import` writes. Returns its path.

    Raises UserError where there is nothing to merge.
    """
    check_empty(out)
    found = checkpoint.locate(ckpt)
    record = checkpoint.read_record(found)
    if lora_bases.named(record) is None and not loras:
        raise UserError(
            f"--merge: {found} is a whole model already, and no --lora is given",
            "give a LoRA run, or --lora PATH[:SCALE]; for another library leave --merge out",
        )
    model = load_model(found, torch.device("cpu"), use_ema, precision="fp32", base=base, loras=loras)
    train = model.preset.train.model_copy(update={"lora": None})
    plain = model.preset.model_copy(update={"train": train, "origin": None})
    kept = {key: value for key, value in record.items() if key not in FOLLOWS}
    told = {"base": model.base, "loras": list(model.loras), "changes": str(found)}
    made = {**kept, "preset": plain.model_dump(mode="json"), MERGED: told}
    return checkpoint.save_average(step_dir(out, model.step), model.task.state_dict(), made)


def export_matrices(ckpt: Path, out: Path, use_ema: bool, form: LoraFormat) -> Path:
    """Writes the matrices of a LoRA run as one file that peft, diffusers or kohya's tools load. Returns it.

    Raises UserError where the checkpoint is a whole model, or has trained more than matrices.
    """
    found = checkpoint.locate(ckpt)
    record = checkpoint.read_record(found)
    if lora_bases.named(record) is None:
        raise UserError(
            f"--to {form}: {found} is a whole model, of which there are no matrices",
            "give the run of a preset with train.lora, or --to diffusers",
        )
    preset = build(record.get("preset"), f"{found}/{checkpoint.RECORD}")
    if preset.train.lora is None:
        raise UserError(
            f"--to {form}: {found} has learned a word, of which there are no matrices", "give --to embedding"
        )
    tensors = checkpoint.read_part(found, "ema" if use_ema else "task", record)
    whole = [name for name in tensors if not of_change(name)]
    if whole:
        raise UserError(
            f"--to {form}: {found} has also trained {whole[0]} whole (train.lora.whole), which is no low-rank change",
            f"merge it: diffcli export {quoted(ckpt)} --merge --out DIR",
        )
    return write_lora(preset, changes_in(tensors, found), out, form)
