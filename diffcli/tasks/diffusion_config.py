"""The preset keys of a diffusion model in `task`, and checks that its parts fit together."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from diffcli.config import keys_agree
from diffcli.diffusion.coupling import Coupling
from diffcli.diffusion.denoiser import Denoiser, Target
from diffcli.diffusion.schedule import AnySchedule, Cosine, DiscreteSchedule
from diffcli.diffusion.times import AnyTimes, UniformTimes
from diffcli.diffusion.weights import L2, AnyDistance, AnyWeight, NoWeight
from diffcli.fields import LATENT, FieldKind, FieldSpec, Specs, check_buckets
from diffcli.networks.control import Controlled
from diffcli.networks.registry import AnyNetwork
from diffcli.tasks.codecs.latent import LatentCodecConfig
from diffcli.tasks.codecs.pixel import PixelCodecConfig
from diffcli.tasks.codecs.registry import AnyCodec, exchanged
from diffcli.tasks.conditioners.conditioner import cond_shape
from diffcli.tasks.conditioners.registry import AnyConditioner
from diffcli.tasks.conditioners.stored import IMAGE
from diffcli.tasks.control.control_config import ControlConfig, as_list, faults
from diffcli.tasks.control.controlled_task import ControlledTask
from diffcli.tasks.diffusion import DiffusionTask
from diffcli.tasks.guide import Drawing
from diffcli.tasks.objective import Objective
from diffcli.tasks.preserving import PRESERVED
from diffcli.tasks.task_config import TaskConfig, modelled

LEFTOVER_SIGNAL = 0.02  # alpha at t = 1 above which sampling from N(0, 1) visibly misses what training saw
IMAGES = "image"  # the field that data sets hold latents of
MODELLED: tuple[FieldKind, ...] = ("image", "mask", "clip")  # kinds of fields that lie on a grid


class DiffusionConfig(TaskConfig):
    """A diffusion model: the target of the network, the path, the conditions."""

    kind: Literal["diffusion"] = "diffusion"
    field: str = Field("image", description="the field of the data to model: an image, a mask or a clip")
    target: Target = Field(
        "v",
        description="what the network predicts: noise (eps), image (x0), a mixture (v), or the flow from one to the other",
    )
    learn_variance: bool = Field(False, description="also predict the variance of a step, in as many further channels")
    schedule: AnySchedule = Field(Cosine(), description="how image fades and noise grows with time")
    network: AnyNetwork = Field(description="the denoising network")
    conditioners: tuple[AnyConditioner, ...] = Field(
        (), description="conditions of the network: class, text, another picture"
    )
    drop_condition: float = Field(0.0, ge=0, lt=1, description="share of samples trained without their condition")
    codec: AnyCodec = Field(
        PixelCodecConfig(),
        description="the space in which noise is added: pixels, latents of a first stage, classes of a mask",
    )
    times: AnyTimes = Field(UniformTimes(), description="distribution of the times in training")
    weight: AnyWeight = Field(NoWeight(), description="of the loss at each time")
    distance: AnyDistance = Field(L2(), description="distance between prediction and target")
    coupling: Coupling = Field("none", description="pairing of noise and images; none: at random")
    preservation: float = Field(
        1.0, ge=0, description="weight of the loss on pictures of the class (data.preserve); 0: they are not read"
    )
    control: Annotated[tuple[ControlConfig, ...], BeforeValidator(as_list)] = Field(
        (), description="pictures that lead a trained model, which stays as it is: branches beside it are trained"
    )

    @keys_agree
    def _agree(self) -> Iterator[str]:
        if self.target == "eps" and self.schedule.leftover_signal == 0:
            yield (
                f"target 'eps' cannot give x0 at t = 1 on the {self.schedule.kind} schedule, where no signal is left; "
                "set task.target to flow, v or x0"
            )
        if self.learn_variance and not isinstance(self.schedule, DiscreteSchedule):
            yield (
                f"learn_variance needs a discrete schedule, {self.schedule.kind} has no steps; "
                "set task.learn_variance to false"
            )
        if self.drop_condition > 0 and not self.guided:
            yield (
                f"drop_condition is {self.drop_condition} but there are no conditioners that can be left out; "
                "set task.drop_condition to 0 or add one to task.conditioners"
            )

    @keys_agree
    def _frames_agree(self) -> Iterator[str]:
        places = [i for i, each in enumerate(self.conditioners) if each.kind == "frames"]
        for i in places:
            if (name := getattr(self.conditioners[i], "field", self.field)) != self.field:
                yield (
                    f"conditioners.{i} (frames) gives frames of '{name}', but the task models '{self.field}'; "
                    f"set task.conditioners.{i}.field to {self.field}"
                )
        if len(places) > 1:
            yield "conditioners has two of kind frames, which read one clip; name all patterns in given of one of them"

    @keys_agree
    def _controls_agree(self) -> None:
        if fault := faults(self.control, self.field):
            raise ValueError(fault)

    @keys_agree
    def _objective_agrees(self) -> None:
        self.objective.check(self.schedule)

    @property
    def guided(self) -> bool:
        """Whether there is a condition that can be left out, so that guidance has an unconditional branch."""
        return any(conditioner.droppable for conditioner in self.conditioners)

    @property
    def noun(self) -> str:
        return "a diffusion model"

    @property
    def objective(self) -> Objective:
        return Objective(self.times, self.weight, self.distance, self.coupling)

    def check_drawing(self, drawing: Drawing) -> Iterator[str]:
        if not any(c.kind == "embedding" and c.field == IMAGE for c in self.conditioners):
            yield from drawing.check_no_prior()
        yield from self.check_guide(drawing)
        yield from drawing.check_times(self.schedule)
        yield from drawing.check_variance(self.learn_variance)

    def check_guide(self, drawing: Drawing) -> Iterator[str]:
        """Yields a contradiction if guidance or `guide` do not fit the model."""
        return drawing.check_guide(self.codec.clip, self.guided, self.drop_condition)

    def check_buckets(self, sizes: Sequence[tuple[int, int]]) -> None:
        factor = 1
        if isinstance(self.codec, LatentCodecConfig):
            if self.codec.first_stage is None:
                return  # the size of a latent is not known yet
            stage = self.codec.first_stage.network
            factor = stage.downscale
            check_buckets(sizes, partial(stage.misfit, what=f"the downscale {factor} of the first stage"))
        self.network.check_buckets([(height // factor, width // factor) for height, width in sizes])

    def advice(self) -> list[str]:
        found = []
        if self.guided and self.drop_condition == 0 and "drop_condition" not in self.model_fields_set:
            found.append(
                "task.drop_condition is 0, so the model has no unconditional branch and --guidance will be refused; "
                "train with --set task.drop_condition=0.1 to have guidance"
            )
        if self.coupling != "none" and self.conditioners:
            found.append(
                f"task.coupling {self.coupling} pairs noise with images regardless of their condition, so each condition is "
                "trained on a part of the noise, but sampled from all of it"
            )
        if self.schedule.leftover_signal > LEFTOVER_SIGNAL:
            found.append(
                f"task.schedule {self.schedule.kind} leaves {self.schedule.leftover_signal:.3f} of the image at t = 1, but "
                "sampling starts from pure noise: overall brightness may drift towards grey"
            )
        return found

    def resolved(self) -> "DiffusionConfig":
        led = tuple(
            each.model_copy(update={"source": each.source and each.source.expanduser().absolute()})
            for each in self.control
        )
        conditioners = tuple(c.resolved() for c in self.conditioners)
        return self.model_copy(update={"conditioners": conditioners, "control": led})

    def for_drawing(self) -> "DiffusionConfig":
        return self.model_copy(update={"conditioners": tuple(c.for_drawing() for c in self.conditioners)})

    @property
    def leaves_classes_out(self) -> bool:
        return any(c.kind == "class" and c.num_classes is None for c in self.conditioners)

    def of_classes(self, count: int) -> "DiffusionConfig":
        known = tuple(c.of_classes(count) if c.kind == "class" else c for c in self.conditioners)
        return self.model_copy(update={"conditioners": known})

    def valueless(self) -> "DiffusionConfig":
        return self.model_copy(update={"times": UniformTimes(), "coupling": "none"})

    @property
    def models(self) -> str:
        return self.field

    @property
    def led_by(self) -> tuple[str, ...]:
        return tuple(each.field for each in self.control)

    @property
    def latents(self) -> LatentCodecConfig:
        """The codec of a model of latents."""
        assert isinstance(self.codec, LatentCodecConfig)
        return self.codec

    def stored(self, specs: Specs) -> FieldSpec | None:
        """The field of latents that is read in place of images; None if images are read."""
        latent = isinstance(self.codec, LatentCodecConfig) and self.field == IMAGES
        return specs.get(LATENT) if latent else None

    def build(self, specs: Specs) -> DiffusionTask:
        """The task for the field that it models, its weights drawn from torch's current generator."""
        stored = self.stored(specs)
        spec = (
            modelled(specs, self.field, MODELLED, partial(exchanged, self.codec))
            if stored is None
            else self.latents.pictures(stored)
        )
        codec = self.codec.build(spec)
        conditioners = [c.build() for c in self.conditioners]
        for i, each in enumerate(self.conditioners):
            if each.kind == "frames":
                each.check_patch(f"task.conditioners.{i}", codec.downscale)
        inner = codec.latent_shape(spec.sides)
        self.network.check_axes(inner)
        outputs = inner[0] * (2 if self.learn_variance else 1)
        width = cond_shape(conditioners)
        network = self.network.build(inner, outputs, width)
        rest = codec, conditioners, self.objective, self.drop_condition, self.field, spec, stored
        if not self.control:
            task = DiffusionTask(Denoiser(network, self.schedule, self.target, self.learn_variance), *rest)
            task.preservation = self.preservation if PRESERVED in specs and stored is None else 0.0
            return task
        readers = [each.reader(specs, f"task.control.{i}") for i, each in enumerate(self.control)]
        branches = [
            each.branch(self.network, inner, width, reader, codec.downscale)
            for each, reader in zip(self.control, readers, strict=True)
        ]
        led = Denoiser(Controlled(network, branches), self.schedule, self.target, self.learn_variance)
        return ControlledTask(led, *rest, readers=readers)
