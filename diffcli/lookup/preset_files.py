"""Files of presets: where a name is looked up, and a file's raw tree. Imports neither torch nor a part of the tree.

A name means ./presets/NAME.yaml, else the file of that name that is shipped in the package.
"""

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from diffcli.config import UserError, did_you_mean, quoted
from diffcli.lookup.plain_yaml import KeyTwice, parsed

NOT_YAML = (yaml.YAMLError, ValueError, AttributeError, RecursionError)  # PyYAML on 2024-13-45, !!timestamp x, [[[[...
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
COMPARE = "compare it with `diffcli presets show digits`"


def folders() -> list[Path]:
    """The folders of presets, in the order of the search."""
    root = Path(__file__).parent.parent
    shipped = root / "presets" if (root / "presets").is_dir() else root.parent / "presets"
    return [Path("presets"), shipped]


def available() -> dict[str, Path]:
    """Preset names and files; a local ./presets/NAME.yaml hides the shipped one."""
    return {p.stem: p for folder in reversed(folders()) for p in sorted(folder.glob("*.yaml"))}


def find(name: str) -> Path:
    """The file that --preset NAME|FILE means."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            close = get_close_matches(path.name, [each.name for each in path.parent.glob("*.y*ml")], n=1)
            guess = f" (did you mean {quoted(path.with_name(close[0]))}?)" if close else ""
            hint = f"give a preset's name, see `diffcli presets list`, or a YAML file{guess}"
            raise UserError(f"--preset {name}: no such file", hint)
        return path
    presets = available()
    if name not in presets:
        own = Path(f"{name}.yaml")
        hint = f"type --preset {quoted(own)} for the file" if own.is_file() else did_you_mean(name, sorted(presets))
        raise UserError(f"--preset {name}: no such preset", hint)
    return presets[name]


def new_file(name: str) -> tuple[str, Path]:
    """The name and the file of a new preset. Raises UserError where it is none, is taken, or the file is there already."""
    name = name.removesuffix(".yaml")
    if not NAME.fullmatch(name):
        raise UserError(
            f"NAME is '{name}': must be letters, digits and ._-",
            "type for example `diffcli presets new photos --data DIR`",
        )
    if name in available():
        raise UserError(
            f"NAME is '{name}', which a preset of `diffcli presets list` has already",
            f"give another, such as my-{name}",
        )
    target = Path(f"{name}.yaml")
    if target.exists():
        raise UserError(f"{target} is there already", "give another NAME, or delete that file")
    return name, target


def read(path: Path) -> dict[str, Any]:
    """The raw tree of a YAML file."""
    try:
        raw = parsed(path.read_text(encoding="utf-8"))
    except KeyTwice as error:
        raise UserError(f"{path}: {error}", f"keep one '{error.key}', with all that belongs to it") from None
    except (OSError, *NOT_YAML) as error:
        reason = " ".join(str(error).split()).replace(' in "<unicode string>",', " in")
        hint = "indent it by spaces, not by tabs" if r"'\t' that cannot start" in reason else COMPARE
        raise UserError(f"{path}: is not readable YAML ({reason})", hint) from error
    if not isinstance(raw, dict):
        found = (
            "is empty"
            if raw is None
            else f"holds a {'list' if isinstance(raw, list) else 'single value'}, not KEY: VALUE"
        )
        raise UserError(f"{path}: {found}", COMPARE)
    return raw


def key_and_value(item: str) -> tuple[str, Any]:
    """KEY and the value that YAML reads VALUE as, of a `--set KEY=VALUE`. Raises UserError where it is none."""
    key, equals, value = item.partition("=")
    if not equals or not key:
        raise UserError(f"--set {item}: has no KEY=VALUE", "write for example --set train.steps=1000")
    try:
        given = parsed(value)
    except KeyTwice as error:
        raise UserError(f"--set {key}: {error}", f"keep one '{error.key}'") from None
    except NOT_YAML:
        raise UserError(
            f"--set {key}: {value!r} is not a YAML value", "quote it, or write lists as [1, 2, 2]"
        ) from None
    return key, given
