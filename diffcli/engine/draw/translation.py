"""The embedding of an image that a prompt stands for: by `--prior RUN`, `--prior none`, or the key of the preset."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diffcli import checkpoint
from diffcli.config import UserError
from diffcli.engine.model import Model, load_model
from diffcli.tasks.conditioners.stored import IMAGE, TEXT, EmbeddingConditioner
from diffcli.tasks.prior import PriorTask
from diffcli.tasks.task import Task

IDENTITY = "none"  # for --prior: the text's embedding as it is, the baseline


@dataclass(frozen=True)
class Prior:
    """From text embeddings to image embeddings, both (B, D). model: a prior's checkpoint, None is the identity."""

    model: Model | None

    def __call__(self, text: Tensor, seeds: Sequence[int]) -> Tensor:
        """Draws with the sampler and guidance of the prior's preset; row i depends on seed i and its text alone."""
        if self.model is None:
            return text
        task, preset = self.model.task, self.model.preset
        assert isinstance(task, PriorTask)
        device = next(task.parameters()).device
        return task.translate(text.to(device), seeds, preset.sampler, preset.guidance)

    def describe(self) -> str | dict[str, Any]:
        """For the sidecar."""
        if self.model is None:
            return IDENTITY
        return self.model.describe()


def image_conditioners(task: Task) -> list[EmbeddingConditioner]:
    """The conditioners that read embeddings of images."""
    return [c for c in task.modules() if isinstance(c, EmbeddingConditioner) and IMAGE in c.reads]


def choose_prior(model: Model, named: str | None, needed: bool) -> Prior | None:
    """The prior of a request: --prior, else that of the preset. Raises UserError if the model needs one or cannot use it.

    needed: whether texts are the only condition that is given.
    """
    conditioners = image_conditioners(model.task)
    if named is not None and not conditioners:
        raise UserError(f"--prior {named}: {model.path} reads no embeddings of images", "leave --prior out")
    if named is None and not (needed and conditioners):
        return None
    wish = named or (str(model.preset.prior) if model.preset.prior else None)
    if wish is None:
        raise UserError(
            f"{model.path}: was trained on embeddings of images, but a prompt has that of a text",
            f"name a prior that leads from one to the other: --prior RUN, trained with --preset clip-prior (or the preset's key "
            f"prior); or take the text's embedding as it is: --prior {IDENTITY}",
        )
    if wish == IDENTITY:
        return Prior(None)
    prior = _load(wish, "--prior" if named else f"prior, of the preset of {model.path}", model)
    for conditioner in conditioners:
        check_prior(prior, model, conditioner)
    return Prior(prior)


def _load(wish: str, key: str, model: Model) -> Model:
    try:
        return load_model(Path(wish).expanduser(), model.device, precision=model.precision)
    except UserError as error:
        hint = f"name the run of a prior that is there: --prior RUN; or take the text's embedding as it is: --prior {IDENTITY}"
        raise UserError(f"{key}: {error.problem}", hint) from None


def check_prior(prior: Model, model: Model, conditioner: EmbeddingConditioner) -> None:
    """Raises UserError if it is no prior, or if its embeddings are not those that the model was trained on."""
    named, hint = f"--prior {prior.path}", "give a prior that was trained on embeddings of the model's own encoder"
    if not isinstance(prior.task, PriorTask):
        raise UserError(f"{named}: was trained as {prior.preset.task.noun}", "give a run of the preset clip-prior")
    if prior.task.dim != conditioner.config.width:
        widths = f"has embeddings of {prior.task.dim} values, those of {model.path} have {conditioner.config.width}"
        raise UserError(f"{named}: {widths}", hint)
    if not conditioner.config.normalize:
        raise UserError(
            f"{named}: gives embeddings of length sqrt(D), but {model.path} was trained on those of any length",
            "train the model with normalize: true in its conditioner of clip_image",
        )
    (made, sha), (seen, other) = (stored_by(m, f) for m, f in ((prior, TEXT), (model, IMAGE)))
    if sha is not None and other is not None and sha != other:
        raise UserError(
            f"{named}: was trained on embeddings of {made} ({sha[:12]}...), {model.path} on those of {seen} ({other[:12]}...)",
            hint,
        )
    if conditioner.encoder is not None:
        conditioner.encoder.promise(sha, f"the prior {prior.path}")


def stored_by(model: Model, field: str) -> tuple[str | None, str | None]:
    """The encoder that made a field of the data that a checkpoint was trained on, and the digest of its weights, where known."""
    note = checkpoint.read_record(model.path).get("encoders", {}).get(f"data.{field}", {})
    return note.get("model"), note.get("sha256")
