"""Files of presets: where a name is looked up, and a file's raw tree. Imports neither torch nor a part of the tree.

A name means ./presets/NAME.yaml, else the file of that name that is shipped in the package.
"""

from pathlib import Path
from typing import Any

import yaml

from diffcli.config import UserError, did_you_mean
from diffcli.lookup.plain_yaml import KeyTwice, parsed

NOT_YAML = (yaml.YAMLError, ValueError, AttributeError, RecursionError)  # PyYAML on 2024-13-45, !!timestamp x, [[[[...


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
            raise UserError(
                f"--preset {name}: no such file", "give a preset's name, see `diffcli presets list`, or a YAML file"
            )
        return path
    presets = available()
    if name not in presets:
        raise UserError(f"--preset {name}: no such preset", did_you_mean(name, sorted(presets)))
    return presets[name]


def read(path: Path) -> dict[str, Any]:
    """The raw tree of a YAML file."""
    try:
        raw = parsed(path.read_text(encoding="utf-8"))
    except KeyTwice as error:
        raise UserError(f"{path}: {error}", f"keep one '{error.key}', with all that belongs to it") from None
    except (OSError, *NOT_YAML) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: is not readable YAML ({reason})", "compare it with `diffcli presets show digits`"
        ) from error
    if not isinstance(raw, dict):
        raise UserError(
            f"{path}: holds {type(raw).__name__}, not a mapping", "compare it with `diffcli presets show digits`"
        )
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
