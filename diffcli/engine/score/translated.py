"""The extractor `translation`: the embeddings that a prior makes of the texts of a reference, compared with the identity.

Row i is translated by the stream of seed + i, so nothing depends on batch size or number of processes.
"""

from collections.abc import Mapping
from typing import Any

from diffcli.config import UserError
from diffcli.data.loader import on_device
from diffcli.diffusion.samplers import Sampler
from diffcli.engine.draw.request import SampleOptions, check_steps, choose_sampler, overridden
from diffcli.engine.model import Model
from diffcli.engine.options.seeds import nth_seed
from diffcli.engine.score.sides import Side, own_side, resolve
from diffcli.fields import FieldSpec, Remedies, Specs, check_fields
from diffcli.metrics.extractor import Extracted
from diffcli.tasks.conditioners.slots import unit_variance
from diffcli.tasks.conditioners.stored import IMAGE, TEXT
from diffcli.tasks.guide import Guide
from diffcli.tasks.prior import DiffusionPriorConfig, PriorConfig, PriorTask, closeness

HINT = "give a set with stored embeddings: --ref SET:SPLIT, prepared with prep-data ... --embed clip"


class Translation:
    """Embeddings of texts and images, the prior's predictions, and the distance of text and prediction to the image.

    Raises UserError if the model is no prior, or if the sampling options do not fit it.
    """

    unit = "pairs"
    classes: tuple[str, ...] | None = None

    def __init__(self, model: Model, options: SampleOptions, metrics: str) -> None:
        if not isinstance(model.task, PriorTask):
            raise UserError(
                f"--metrics {metrics}: {model.path} is a {model.preset.task.kind} model, not a prior",
                "give the run of a prior, such as that of the preset clip-prior",
            )
        self.task, self.model, self.seed = model.task, model, options.seed
        self.sampler, self.guidance = drawn_by(model, options)
        self.limit = options.n
        self.notes: list[str] = []
        dim = self.task.dim
        self.reads: Specs = {name: FieldSpec("vector", (dim,)) for name in (TEXT, IMAGE)}
        near = [f"{who}{name}" for who in ("", "identity_") for name in ("cosine", "mse")]
        self.gives: Mapping[str, tuple[int, ...]] = {
            **dict.fromkeys(("text", "image", "predicted"), (dim,)),
            **dict.fromkeys(near, ()),
        }

    def check(self, name: str, fields: Specs) -> None:
        shape = f"--ref {name} was encoded by another encoder than the data of {self.model.path}; give one like that"
        check_fields(
            self.reads,
            fields,
            f"--ref {name}: --ckpt {self.model.path}",
            dict.fromkeys(self.reads, Remedies(HINT, HINT, shape)),
        )

    def __call__(self, fields: Mapping[str, Any], rows: range) -> Extracted:
        """`text`, `image` and `predicted` (B, D), scaled; `cosine`, `mse`, `identity_cosine`, `identity_mse` (B,)."""
        given = on_device({name: fields[name] for name in self.reads}, self.reads, next(self.task.parameters()).device)
        text, image = unit_variance(given[TEXT]), unit_variance(given[IMAGE])
        predicted = self.task.translate(text, [nth_seed(self.seed, i) for i in rows], self.sampler, self.guidance)
        identity = {f"identity_{name}": value for name, value in closeness(text, image).items()}
        return {"text": text, "image": image, "predicted": predicted, **closeness(predicted, image), **identity}

    def describe(self) -> dict[str, Any]:
        config = self.model.preset.task
        assert isinstance(config, PriorConfig)
        drawn = {
            "sampler": self.sampler.name,
            "steps": self.sampler.steps,
            "guidance": self.guidance,
            "seed": self.seed,
        }
        return {"network": config.network.kind} | (drawn if isinstance(config.network, DiffusionPriorConfig) else {})


def held_out(model: Model, ref: str | None) -> Side:
    """The reference of a prior: --ref SET:SPLIT, else the split `test` of its own data."""
    if ref is not None:
        return resolve(ref, size=model.preset.data.size)
    try:
        return own_side(model, "test")
    except UserError as error:
        raise UserError(error.problem, HINT) from None


def drawn_by(model: Model, options: SampleOptions) -> tuple[Sampler, float]:
    """Sampler and guidance of a prior: those of its own preset, with the sampling options applied. Raises UserError."""
    config = model.preset.task
    assert isinstance(config, PriorConfig)
    if not isinstance(config.network, DiffusionPriorConfig):
        flags = {"--sampler": options.sampler, "--steps": options.steps, "--ddim-eta": options.eta}
        flags |= {"--guidance": options.guidance, "--set": next(iter(options.overrides), None)}
        for flag, value in flags.items():
            if value is not None:
                raise UserError(
                    f"{flag} {value}: {model.path} is a regression, which draws nothing", f"leave {flag} out"
                )
        return model.preset.sampler, 1.0
    guidance = model.preset.guidance if options.guidance is None else options.guidance
    if guidance != 1 and not config.guided:
        raise UserError(
            f"--guidance {guidance:g}: {model.path} was trained with task.network.drop_condition 0, without a second branch",
            "use --guidance 1, which is off",
        )
    sampler = choose_sampler(model, options)
    if options.overrides:
        sampler = overridden(model, sampler, guidance, Guide(), options).sampler
    check_steps(sampler, options, config.network)
    return sampler, guidance
