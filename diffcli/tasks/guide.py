"""The preset keys for sampling: sampler, guidance scale, prior, and the section `guide`, with the checks that tasks share."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from pydantic import Field
from torch import Tensor

from diffcli.config import Config, UserError, keys_agree
from diffcli.diffusion.denoiser import Denoise
from diffcli.diffusion.guidance import LogProb
from diffcli.diffusion.samplers import Ddpm, Sampler
from diffcli.diffusion.schedule import Schedule
from diffcli.diffusion.tiling import Tiles
from diffcli.diffusion.windows import Windows
from diffcli.fields import Batch


class Guide(Config):
    """The section `guide` of a preset, which `sample`, `gif` and `fid` change by --set guide.KEY=VALUE.

    Noise levels are sigma / alpha in units of diffusion space: those of EDM where images are in [-1, 1] there.
    """

    interval: tuple[float, float] | None = Field(
        None, description="lowest and highest sigma / alpha that is guided", examples=[[0.3, 3.0]]
    )
    rescale: float = Field(
        0.0,
        ge=0,
        le=1,
        description="how far the standard deviation of x0 is brought back to that of the conditional branch",
    )
    threshold: float | None = Field(
        None,
        gt=0,
        le=1,
        description="dynamic thresholding: quantile of the values of x0 to which they are clipped and rescaled",
    )
    channels: int | None = Field(
        None, ge=1, description="number of channels to guide, the first ones; all if left out", examples=[3]
    )
    weaker: Path | None = Field(None, description="checkpoint that takes the place of the unconditional branch")
    classifier: Path | None = Field(None, description="checkpoint of a noise-aware classifier")
    classifier_scale: float | None = Field(None, description="factor of the classifier's gradient; 1 if left out")

    @keys_agree
    def _agree(self) -> Iterator[str]:
        if self.interval is not None and not 0 <= self.interval[0] < self.interval[1]:
            yield (f"interval is {list(self.interval)}, not two rising noise levels from 0; write for example [0.3, 3]")
        if self.classifier_scale is not None and self.classifier is None:
            yield (
                f"classifier_scale is {self.classifier_scale} but there is no classifier; "
                "set guide.classifier to the run of one, or leave classifier_scale out"
            )

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
        """The guide without the settings that need a second branch, which scale 1 switches off."""
        kept = None if self.classifier is None else self.interval
        return self.model_copy(update={"weaker": None, "rescale": 0.0, "interval": kept, "channels": None})


class Branching(Protocol):
    """A denoising model that can take the place of the unconditional branch."""

    def branch(
        self, batch: Batch, n: int, conditional: bool = True, tiles: Tiles | Windows | None = None
    ) -> Denoise: ...


class Judging(Protocol):
    """A classifier of noisy images."""

    def log_prob(self, label: Tensor, schedule: Schedule, length: float) -> LogProb: ...


class Guiding(NamedTuple):
    """A Guide with its models loaded, on the device of the model that they guide."""

    guide: Guide = Guide()
    weaker: Branching | None = None
    classifier: Judging | None = None
    negative: Batch | None = None  # fields that the unconditional branch receives


class Drawing(NamedTuple):
    """The default settings of sampling: the keys sampler, guidance, guide and prior of a preset."""

    sampler: Sampler
    guidance: float = 1.0
    guide: Guide = Guide()
    prior: Path | None = None

    @property
    def named(self) -> dict[str, Path]:
        """The checkpoints of other runs that it names, by key of the preset."""
        guides = {f"guide.{key}": path for key, path in self.guide.models.items()}
        return guides if self.prior is None else guides | {"prior": self.prior}

    @property
    def preview_guidance(self) -> float:
        """The scale of previews, which use no other model: 1 if the second branch is that of guide.weaker."""
        return self.guidance if self.guide.weaker is None else 1.0

    def check_times(self, schedule: Schedule) -> Iterator[str]:
        """Yields a contradiction if the sampler needs times that the schedule lacks; otherwise the first preview would fail."""
        try:
            self.sampler.times(schedule)
        except UserError as error:
            yield f"{error.problem}; {error.hint.replace('--steps ', '--set sampler.steps=')}"

    def check_variance(self, learned: bool) -> Iterator[str]:
        """Yields a contradiction if the sampler uses a learned variance that the model does not have."""
        if isinstance(self.sampler, Ddpm) and self.sampler.variance == "learned" and not learned:
            yield (
                "sampler.variance is 'learned' but task.learn_variance is false; set sampler.variance to small or large"
            )

    def check_guide(self, bounded: bool, conditional: bool, drop_condition: float) -> Iterator[str]:
        """Yields a contradiction if guidance needs an untrained branch, or if a key of `guide` has no effect.

        bounded: whether x0 has a range. conditional: whether the model has conditions. drop_condition: that of its training.
        """
        guide, scale = self.guide, self.guidance
        if guide.threshold is not None and not bounded:
            yield (
                f"guide.threshold is {guide.threshold} but task.codec.clip is false, so x0 has no range to be kept to; "
                "leave guide.threshold out"
            )
        if scale == 1:
            idle = [key for key in Guide.model_fields if getattr(guide, key) != getattr(guide.unscaled(), key)]
            if idle:
                yield (
                    f"guide.{idle[0]} is {getattr(guide, idle[0])} but guidance is 1, which is off; "
                    f"set guidance to 2, say, or leave guide.{idle[0]} out"
                )
        elif guide.weaker is None and not conditional:
            yield (
                f"guidance is {scale} but the model is unconditional; leave guidance at 1, or name a guide.weaker model"
            )
        elif guide.weaker is None and drop_condition == 0:
            yield (
                f"guidance is {scale} but task.drop_condition is 0, so the unconditional branch was never trained; "
                "set task.drop_condition to 0.1 or guidance to 1, or name a guide.weaker model"
            )

    def check_unguided(self, kind: str) -> Iterator[str]:
        """Yields a contradiction if guidance is set for a task of this kind, which has one branch."""
        if self.guidance != 1:
            yield f"guidance is {self.guidance} but task.kind is '{kind}'; leave guidance at 1"

    def check_no_guide(self, kind: str) -> Iterator[str]:
        """Yields a contradiction for a section `guide` in the preset of a task that draws no images."""
        if self.guide != Guide():
            yield f"guide is given but task.kind is '{kind}'; leave guide out"

    def check_no_prior(self) -> Iterator[str]:
        """Yields a contradiction if a prior is named and no conditioner reads its output."""
        if self.prior is not None:
            yield f"prior is {self.prior} but no conditioner reads clip_image; leave prior out"
