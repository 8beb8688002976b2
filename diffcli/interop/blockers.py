"""All that keeps a model from going out, told at once: each thing mended alone would cost a training."""

import re
from collections.abc import Callable, Iterable, Sequence

from diffcli.config import UserError

SET = re.compile(r"--set [^\s,;]+")


def refusals(checks: Iterable[Callable[[], object]]) -> list[UserError]:
    """What the checks raise, each problem once, in their order."""
    found: dict[str, UserError] = {}
    for check in checks:
        try:
            check()
        except UserError as error:
            found.setdefault(error.problem, error)
    return list(found.values())


def demand_all(checks: Iterable[Callable[[], object]]) -> None:
    """Raises what the checks raise as one UserError: every problem, and what to type for all of them."""
    raise_joined(refusals(checks))


def raise_joined(errors: Sequence[UserError]) -> None:
    """One UserError of several; nothing where there are none. What a hint says to type with --set is put together."""
    if not errors:
        return
    if len(errors) == 1:
        raise errors[0]
    typed = dict.fromkeys(item for error in errors for item in SET.findall(error.hint))
    others = dict.fromkeys(error.hint for error in errors if not SET.search(error.hint))
    train = [f"train it with {' '.join(typed)}"] if typed else []
    problem = "; ".join(f"({n}) {error.problem}" for n, error in enumerate(errors, 1))
    raise UserError(f"{len(errors)} things keep this model from going out: {problem}", "; ".join([*others, *train]))
