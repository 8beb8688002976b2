"""YAML as a person writes it: values only, no objects, and no key twice in one mapping."""

from typing import Any

import yaml


class KeyTwice(yaml.YAMLError):
    """A mapping has a key twice, of which YAML itself would keep the last in silence. lines: from 1."""

    def __init__(self, key: Any, lines: tuple[int, int]) -> None:
        super().__init__(f"the key '{key}' stands there twice, in lines {lines[0]} and {lines[1]}")
        self.key, self.lines = key, lines


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                line = key.start_mark.line + 1
                if (name := (key.tag, key.value)) in lines:
                    raise KeyTwice(key.value, (lines[name], line))
                lines[name] = line
        return super().construct_mapping(node, deep)


def parsed(text: str) -> Any:
    """The value of a YAML text. Raises KeyTwice, and whatever else PyYAML raises for what is no YAML."""
    return yaml.load(text, _Loader)
