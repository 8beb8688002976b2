"""The weights that a checkpoint is used with: its own, its base with its changes, and those of `--lora` on top.

Changes are added to the weights when they are read, so that drawing costs what it costs without them.
"""

import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from diffcli import checkpoint, tensor_file
from diffcli import preset as presets
from diffcli.config import Note, UserError, quoted
from diffcli.digest import sha256
from diffcli.engine.loading import read_to_sample
from diffcli.engine.lora import lora_bases
from diffcli.interop.adapters import lora_names
from diffcli.interop.adapters.lora_exchange import read_lora
from diffcli.lookup.checkpoint_files import is_checkpoint
from diffcli.lookup.lora_paths import LoraWish, lora_wish
from diffcli.networks.lora import LowRank, low_rank, merged, of_change
from diffcli.preset import Preset
from diffcli.tasks.task import Task


class UsedWeights(NamedTuple):
    """See the module. sha256: of the checkpoint's own file; base, loras: what a record says of the others.

    identity: of the model before the changes of `--lora`.
    """

    tensors: dict[str, Tensor]
    sha256: str
    base: dict[str, Any] | None
    loras: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    identity: "BaseIdentity"


def used_weights(
    task: Task,
    preset: Preset,
    found: Path,
    record: dict[str, Any],
    use_ema: bool,
    base: Path | None = None,
    loras: Sequence[str] = (),
) -> UsedWeights:
    """What a task on the meta device is filled with to use a located checkpoint. base: what --base names. Raises UserError."""
    wishes = [lora_wish(text) for text in loras]
    entry = lora_bases.named(record)
    if entry is None:
        if base is not None:
            raise UserError(f"--base {base}: {found} is a whole model, no change of one", "leave --base out")
        tensors, digest = read_to_sample(task, found, record, use_ema)
    else:
        own_tensors, digest = read_to_sample(task, found, record, use_ema)
        under = lora_bases.read(task, entry, found, base)
        tensors = changed(task, under.tensors, own_tensors, found)
        entry = entry | {"path": str(under.path)}
    identity = BaseIdentity(tensors, entry, record.get("classes"))
    done: list[dict[str, Any]] = []
    notes: list[str] = []
    for each in wishes:
        tensors, about = applied(each, task, preset, found, tensors, identity, notes)
        done.append(about)
    return UsedWeights(tensors, digest, entry, tuple(done), tuple(notes), identity)


def changed(task: Task, base: dict[str, Tensor], own_tensors: dict[str, Tensor], found: Path) -> dict[str, Tensor]:
    """The weights of a base with those of a checkpoint of changes: products added, whole tensors taken."""
    wanted = task.state_dict().keys()
    whole = {name: tensor for name, tensor in own_tensors.items() if not of_change(name)}
    under = {name: tensor for name, tensor in base.items() if name in wanted} | whole
    return added(under, changes_in(own_tensors, found), 1.0, str(found))


def changes_in(tensors: dict[str, Tensor], found: Path) -> dict[str, LowRank]:
    """The low-rank changes in the tensors of a checkpoint. Raises UserError where one is not whole."""
    try:
        return low_rank(tensors)
    except ValueError as error:
        raise UserError(f"{found}: {error}", "copy the checkpoint again from where it was written") from error


def added(tensors: dict[str, Tensor], changes: dict[str, LowRank], scale: float, source: str) -> dict[str, Tensor]:
    """Weights with changes merged into them. Raises UserError where one fits no layer."""
    try:
        return merged(tensors, changes, scale)
    except ValueError as error:
        raise UserError(
            f"{source}: {error}: it is of another model", "give the model that it was trained on"
        ) from error


class BaseIdentity:
    """Which model the weights of a checkpoint are, before changes: the digest is made when first asked for."""

    def __init__(self, tensors: dict[str, Tensor], entry: dict[str, Any] | None, classes: list[str] | None) -> None:
        self._tensors, self._entry, self.classes = tensors, entry, classes

    @property
    def own(self) -> bool:
        """Whether the checkpoint is a whole model, and no change of one."""
        return self._entry is None

    @cached_property
    def digest(self) -> str:
        return lora_bases.digest_of(self._tensors) if self._entry is None else str(self._entry["sha256"])


