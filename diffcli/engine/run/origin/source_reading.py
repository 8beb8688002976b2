"""The model that a run starts from: its task without weights, and the tensors that the run may take."""

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from diffcli import checkpoint
from diffcli.config import UserError, quoted
from diffcli.engine import control_reading
from diffcli.engine.loading import completed
from diffcli.engine.lora.lora_weights import used_weights
from diffcli.engine.model import Model, without_weights
from diffcli.lookup import preset_files
from diffcli.tasks.diffusion_config import DiffusionConfig
from diffcli.tasks.starting_point import StartingPoint

KEY = "from"  # of a preset, and of a checkpoint's record
FLAG = "--from"


class SourceModel(NamedTuple):
    """A model to start from. tensors: of its task, by key; sha256: of the file that the trained ones are from."""

    model: Model
    tensors: dict[str, Tensor]
    sha256: str

    def record(self, weights: str) -> dict[str, Any]:
        """What the checkpoints of a run say of where it started."""
        return {"path": str(self.model.path), "sha256": self.sha256, "step": self.model.step, "weights": weights}


def described(start: StartingPoint) -> Model:
    """The model at a path, of which no weight is read. Raises UserError where there is none, or it has not such weights."""
    path = start.path.expanduser()
    if not path.exists():
        raise UserError(f"{KEY}: {path} does not exist", to_train(path))
    try:
        model = without_weights(path)
    except UserError as error:
        raise UserError(f"{KEY}: {error.problem}", error.hint, error.also) from error
    record = checkpoint.read_record(model.path)
    if isinstance(model.preset.task, DiffusionConfig) and model.preset.task.control:
        led = record.get(control_reading.RECORD) or {}
        raise UserError(
            f"{KEY}: {model.path} is led by pictures, and what a run begins from is not",
            f"name the model that it leads: {quoted(str(led.get('from')))}; to lead it by other pictures set task.control.from",
        )
    if start.weights == "raw" and not checkpoint.holds("task", model.path, record):
        raise UserError(
            f"{KEY}: {model.path} holds an average only, and weights is raw",
            "use --from-weights ema, or give the run itself",
        )
    return model


def read(start: StartingPoint) -> SourceModel:
    """The same with its weights. Raises UserError where they are damaged."""
    model = described(start)
    record = checkpoint.read_record(model.path)
    if model.base is not None:  # low-rank changes, which are merged into the model that they change
        try:
            used = used_weights(model.task, model.preset, model.path, record, start.weights == "ema")
        except UserError as error:  # `train` has no --base
            merging = f"diffcli export {quoted(model.path)} --base PATH --merge --out DIR"
            raise UserError(f"{KEY}: {error.problem}", f"{merging}, and begin from DIR") from error
        return SourceModel(model, used.tensors, used.sha256)
    first, second = ("ema", "task") if start.weights == "ema" else ("task", "ema")
    contents = checkpoint.read_contents(model.path, first, record)
    tensors = dict(contents.tensors)
    if not model.task.state_dict().keys() <= tensors.keys() and checkpoint.holds(second, model.path, record):
        # frozen networks stand in one of the files alone, and so do those that sampling does not need
        tensors = completed(model.task, tensors, checkpoint.read_part(model.path, second, record))
    return SourceModel(model, tensors, contents.sha256)


def to_train(path: Path) -> str:
    """What to type where nothing stands at a path: the command that trains it, where its folder has the name of a preset."""
    if path.name in preset_files.available():
        return f"train it first: diffcli train --preset {path.name} --run-dir {path}"
    return "give a run, a checkpoint folder, or what diffcli import wrote"
