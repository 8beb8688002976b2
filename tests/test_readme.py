"""README and docs speak the truth: its commands parse, its files exist, its make targets are there.

That its commands run is held by tests/documented.
"""

import re

import pytest
import typer

from diffcli.cli.app import app
from tests.documented.reading import ALL, PAGES, ROOT, Shown, shown

TEXT = "\n".join(PAGES.values())
GROUP = typer.main.get_command(app)


def parse(command: Shown) -> None:
    """Raises where an option or a value does not exist."""
    context = GROUP.make_context("diffcli", command.words(), resilient_parsing=False)
    rest = [*context._protected_args, *context.args]
    while rest:
        name, sub, rest = context.command.resolve_command(context, rest)
        assert sub is not None, f"{name} is no command"
        context = sub.make_context(name, rest, parent=context)
        rest = [*context._protected_args, *context.args] if hasattr(sub, "resolve_command") else []


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_parses(page: str) -> None:
    wrong = []
    for command in shown(page):
        try:
            parse(command)
        except Exception as error:
            wrong.append(f"{command.line}: {error}")
    assert wrong == []


def test_there_are_commands_to_test() -> None:
    assert {c.line.split()[1] for c in ALL} >= {"train", "resume", "sample", "gif", "fid", "prep-data", "presets"}


def test_every_linked_file_exists() -> None:
    links = [(page, link) for page, text in PAGES.items() for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text)]
    folder = {page: ROOT if page == "README.md" else ROOT / "docs" for page in PAGES}
    missing = [each for each in links if not each[1].startswith("http") and not (folder[each[0]] / each[1]).is_file()]
    assert links
    assert missing == []


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"`make ([a-z-]+)", TEXT))
    assert targets
    assert targets <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
