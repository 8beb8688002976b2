"""A preset that leaves out what it leads: all that it does not say of the model is that of the checkpoint in `task.control.from`.

A preset that names `task.network` says everything itself; whether it agrees with the checkpoint is looked at when a run begins.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffcli import checkpoint
from diffcli.config import UserError
from diffcli.tasks.control.control_config import as_list

KEY = "task.control.from"
DRAWING = ("sampler", "guidance", "guide", "prior")  # of a preset, beside its task
OWN = ("control",)  # keys of the task that are no matter of the model


def filled(tree: dict[str, Any]) -> dict[str, Any]:
    """The raw tree of a preset, whose `task.control` becomes a list, completed from what it leads where it names no network.

    Raises UserError where there is no checkpoint to complete it from, or one of another kind.
    """
    task = tree.get("task")
    if not isinstance(task, Mapping) or not task.get("control"):
        return tree
    controls = as_list(task["control"])
    task = {**task, "control": controls}
    places = [each.get("from") for each in controls if isinstance(each, Mapping)] if isinstance(controls, list) else []
    place = next((each for each in places if isinstance(each, str | Path)), None)
    if "network" in task or place is None:
        return {**tree, "task": task}
    led = preset_of(Path(place))
    base = {key: value for key, value in led["task"].items() if key not in OWN}
    drawing = {key: led[key] for key in DRAWING if key in led}
    return drawing | {**tree, "task": base | task}


def preset_of(path: Path) -> dict[str, Any]:
    """The raw preset in the record of a checkpoint that is led. Raises UserError where there is none of a diffusion model."""
    try:
        record = checkpoint.read_record(checkpoint.locate(path.expanduser()))
    except UserError as error:
        raise UserError(f"{KEY}: {error.problem}", error.hint) from None
    led = record.get("preset")
    task = led.get("task") if isinstance(led, Mapping) else None
    if not isinstance(led, Mapping) or not isinstance(task, Mapping) or task.get("kind") != "diffusion":
        kind = task.get("kind") if isinstance(task, Mapping) else None
        raise UserError(
            f"{KEY}: {path} was trained as {kind}, not as a diffusion model", "name the run of a diffusion model"
        )
    if task.get("control"):
        own = as_list(task["control"])[0].get("from")
        raise UserError(
            f"{KEY}: {path} is led by pictures itself",
            f"name the model that it leads: {own}; branches of several runs are joined by `diffcli sample --control RUN`",
        )
    return dict(led)
