"""Every hint with a command, a flag or a key in it can be typed: read out of the source, so that a new one is tested too."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from pydantic import TypeAdapter

import diffcli
from diffcli.cli.app import app
from diffcli.cli.parsing.choices import METRICS
from diffcli.cli.parsing.mistakes import FLAGS, KEYS, SAID
from diffcli.metrics.scores import AnyMetric
from diffcli.preset import Preset

PACKAGE = Path(diffcli.__file__).parent
GAP = "\0"  # what a message fills in
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
OTHERS = {  # of other programs, and those that the parser itself has
    *("--help", "--version", "--local-dir", "--force-reinstall", "--no-deps"),
}


class Text(NamedTuple):
    """A text in the source. typed: what a person may copy from it, `GAP` where a value is filled in."""

    place: str
    typed: str


@cache
def commands() -> dict[tuple[str, ...], Any]:
    def below(group: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        for name, command in getattr(group, "commands", {}).items():
            yield (*path, name), command
            yield from below(command, (*path, name))

    return dict(below(typer.main.get_command(app), ()))


def options(command: Any) -> set[str]:
    return {name for param in command.params for name in (*param.opts, *param.secondary_opts)} | {"--help"}


@cache
def texts() -> list[Text]:
    """All texts of the package, each f-string as one."""
    found: list[Text] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        source, parts = path.read_text(), set[int]()
        if "--" not in source and "diffcli " not in source:
            continue
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts |= {id(part) for part in ast.walk(node)} - {id(node)}
                typed = "".join(str(v.value) if isinstance(v, ast.Constant) else GAP for v in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
                typed = node.value
            else:
                continue
            found.append(Text(f"{path.relative_to(PACKAGE)}:{node.lineno}", typed))
    return found


def typed_commands(text: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """The commands in a text, each with what follows it up to the end of its clause."""
    for match in re.finditer(r"diffcli ([a-z][a-z-]*)(?: ([a-z]+)\b)?([^`\n]*)", text):
        first, second, rest = match.groups()
        path = (first, second) if (first, second) in commands() else (first,)
        if path in commands():
            yield path, re.split(r"[;,)]|\.(?= |$)| and | or | beside | instead", rest)[0]


def test_every_flag_that_a_text_names_is_one_of_a_command() -> None:
    known = (
        OTHERS
        | set(KEYS)
        | set(FLAGS)
        | {flag for flag, _ in SAID}
        | {name for command in commands().values() for name in options(command)}
    )
    named = [(text.place, flag) for text in texts() for flag in OPTION.findall(text.typed)]
    assert len(named) > 500
    assert [each for each in named if each[1] not in known] == []


def test_every_command_that_a_text_names_has_the_flags_that_stand_beside_it() -> None:
    found = [(text.place, path, rest) for text in texts() for path, rest in typed_commands(text.typed)]
    assert len(found) > 80
    wrong = [
        (place, path, flag)
        for place, path, rest in found
        for flag in OPTION.findall(rest)
        if flag not in options(commands()[path])
    ]
    assert wrong == []


def names_in(node: Any) -> Iterator[str]:
    """All keys that a schema knows, at any depth."""
    if isinstance(node, dict):
        yield from node.get("properties", {})
        for value in node.values():
            yield from names_in(value)
    elif isinstance(node, list):
        for value in node:
            yield from names_in(value)


def test_every_key_that_a_text_sets_is_one_of_a_preset_or_a_metric() -> None:
    known = {*names_in(Preset.model_json_schema()), *names_in(TypeAdapter(AnyMetric).json_schema()), "metrics"}
    known |= {*METRICS, "KEY", "KIND", "OPTION"}
    keys = [
        (text.place, key)
        for text in texts()
        for key in re.findall(r"--set '?([A-Za-z_][\w.]*)=", text.typed)
        if GAP not in key
    ]
    assert len(keys) > 30
    unknown = [
        (place, key) for place, key in keys for part in key.split(".") if not part.isdecimal() and part not in known
    ]
    assert unknown == []


@pytest.mark.parametrize("words", [("sample", "--cfg", "3"), ("train", "--lr", "3"), ("train", "--epochs", "3")])
def test_flags_of_other_programs_lead_to_ours(cli: Any, words: tuple[str, ...]) -> None:
    done = cli(*words)
    hint = done.err.partition("hint:")[2]
    flags = [flag for flag in OPTION.findall(hint) if flag not in words]
    assert flags
    assert all(flag in options(commands()[words[:1]]) for flag in flags)
