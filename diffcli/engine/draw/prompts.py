"""`--prompt` and `--prompts`: texts as conditions, and the fields that the conditioners of a model make of them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffcli.config import UserError
from diffcli.data import captions
from diffcli.engine.draw.conditions import Conditions, condition_specs
from diffcli.engine.draw.sampling import SampleOptions
from diffcli.engine.draw.translation import Prior, choose_prior
from diffcli.engine.model import Model
from diffcli.engine.options.record_checks import without_texts
from diffcli.fields import Batch, Specs
from diffcli.tasks.conditioners.stored import IMAGE, EmbeddingConditioner
from diffcli.tasks.guide import Guide


@dataclass(frozen=True)
class Prompts(Conditions):
    """Texts; image i takes text i mod K, encoded by the model's conditioners.

    prior: makes embeddings of images from those of the texts, for models that read such.
    """

    model: Model
    texts: tuple[str, ...]
    prior: Prior | None = None

    @property
    def specs(self) -> Specs:
        return prompted(self.model)

    @property
    def images(self) -> int:
        return len(self.texts)

    def fields(self, rows: range, seeds: Sequence[int]) -> Batch:
        texts = self.captions(rows, seeds)
        fields: dict[str, Tensor | list[str]] = {"text": texts} if "text" in self.model.task.reads else {}
        for conditioner in self.model.task.modules():
            if isinstance(conditioner, EmbeddingConditioner):
                embedding = conditioner.embed(texts)
                if self.prior is not None and IMAGE in conditioner.reads:
                    embedding = self.prior(embedding, seeds).cpu()
                fields[conditioner.config.field] = embedding
        return fields

    def captions(self, rows: range, seeds: Sequence[int]) -> list[str]:
        return [self.texts[i % len(self.texts)] for i in rows]

    def describe(self, rows: range, seeds: Sequence[int]) -> dict[str, Any]:
        return {
            "prompts": self.captions(rows, seeds),
            "prior": None if self.prior is None else self.prior.describe(),
        }


def prompted(model: Model) -> Specs:
    """The fields of the model that a prompt can give: texts, and embeddings of them."""
    return {name: spec for name, spec in condition_specs(model).items() if spec.kind in ("text", "vector", "tokens")}


def choose_prompts(
    model: Model, options: SampleOptions, guidance: float, guide: Guide, values: Collection[str] = ()
) -> Prompts | None:
    """The prompts of a request; None if the model reads none, or if only its unconditional branch is evaluated.

    values: the fields that are given in other ways.
    """
    given = options.prompts
    if not prompted(model):
        if given:
            raise without_texts("--prompt", given[0], model.path)
        choose_prior(model, options.prior, needed=False)
        return None
    if not given:
        if not prompted(model).keys() - values or unconditional(guidance, guide):
            choose_prior(model, options.prior, needed=False)
            return None
        raise UserError(
            f"{model.path}: needs a text, and there is none",
            'give one, for example --prompt "...", or draw without any text: --guidance 0',
        )
    if options.interpolate is not None and len(given) > 1:
        raise UserError(
            f"--interpolate {options.interpolate} with {len(given)} prompts: the text must not change on the way",
            "give --prompt once",
        )
    return Prompts(model, given, choose_prior(model, options.prior, needed=True))


def choose_negative(
    model: Model, options: SampleOptions, guidance: float, guide: Guide, prompts: Prompts | None
) -> Prompts | None:
    """--negative-prompt, for every image of a request: a text for the unconditional branch.

    Raises UserError if the model reads no texts, or if that branch is not evaluated.
    """
    text = options.negative_prompt
    if text is None:
        return None
    flag = f"--negative-prompt {text!r}"
    if not prompted(model):
        raise without_texts("--negative-prompt", text, model.path)
    if guidance == 1:
        raise UserError(
            f"{flag} with --guidance 1, which evaluates the prompt alone",
            "give --guidance above 1, which leads away from what the negative prompt says",
        )
    if guide.weaker is not None:
        raise UserError(
            f"{flag}: guide.weaker {guide.weaker} takes the place of the branch that would read it",
            "leave out --negative-prompt, or --set guide.weaker=null",
        )
    prior = prompts.prior if prompts is not None else choose_prior(model, options.prior, needed=True)
    return Prompts(model, (captions.clean(text),), prior)


def unconditional(guidance: float, guide: Guide) -> bool:
    """Whether only the unconditional branch is evaluated: at scale 0, if the guide does not read the condition either."""
    return guidance == 0 and guide.weaker is None and guide.rescale == 0 and guide.interval is None
