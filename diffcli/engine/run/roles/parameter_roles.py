"""Single parameters that a run keeps as they are, or trains at a rate of their own: `train.freeze` and `train.lr_scale`.

Both name parameters as the state dict of the task does, `denoiser.network.stem.weight`. A pattern with * stands for all that it
fits, the name of a module for all below it, and what stands before the first dot may be left out: `network.down` and
`denoiser.network.down.*` are the same. In `train.freeze` a pattern with ! before it takes out of what those before it name:
`["*", "!*.temporal.*"]` freezes all but the layers over time.
"""

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from torch import nn

from diffcli.config import UserError, closest
from diffcli.preset import TrainConfig
from diffcli.tasks.task import Phase, Task

SHOWN = 8  # names in a hint


def frozen_names(task: Task, cfg: TrainConfig) -> frozenset[str]:
    """The names of the parameters that `train.freeze` makes constants. Raises UserError where a pattern fits none."""
    names = [name for name, _ in task.named_parameters()]
    found: set[str] = set()
    for pattern in cfg.freeze:
        named = fitting(pattern.removeprefix("!"), names, "train.freeze")
        found = found.difference(named) if pattern.startswith("!") else found.union(named)
    return frozenset(found)


def rate_factors(task: Task, cfg: TrainConfig) -> dict[nn.Parameter, float]:
    """What `train.lr_scale` multiplies the rate of single parameters with. Raises UserError where a pattern fits none."""
    names = [name for name, _ in task.named_parameters()]
    found = {name: f for pattern, f in cfg.lr_scale.items() for name in fitting(pattern, names, "train.lr_scale")}
    return {task.get_parameter(name): factor for name, factor in found.items()}


def check_parameters(task: Task, phases: tuple[Phase, ...], cfg: TrainConfig) -> None:
    """Raises UserError where a phase of a task that is frozen as `cfg` says has nothing to train, or a factor acts on nothing."""
    for phase in phases:
        if not task.trained_in(phase.networks):
            raise UserError(
                f"train.freeze is {list(cfg.freeze)}, which leaves the phase {phase.name} nothing to train",
                "freeze less, for example --set 'train.freeze=[]'; parts are "
                + ", ".join(
                    parts(name for name, p in task.named_parameters() if p.requires_grad or name in task.fixed)
                ),
            )
    rate_factors(task, cfg)
    trained = [name for name, p in task.named_parameters() if p.requires_grad]
    for pattern, factor in cfg.lr_scale.items():
        if not any(fits(pattern, name) for name in trained):
            raise UserError(
                f"train.lr_scale names '{pattern}' with {factor:g}, but all that fits it is frozen",
                f"leave it out, or name what is trained, of {', '.join(parts(trained))}",
            )


def fitting(pattern: str, names: list[str], key: str) -> list[str]:
    """The names that a pattern fits. Raises UserError, naming the key, where there is none."""
    found = [name for name in names if fits(pattern, name)]
    if not found:
        raise UserError(f"{key}: '{pattern}' fits no parameter of the model", _meant(pattern, names))
    return found


def fits(pattern: str, name: str) -> bool:
    """Whether a pattern names a parameter, or a module that it lies in; see the module."""
    return any(fnmatchcase(each, pattern) or fnmatchcase(each, f"{pattern}.*") for each in _forms(name))


def parts(names: Iterable[str], depth: int = 3) -> list[str]:
    """The modules, at most so many names deep, that parameters of these names lie in."""
    return list(dict.fromkeys(".".join(name.split(".")[:-1][:depth]) or name for name in names))


def _forms(name: str) -> Iterator[str]:
    """A name as the state dict has it, and without its first part."""
    yield name
    if "." in name:
        yield name.partition(".")[2]


def _meant(pattern: str, names: list[str]) -> str:
    """What to type in the place of a pattern that fits nothing."""
    modules = dict.fromkeys(".".join(name.split(".")[:depth]) for name in names for depth in range(1, 6))
    forms = dict.fromkeys(form for module in modules for form in _forms(module))
    close = closest(pattern.rstrip("*").rstrip("."), forms)
    there = parts(names)
    shown = ", ".join(there[:SHOWN]) + ", ..." * (len(there) > SHOWN)
    return f"choose of {shown}" + ("" if close is None else f" (did you mean '{close}'?)")
