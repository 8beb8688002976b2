"""Low-rank changes in training: which layers get them, what stays as it is, and which tensors a checkpoint then holds."""

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from diffcli.config import UserError
from diffcli.encoders.learned_words import LearnedWords, of_word
from diffcli.networks.lora import Lora, attach, matches, of_change
from diffcli.preset import Preset, TrainConfig
from diffcli.tasks.diffusion_config import DiffusionConfig
from diffcli.tasks.task import Task

KEY = "train.lora"
WORD = "train.embedding"


def changing(cfg: TrainConfig) -> str | None:
    """The key that makes a run one of changes: what it does not train stays that of its base, of which it stores nothing."""
    return KEY if cfg.lora is not None else WORD if cfg.embedding is not None else None


def check_base(preset: Preset) -> None:
    """Raises UserError where a preset wants changes of a model and names none that they change, or one that is led."""
    key = changing(preset.train)
    if key is None:
        return
    if isinstance(preset.task, DiffusionConfig) and preset.task.control:
        raise UserError(
            f"{key} is set, but with task.control the branches are trained, and the model stays as it is",
            f"train one in a run: --set {key}=null; `diffcli sample MODEL --lora RUN --control RUN` takes both",
        )
    if preset.origin is None:
        raise UserError(
            f"{key} is set, but {preset.name} begins from no model that it could change",
            "name one: --from RUN, or `from: RUN` in the preset",
        )


def adapt(task: Task, cfg: TrainConfig, networks: Collection[str]) -> list[str]:
    """Gives a task, whose networks of these names are trained, the changes that its preset wants; the names of their layers.

    Drawn from torch's generator, so before the task is moved to its device. Raises UserError as `attach` does.
    """
    if cfg.lora is None:
        return []
    return attach(parts(task, networks), cfg.lora, KEY)


def parts(task: Task, networks: Collection[str]) -> dict[str, nn.Module]:
    """The modules of the networks with these names, by where they lie in the task, each once."""
    names = {id(module): name for name, module in task.named_modules()}
    return {names[id(n.module)]: n.module for n in task.networks if n.name in networks and id(n.module) in names}


def kept_constant(task: Task, cfg: TrainConfig) -> frozenset[str]:
    """The parameters that stay as they are in a run of changes: all but the changes, a new word, and what `whole` names.

    Raises UserError where a pattern of `whole` names none.
    """
    if changing(cfg) is None:
        return frozenset()
    names = [name for name, _ in task.named_parameters() if not of_change(name) and not of_word(name)]
    whole = cfg.lora.whole if cfg.lora else ()
    for pattern in whole:
        if not any(covers(pattern, name) for name in names):
            raise UserError(
                f"{KEY}.whole: '{pattern}' matches no parameter of the model",
                f"name some, as {', '.join(names[:4])}, or leave it out",
            )
    return frozenset(name for name in names if not any(covers(pattern, name) for pattern in whole))


def covers(pattern: str, name: str) -> bool:
    """Whether a pattern is the name of a parameter, of a module around it, or the end of either."""
    return matches(name, pattern) or matches(name, f"{pattern}.*")


def held(task: Task) -> set[str]:
    """The keys that a checkpoint of changes holds: those of changes and of `whole`, frozen or not; its base has all else."""
    constant = task.keys_of(task.still) | task.inherited
    return {name for name in task.state_dict() if name not in constant}


def to_write(task: Task, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a task that a file holds: all, or, where the task is a changed base, those that are not the base's."""
    if not any(isinstance(module, Lora | LearnedWords) for module in task.modules()):
        return dict(tensors)
    kept = held(task)
    return {name: tensor for name, tensor in tensors.items() if name in kept}
