"""The encoder of a trained or imported model, to store what it makes of captions as that model reads them."""

from pathlib import Path

from diffcli import checkpoint
from diffcli.config import UserError
from diffcli.encoders.encoder import Encoder
from diffcli.engine.model import without_weights
from diffcli.engine.records.encoder_records import promise
from diffcli.lookup.checkpoint_files import is_checkpoint

FLAG = "--encoder"


def encoder_of(path: Path, kind: str) -> Encoder | None:
    """The encoder of this kind, clip or t5, that the model at a path reads texts with; None where no model lies there.

    Bound to the weights that the model was trained with. Raises UserError where the model has none of this kind.
    """
    if not is_checkpoint(path.expanduser()):
        return None
    model = without_weights(path.expanduser())
    promise(model.task, checkpoint.read_record(model.path), model.path)
    encoders = [c.encoder for c in model.task.named_conditioners.values() if c.encoder is not None]
    found = next((encoder for encoder in encoders if encoder.config.kind == kind), None)
    if found is None:
        has = ", ".join(f"{encoder.config.kind} ({encoder.config.model})" for encoder in encoders) or "none"
        raise UserError(
            f"{FLAG} {path}: the model has no encoder of kind {kind}, which --embed asks for; it has {has}",
            "give --embed t5 for a t5, clip-tokens or clip for a clip, or the folder of an encoder",
        )
    return found
