"""`--prompt` and `--prompts`: texts of the command line and of a file."""

from collections.abc import Sequence
from pathlib import Path

from diffcli.config import UserError
from diffcli.data import captions


def read_prompts(given: Sequence[str], file: Path | None) -> tuple[str, ...]:
    """The prompts of --prompt, then the lines of the file, UTF-8, without blank ones. Raises UserError if it has none."""
    if file is None:
        return tuple(map(captions.clean, given))
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"--prompts {file}: is not UTF-8 ({error.reason})", "save it as UTF-8 text") from error
    except OSError as error:
        hint = "give a text file with one prompt a line"
        raise UserError(f"--prompts {file}: cannot be read ({error.strerror})", hint) from error
    found = tuple(filter(None, map(captions.clean, lines)))
    if not found:
        raise UserError(f"--prompts {file}: holds no prompt", "write one prompt a line into it")
    return (*map(captions.clean, given), *found)
