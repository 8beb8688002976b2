"""`--prompt` and `--prompts`: the texts of a request, and the fields that the conditioners of a model are given of them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.data import captions
from diffcli.engine.draw.translation import Prior
from diffcli.engine.model import Model
from diffcli.tasks.conditioners.stored import IMAGE, EmbeddingConditioner
from diffcli.tasks.guide import Guide
from diffcli.tasks.task import Task

ANY = ""  # what a conditioner reads where nobody looks at what it says


def read_prompts(given: Sequence[str], file: Path | None) -> tuple[str, ...]:
    """Those of --prompt, then those of the file, UTF-8, one a line, blank lines skipped. Raises UserError where it has none."""
    if file is None:
        return tuple(map(captions.clean, given))
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"--prompts {file}: is not UTF-8 ({error.reason})", "save it as UTF-8 text") from error
    except OSError as error:
        hint = "give a text file with one prompt a line"
        raise UserError(f"--prompts {file}: cannot be read ({error.strerror})", hint) from error
    found = tuple(filter(None, map(captions.clean, lines)))
    if not found:
        raise UserError(f"--prompts {file}: holds no prompt", "write one prompt a line into it")
    return (*map(captions.clean, given), *found)


def takes_prompts(model: Model) -> bool:
    """Whether a conditioner of the model reads a field that a prompt can give."""
    return "text" in model.task.reads or bool(model.task.embeddings)


def prompt_fields(
    model: Model, prompts: Sequence[str], seeds: Sequence[int] = (), prior: Prior | None = None
) -> dict[str, Tensor | list[str]]:
    """Each field that the model's conditioners read of prompts, one row a prompt.

    seeds: one a row, for a `prior` that draws; it makes embeddings of images out of those of the prompts.
    """
    fields: dict[str, Tensor | list[str]] = {"text": list(prompts)} if "text" in model.task.reads else {}
    for conditioner in model.task.modules():
        if isinstance(conditioner, EmbeddingConditioner):
            embedding = conditioner.embed(prompts)
            drawn = prior is not None and IMAGE in conditioner.fields
            fields[conditioner.config.field] = prior(embedding, seeds) if drawn and prior else embedding
    return fields


def blank_fields(task: Task, n: int) -> dict[str, Tensor | list[str]]:
    """n rows that say nothing, for whoever looks at none of them."""
    text: dict[str, Tensor | list[str]] = {"text": [ANY] * n} if "text" in task.reads else {}
    return text | {name: torch.zeros(n, *shape) for name, shape in task.embeddings.items()}


def choose_prompts(
    model: Model, given: tuple[str, ...], n: int, interpolate: int | None, guidance: float, guide: Guide
) -> list[str] | None:
    """The prompt of each of n images, in turn; None where the model reads none, or is guided by its null branch alone."""
    if not takes_prompts(model):
        if given:
            raise UserError(
                f"--prompt {given[0]!r}: {model.path} was not trained on texts",
                "leave --prompt out, or give the checkpoint of a model with a conditioner of texts or embeddings",
            )
        return None
    if not given:
        if unconditional(guidance, guide):
            return None
        raise UserError(
            f"{model.path}: draws what a text says, and there is none",
            'say what, for example --prompt "...", or draw without any text: --guidance 0',
        )
    if interpolate is not None and len(given) > 1:
        raise UserError(
            f"--interpolate {interpolate} with {len(given)} prompts: the text must not change on the way",
            "give --prompt once",
        )
    return [given[i % len(given)] for i in range(n)]


def unconditional(guidance: float, guide: Guide) -> bool:
    """Whether only the null branch is asked: at scale 0, where nothing of the guide looks at the condition either."""
    return guidance == 0 and guide.weaker is None and guide.rescale == 0 and guide.interval is None
