"""A run that trains low-rank changes: what it takes from its base, at its first step and when it goes on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffcli.config import UserError, quoted
from diffcli.engine.lora import lora_bases
from diffcli.engine.lora.lora_bases import WeightsName
from diffcli.engine.lora.lora_training import KEY, held
from diffcli.interop.weight_files import some
from diffcli.tasks.task import Task


def begun(task: Task, source: Path, step: int, weights: WeightsName, run: Path, key: str = KEY) -> dict[str, Any]:
    """`base` for the record of a new run, whose task has taken what it can from a located checkpoint. key: `changing`.

    Raises UserError where something that stays constant is not that of the checkpoint, which would be lost.
    """
    base = lora_bases.of_checkpoint(task, source, weights)
    mine, kept = task.state_dict(), held(task)
    constants = [name for name in mine if name not in kept]
    lacking = [name for name in constants if name not in base.tensors or base.tensors[name].shape != mine[name].shape]
    if lacking:
        raise UserError(
            f"{key}: {source} does not have {some(lacking)} of this model, and a run with {key} changes its base alone",
            _remedy(lacking, key),
        )
    other = [name for name in constants if not torch.equal(mine[name].cpu(), base.tensors[name].to(mine[name].dtype))]
    if other:  # rows of a class table of as many new classes, or what is no parameter and is measured of the data
        parameters = dict(task.named_parameters())
        raise UserError(
            f"{key}: {some(other)} is not as in {source}, and a run with {key} changes its base alone",
            _remedy(other, key)
            if all(name in parameters for name in other)
            else f"begin from that model without {key}: leave it out of the preset",
        )
    return {lora_bases.RECORD: lora_bases.noted(base, step, weights, run)}


def _remedy(names: list[str], key: str) -> str:
    """What to type so that these parameters are trained as they are: each layer of theirs once."""
    if key != KEY:
        return f"begin from a model that has it all; or train it so first, without {key}"
    places = dict.fromkeys(name.rpartition(".")[0] or name for name in names)
    return f"train what is new whole: --set 'train.lora.whole=[{', '.join(places)}]'"


def taken_up(
    task: Task, record: Mapping[str, Any], start: Path, run: Path, given: Path | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of the base of a checkpoint that a run goes on from, and `base` for its record; nothing where it has none.

    given: what --base names. Raises UserError where the base is not there, or another by now.
    """
    entry = lora_bases.named(record)
    if entry is None:
        if given is not None:
            raise UserError(f"--base {quoted(given)}: {start} is a whole model, no change of one", "leave --base out")
        return {}, {}
    base = lora_bases.read(task, entry, start, given)
    wanted = task.state_dict().keys()
    tensors = {name: tensor for name, tensor in base.tensors.items() if name in wanted}
    return tensors, {lora_bases.RECORD: lora_bases.noted(base, entry["step"], entry["weights"], run)}
