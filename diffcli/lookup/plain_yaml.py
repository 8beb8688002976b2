"""YAML as a person writes it: values only, no objects, and no key twice in one mapping."""

from contextlib import suppress
from typing import Any

import yaml


class KeyTwice(yaml.YAMLError):
    """A mapping has a key twice, of which YAML itself would keep the last in silence. lines: from 1."""

    def __init__(self, key: Any, lines: tuple[int, int]) -> None:
        super().__init__(f"the key '{key}' stands there twice, in lines {lines[0]} and {lines[1]}")
        self.key, self.lines = key, lines


class _OnceEach:
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                line = key.start_mark.line + 1
                if (name := (key.tag, key.value)) in lines:
                    raise KeyTwice(key.value, (lines[name], line))
                lines[name] = line
        found: dict[Any, Any] = super().construct_mapping(node, deep)  # type: ignore[misc]
        return found


class _Loader(_OnceEach, yaml.SafeLoader):
    pass


class _QuickLoader(_OnceEach, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Where PyYAML comes with libyaml. It reads YAML as the other does, but for what ODD holds."""


ODD = ("\t", "!", "?", "|#", ">#", "\ufeff")  # libyaml reads them less strictly, or as something else


def parsed(text: str) -> Any:
    """The value of a YAML text. Raises KeyTwice, and whatever else PyYAML raises for what is no YAML."""
    if not any(mark in text for mark in ODD):
        with suppress(yaml.YAMLError):  # of which the other tells what it had expected there
            return yaml.load(text, _QuickLoader)
    return yaml.load(text, _Loader)


def written(value: Any, width: int) -> str:
    """A value as a YAML text with lines of about `width` characters, its keys in their order."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # that of libyaml is six times as fast
    text: str = yaml.dump(value, Dumper=dumper, sort_keys=False, width=width)
    return text
