"""What is said of guidance beside its scale: where it acts, how far it may go, and which other models it asks."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field, model_validator

from diffcli.config import Config
from diffcli.tasks.classifier import ClassifierTask

if TYPE_CHECKING:
    from diffcli.tasks.diffusion import DiffusionConfig, DiffusionTask


class Guide(Config):
    """The section `guide` of a preset, which `sample`, `gif` and `fid` change by --set guide.KEY=VALUE.

    Noise levels are sigma / alpha in units of diffusion space: those of EDM where images are in [-1, 1] there.
    """

    interval: tuple[float, float] | None = Field(None, description="lowest and highest sigma / alpha that is guided")
    rescale: float = Field(0.0, ge=0, le=1, description="how far x0's deviation is drawn back to the conditional one's")
    threshold: float | None = Field(
        None, gt=0, le=1, description="share of x0's values that is not clipped, but shrunk"
    )
    weaker: Path | None = Field(None, description="checkpoint that takes the place of the unconditional branch")
    classifier: Path | None = Field(None, description="checkpoint of a noise-aware classifier")
    classifier_scale: float | None = Field(None, description="factor of the classifier's gradient; 1 where left out")

    @model_validator(mode="after")
    def _agree(self) -> "Guide":
        if self.interval is not None and not 0 <= self.interval[0] < self.interval[1]:
            raise ValueError(
                f"interval is {list(self.interval)}, not two rising noise levels from 0; write for example [0.3, 3]"
            )
        if self.classifier_scale is not None and self.classifier is None:
            raise ValueError(
                f"classifier_scale is {self.classifier_scale} but there is no classifier; "
                "set guide.classifier to the run of one, or leave classifier_scale out"
            )
        return self

    @property
    def pull(self) -> float:
        """The factor of the classifier's gradient."""
        return 1.0 if self.classifier_scale is None else self.classifier_scale

    @property
    def models(self) -> dict[str, Path]:
        """The checkpoints that it names, by key."""
        named = {"weaker": self.weaker, "classifier": self.classifier}
        return {key: path for key, path in named.items() if path is not None}

    def unscaled(self) -> "Guide":
        """What is left of it where the scale is 1, which switches the second branch off."""
        kept = None if self.classifier is None else self.interval
        return self.model_copy(update={"weaker": None, "rescale": 0.0, "interval": kept})


class Guiding(NamedTuple):
    """A Guide with its models loaded, on the device of the model that they guide."""

    guide: Guide = Guide()
    weaker: "DiffusionTask | None" = None
    classifier: ClassifierTask | None = None


def check_guide(scale: float, guide: Guide, task: "DiffusionConfig") -> None:
    """Raises ValueError where guidance asks for a branch that nobody has learned, or says how to do what it does not do."""
    if guide.threshold is not None and not task.codec.clip:
        raise ValueError(
            f"guide.threshold is {guide.threshold} but task.codec.clip is false, so x0 has no range to be kept to; "
            "leave guide.threshold out"
        )
    if scale == 1:
        idle = [key for key in Guide.model_fields if getattr(guide, key) != getattr(guide.unscaled(), key)]
        if idle:
            raise ValueError(
                f"guide.{idle[0]} is {getattr(guide, idle[0])} but guidance is 1, which is off; "
                f"set guidance to 2, say, or leave guide.{idle[0]} out"
            )
    elif guide.weaker is None and not task.conditioners:
        raise ValueError(
            f"guidance is {scale} but the model is unconditional; leave guidance at 1, or name a guide.weaker model"
        )
    elif guide.weaker is None and task.drop_condition == 0:
        raise ValueError(
            f"guidance is {scale} but task.drop_condition is 0, so the unconditional branch was never trained; "
            "set task.drop_condition to 0.1 or guidance to 1, or name a guide.weaker model"
        )
