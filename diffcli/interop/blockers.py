"""Reports all reasons against an export at once, because mending one at a time would need one training each."""

import re
from collections.abc import Callable, Iterable, Sequence

from diffcli.config import UserError

SET = re.compile(r"--set [^\s,;]+")


def refusals(checks: Iterable[Callable[[], object]]) -> list[UserError]:
    """The errors of the checks in order, each problem once."""
    found: dict[str, UserError] = {}
    for check in checks:
        try:
            check()
        except UserError as error:
            found.setdefault(error.problem, error)
    return list(found.values())


def demand_all(checks: Iterable[Callable[[], object]]) -> None:
    """Raises the errors of the checks as one UserError, with every problem and one remedy for all."""
    raise_joined(refusals(checks))


def raise_joined(errors: Sequence[UserError]) -> None:
    """Raises one UserError for several, if there are any. The --set items of their hints are joined."""
    if not errors:
        return
    if len(errors) == 1:
        raise errors[0]
    typed = dict.fromkeys(item for error in errors for item in SET.findall(error.hint))
    others = dict.fromkeys(error.hint for error in errors if not SET.search(error.hint))
    train = [f"train it with {' '.join(typed)}"] if typed else []
    problem = "; ".join(f"({n}) {error.problem}" for n, error in enumerate(errors, 1))
    raise UserError(f"{len(errors)} reasons prevent an export of this model: {problem}", "; ".join([*others, *train]))
