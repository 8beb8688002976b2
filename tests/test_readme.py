"""README and docs speak the truth: its commands parse, its files exist, its make targets are there."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from diffcli.cli.app import app
from diffcli.cli.parsing.helping import EXAMPLES

ROOT = Path(__file__).parent.parent
PAGES = {path: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
ALL = "\n".join(PAGES.values())
FENCES = re.findall(r"^```(\w*)\n(.*?)^```$", ALL, re.MULTILINE | re.DOTALL)
BLOCKS = [block for language, block in FENCES if language in ("", "bash", "sh")]
LINES = [re.split(r" [#>]", line)[0].strip() for block in BLOCKS for line in block.replace("\\\n", "").splitlines()]
INLINE = re.findall(r"`(diffcli [^`]*)`", ALL)
LINKS = [(path, link) for path, text in PAGES.items() for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text)]
HELP = [line.partition(" >")[0] for lines in EXAMPLES.values() for line in lines]
COMMANDS = sorted({line for line in LINES + INLINE + HELP if line.startswith("diffcli ")})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command: str) -> None:
    words = shlex.split(command)[1:]
    group = typer.main.get_command(app)
    context = group.make_context("diffcli", words, resilient_parsing=False)
    rest = [*context._protected_args, *context.args]
    while rest:
        name, sub, rest = context.command.resolve_command(context, rest)
        assert sub is not None, f"{name} is no command"
        context = sub.make_context(name, rest, parent=context)  # raises where an option or a value does not exist
        rest = [*context._protected_args, *context.args] if hasattr(sub, "resolve_command") else []


def test_there_are_commands_to_test() -> None:
    assert {c.split()[1] for c in COMMANDS} >= {"train", "resume", "sample", "gif", "fid", "prep-data", "presets"}


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_every_linked_file_exists(page: Path, link: str) -> None:
    assert link.startswith("http") or (page.parent / link).is_file()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`make ([a-z-]+)", ALL))))
def test_every_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