def applied(
    lora: LoraWish,
    task: Task,
    preset: Preset,
    found: Path,
    tensors: dict[str, Tensor],
    identity: BaseIdentity,
    notes: list[str],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights with one --lora added, and what a record says of it. Raises UserError where it is of another model."""
    about: dict[str, Any] = {"path": str(lora.path), "scale": lora.scale}
    if not ours(lora.path):
        foreign = read_lora(lora.path, preset)
        notes.extend(foreign.notes)
        digest = sha256(lora_names.inside(lora.path))
        return added(tensors, foreign.changes, lora.scale, f"--lora {lora.text}"), about | {"sha256": digest}
    place = checkpoint.locate(lora.path)
    record = checkpoint.read_record(place)
    entry = lora_bases.named(record)
    if entry is None:
        raise UserError(
            f"--lora {lora.text}: is a whole model, no change of one", f"draw with it alone: --ckpt {quoted(lora.path)}"
        )
    if record["preset"]["train"].get("lora") is None:
        raise UserError(
            f"--lora {lora.text}: has learned a word, no low-rank changes",
            f"give it as --embedding {quoted(lora.path)}",
        )
    if entry["sha256"] != identity.digest:
        lies = lora_bases.present(entry, place)
        raise UserError(
            f"--lora {lora.text}: changes {entry['path']}, weights {entry['sha256'][: lora_bases.SHOWN]}..., but {found} "
            f"{'has' if identity.own else 'changes'} {identity.digest[: lora_bases.SHOWN]}...",
            "give the model that it was trained on: "
            + (f"--ckpt {quoted(lies)}" if lies else f"--ckpt PATH, as {entry['path']} is not there any more")
            + (" --no-ema" if entry["weights"] == "raw" else ""),
        )
    there, here = record["preset"]["task"].get("target"), preset.task.model_dump(mode="json").get("target")
    if there != here:
        raise UserError(
            f"--lora {lora.text}: was trained with task.target {there}, but {found} is used with {here}",
            f"draw with it alone: --ckpt {quoted(lora.path)}",
        )
    trained_as = presets.build(record["preset"], str(place)).task
    levels, used = (getattr(each, "schedule", None) for each in (trained_as, preset.task))
    if levels != used:
        notes.append(
            f"--lora {lora.text}: was trained with task.schedule {levels!r}, but {found} is used with {used!r}: noise levels and "
            f"times mean something else to it; as it was trained it is drawn with by --ckpt {quoted(lora.path)} alone"
        )
    contents = checkpoint.read_contents(place, "ema", record)
    parameters = {name for name, _ in task.named_parameters()}
    whole = {name: value for name, value in contents.tensors.items() if not of_change(name) and name in parameters}
    theirs = record.get("classes")
    if any(name.startswith("conditioners.") for name in whole) and theirs != identity.classes:
        raise UserError(
            f"--lora {lora.text}: was trained on the classes {theirs}, but {found} has {identity.classes}",
            f"draw with it alone: --ckpt {quoted(lora.path)}",
        )
    mixed = {name: part_way(name, tensors[name], value, lora) for name, value in whole.items()}
    result = added(tensors | mixed, changes_in(contents.tensors, place), lora.scale, f"--lora {lora.text}")
    return result, about | {"sha256": contents.sha256}


def part_way(name: str, before: Tensor, after: Tensor, lora: LoraWish) -> Tensor:
    """A parameter that a run has trained whole, as far towards it as the scale says."""
    if before.shape != after.shape:
        raise UserError(
            f"--lora {lora.text}: has a {name} of {list(after.shape)}, where the model has {list(before.shape)}",
            f"draw with it alone: --ckpt {quoted(lora.path)}",
        )
    return after if lora.scale == 1 else before + lora.scale * (after - before)


def ours(path: Path) -> bool:
    """Whether a path is a checkpoint of ours, and no file of other people's."""
    if not is_checkpoint(path):
        return path.is_dir() and bool(checkpoint.checkpoints(path))
    if path.is_dir():
        return True
    try:
        return checkpoint.HEADER in tensor_file.metadata(path)
    except (OSError, ValueError):
        return False


def warn(notes: Sequence[str]) -> None:
    """Says each."""
    for note in notes:
        warnings.warn(note, Note, stacklevel=3)
