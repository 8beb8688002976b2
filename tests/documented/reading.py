"""The commands that README, docs and `--help` show: as written, in order, and with what stands for other words put in."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from diffcli.cli.parsing.helping import EXAMPLES

ROOT = Path(__file__).parent.parent.parent
PAGES = {
    path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
} | {"--help": "\n".join(line for lines in EXAMPLES.values() for line in lines)}
COMMAND = re.compile(r"^[ \t]*(diffcli (?:[^\n\\]|\\(?!\n)|\\\n)*)$|`(diffcli [^`]*)`", re.MULTILINE)


class Shown(NamedTuple):
    """A command that a page shows."""

    page: str
    line: str  # in one line, without what the page remarks on it

    def words(self, line: str | None = None) -> list[str]:
        """What a shell makes of the line, or of another that stands for it; without `diffcli` and where its output goes."""
        text = self.line if line is None else line
        for name, value in settings_of(self.page).items():
            text = re.sub(rf"(?<![\w$]){re.escape(name)}(?![\w.=])", lambda _, value=value: value, text)
        return [word for word in shlex.split(text.partition(" >")[0])[1:] if word != "..."]

    @property
    def output(self) -> str | None:
        """The file that the command's output goes to."""
        return self.line.partition(" >")[2].strip() or None


def settings_of(page: str) -> dict[str, str]:
    """Words that a page uses for settings: SMALL="..." as in a shell, or said in a sentence."""
    text = PAGES[page]
    found = re.findall(r'^ +([A-Z]+)="([^"]*)"', text, re.MULTILINE)
    said = re.findall(r"`([A-Z]+)` stands for `([^`]*)`", text)
    shell = [(f"${name}", value) for name, value in found]
    return {name: " ".join(value.replace("\\\n", " ").split()) for name, value in [*shell, *said]}


def shown(page: str) -> list[Shown]:
    """The commands of a page from its first line to its last."""
    lines = (block or inline for block, inline in COMMAND.findall(PAGES[page]))
    plain = (re.sub(r"\s*\\\n\s*|\s*\n\s*", " ", line).replace("\\|", "|") for line in lines)
    return [Shown(page, re.split(r" +#", line)[0].strip()) for line in plain]


ALL = [command for page in PAGES for command in shown(page)]
