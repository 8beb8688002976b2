"""Reports all reasons against an export at once, because mending one at a time would need one training each."""

import re
from collections.abc import Callable, Iterable, Sequence

from diffcli.config import UserError

SET = re.compile(r"--set (?:'[^']*'|[^\s,;]+)")


class Blocked(UserError):
    """Several things that keep a model from going out. parts: each alone."""

    parts: tuple[UserError, ...] = ()


def refusals(checks: Iterable[Callable[[], object]]) -> list[UserError]:
    """The errors of the checks in order, each problem once."""
    found: dict[str, UserError] = {}
    for check in checks:
        try:
            check()
        except UserError as error:
            for part in error.parts if isinstance(error, Blocked) else (error,):
                found.setdefault(part.problem, part)
    return list(found.values())


def demand_all(checks: Iterable[Callable[[], object]]) -> None:
    """Raises the errors of the checks as one UserError, with every problem and one remedy for all."""
    raise_joined(refusals(checks))


def raise_joined(errors: Sequence[UserError]) -> None:
    """Raises `joined`; nothing where there are none."""
    if errors:
        raise joined(errors)


def joined(errors: Sequence[UserError]) -> UserError:
    """One UserError of one or several. What their hints say to type with --set is put together."""
    if len(errors) == 1:
        return errors[0]
    typed = dict.fromkeys(item for error in errors for item in SET.findall(error.hint))
    others = dict.fromkeys(error.hint for error in errors if not SET.search(error.hint))
    train = [f"train it with {' '.join(typed)}"] if typed else []
    problem = "; ".join(f"({n}) {error.problem}" for n, error in enumerate(errors, 1))
    blocked = Blocked(f"{len(errors)} things keep this model from going out: {problem}", "; ".join([*others, *train]))
    blocked.parts = tuple(errors)
    return blocked
