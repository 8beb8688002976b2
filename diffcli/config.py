"""The base of all configs, and the errors and notes for users; every layer may import it.

A `Config` is an immutable, validated record; unknown keys are errors. A `UserError` is a mistake of the user: it prints as
one `error:` line (what is wrong, with the file, key or flag and the value found) and one `hint:` line (what to type), further
mistakes of the same file as one `also:` line each.
A `Note` is information that stops nothing.
"""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationInfo, model_validator
from pydantic_core import CoreSchema

LONGEST_LIST = 64  # values that a person writes in one key

C = TypeVar("C", bound=BaseModel)
Check = Callable[[Any], Iterable[str] | None]


class Record(BaseModel):
    """Base of records that programs write and read: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class Agreement(NamedTuple):
    """A config whose keys contradict each other, and the check that finds how."""

    config: BaseModel
    check: Check

    @property
    def contradictions(self) -> list[str]:
        """What the check says, as far as it comes: a key that the config lacks ends it."""
        found: list[str] = []
        try:
            for each in self.check(self.config) or ():
                found.append(each)  # one by one: these stay where the check ends with an error
        except ValueError as error:
            found.append(str(error))
        except AttributeError:
            pass
        return found


def keys_agree(check: Callable[[C], Iterable[str] | None]) -> Any:
    """Makes a method a check of keys against each other, which runs once each key is right by itself.

    The method yields "what is wrong; what to do" for each contradiction, or raises one as ValueError. The first one refuses the
    config, unless the validation's context is a list, which gets an `Agreement` for each check that found any.
    """

    def checked(self: C, info: ValidationInfo) -> C:
        agreement = Agreement(self, check)
        if found := agreement.contradictions:
            if not isinstance(info.context, list):
                raise ValueError(found[0])
            info.context.append(agreement)
        return self

    return model_validator(mode="after")(checked)


class Config(Record):
    """Base of every component that a user may configure.

    Its JSON schema describes each key by the description of the field, its own or that of a base class; `kind` by the docstring
    of the class.
    """

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler(core)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for name in [name for name, node in properties.items() if "description" not in node]:
            fields = (getattr(base, "model_fields", {}).get(name) for base in cls.__mro__)
            texts = (field.description for field in fields if field is not None)
            if words := next(filter(None, texts), _first_sentence(cls) if name == "kind" else None):
                properties[name]["description"] = words
        return schema

    @model_validator(mode="before")
    @classmethod
    def _a_switch_is_no_number(cls, given: Any) -> Any:
        """Lets `batch_size: yes` fail as a number: YAML reads it as true."""
        if not isinstance(given, Mapping):
            return given
        hidden = {name: no_switch(value) for name, value in given.items()}
        changed = {name: value for name, value in hidden.items() if value is not given[name] and cls._counts(name)}
        return {**given, **changed} if changed else given

    @classmethod
    def _counts(cls, name: str) -> bool:
        """Whether a field takes numbers and no switch."""
        kinds = _kinds_in(cls.model_fields[name].annotation) if name in cls.model_fields else []
        numbers = any(kind in (int, float) or type(kind) is int for kind in kinds)  # 1 and 3 of Literal[1, 3]
        return numbers and not any(kind in (bool, Any, object) for kind in kinds)


def _first_sentence(thing: type) -> str:
    text = " ".join((thing.__doc__ or "").partition("\n\n")[0].split())
    return text.partition(". Source:")[0].rstrip(".:")


class _Switch:
    """True or False in place of a number; prints as such and fails validation as a number."""

    def __init__(self, value: bool) -> None:
        self.value = value

    def __repr__(self) -> str:
        return repr(self.value)


def no_switch(value: Any) -> Any:
    """A value, or a list of values, in which true and false fail as numbers, which pydantic would take for 1 and 0."""
    if isinstance(value, bool):
        return _Switch(value)
    few = isinstance(value, list | tuple) and len(value) <= LONGEST_LIST
    return [no_switch(each) for each in value] if few and any(isinstance(each, bool) for each in value) else value


def _kinds_in(annotation: Any) -> list[Any]:
    """The types that an annotation is made of."""
    return [annotation, *chain.from_iterable(_kinds_in(part) for part in get_args(annotation))]


class UserError(Exception):
    """A mistake that the user can mend; shown as an `error:` and a `hint:` line, without a traceback, exit code 2.

    also: further mistakes, each with its remedy on one line.
    """

    exit_code = 2

    def __init__(self, problem: str, hint: str, also: Sequence[str] = ()) -> None:
        super().__init__("\n".join([problem, f"hint: {hint}", *(f"also: {other}" for other in also)]))
        self.problem = problem
        self.hint = hint
        self.also = tuple(also)

    def __reduce__(self) -> tuple[Any, ...]:
        """Exceptions are rebuilt from their text, which is not what a subclass's __init__ takes; workers send them whole."""
        return _revive, (type(self), self.args, self.__dict__)


def _revive(kind: type[UserError], args: tuple[Any, ...], state: dict[str, Any]) -> UserError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class Note(UserWarning):
    """Information that is no mistake: `warnings.warn(text, Note)` is shown as a `note:` line."""


class RunFailed(UserError):
    """Work that failed without a mistake of the user (a diverged loss, a killed worker); exit code 1."""

    exit_code = 1


class ImageShape(NamedTuple):
    """Shape of one image or latent: channels, height, width."""

    channels: int
    height: int
    width: int


def quoted(argument: Path | str) -> str:
    """A path or setting as one word of a shell command, for hints."""
    return shlex.quote(str(argument))


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`did you mean 'b'? Choose one of a, b, c`; the guess only if a name is similar."""
    choices = list(choices)
    guess, listed = closest(word, choices), ", ".join(choices)
    return f"choose one of {listed}" if guess is None else f"did you mean '{guess}'? Choose one of {listed}"


def closest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that a misspelt word may mean; None where none is similar."""
    names = {choice.lower(): choice for choice in choices}
    close = get_close_matches(word.lower(), names, n=1, cutoff=0.5)
    return names[close[0]] if close else None
