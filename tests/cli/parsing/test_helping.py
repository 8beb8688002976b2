"""Help and completion."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from diffcli.cli.app import app
from diffcli.cli.parsing.choices import METRICS, SAMPLERS
from diffcli.cli.parsing.helping import EXAMPLES, MEMBERS
from diffcli.lookup.preset_files import available
from diffcli.prep.kinds import KINDS
from tests.cli.test_commands import commands, options
from tests.conftest import Cli

NARROW = 60


@pytest.fixture
def helped(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The help of a command on a narrow terminal."""
    monkeypatch.setenv("COLUMNS", str(NARROW))
    return lambda path: cli(*path.split(), "--help").out


@pytest.mark.parametrize("path", ["", *(path for path, _ in commands())])
def test_help_loses_no_word_at_60_columns(helped: Any, path: str) -> None:
    text = helped(path)
    assert "…" not in text
    command = dict(commands()).get(path)
    if command is None or hasattr(command, "commands"):
        return
    letters = re.sub(r"\s", "", text)
    for option in options(command):
        assert all(name in text for name in [*option.opts, *option.secondary_opts])
        assert re.sub(r"\s", "", option.help) in letters, option.opts


@pytest.mark.parametrize("command", ["sample", "gif", "fid", "train", "prep-data"])
def test_help_groups_options_and_begins_with_examples(helped: Any, command: str) -> None:
    text = helped(command)
    assert all(line in text for line in EXAMPLES[command])
    assert text.index("Examples:") < text.index("Options:")
    groups = re.findall(r"^(\w[^\n]*):$", text, re.MULTILINE)
    assert len(groups) == len(set(groups)) > 3


@pytest.mark.parametrize("command", ["train", "resume"])
def test_help_of_training_does_not_speak_of_drawing(helped: Any, command: str) -> None:
    text = helped(command)
    assert "draw:" not in text
    assert text.index("The run:") < text.rindex("--steps")  # its first place is among the examples


def test_every_grouped_flag_exists() -> None:
    flags = {name for _, command in commands() for param in command.params for name in param.opts}
    assert {f"--{name}" for names in MEMBERS.values() for name in names} <= flags
    assert set(EXAMPLES) <= {path for path, _ in commands()}


def completed(line: list[str], name: str, incomplete: str) -> list[str]:
    """What the shell is offered for the parameter of this name after the words of a line."""
    group = typer.main.get_command(app)
    context = group.make_context("diffcli", list(line), resilient_parsing=True)
    while hasattr(context.command, "commands"):
        rest = [*context._protected_args, *context.args]
        word, sub, rest = context.command.resolve_command(context, rest)
        context = sub.make_context(word, rest, parent=context, resilient_parsing=True)
    param = next(param for param in context.command.params if param.name == name)
    return [item.value for item in param.shell_complete(context, incomplete)]


def test_names_are_completed(trained: Path) -> None:
    assert completed(["train"], "preset", "digits-cl") == ["digits-classifier"]
    assert completed(["presets", "show"], "name", "") == sorted(available())
    assert completed(["sample"], "sampler", "dpmpp") == [name for name in SAMPLERS if name.startswith("dpmpp")]
    assert completed(["prep-data"], "kind", "ci") == ["cifar10", "cifar100"]
    assert completed(["prep-data"], "kind", "") == [*KINDS, "shards"]
    assert completed(["fid"], "metrics", "fid,ki") == ["fid,kid"]
    assert completed(["fid"], "metrics", "fid,") == [f"fid,{name}" for name in METRICS if name != "fid"]


def test_the_classes_of_a_checkpoint_are_completed(trained: Path, tmp_path: Path) -> None:
    record = json.loads((trained / "checkpoints/step-00000004/checkpoint.json").read_text())
    for words in (["sample", str(trained)], ["sample", "--ckpt", str(trained)]):
        assert completed(words, "labels", "") == ["all", "random", *record["classes"]]
    assert completed(["sample", str(tmp_path)], "labels", "") == ["all", "random"]
