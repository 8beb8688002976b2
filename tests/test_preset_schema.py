"""The schema of presets, by which editors complete, check and explain."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import Field

from diffcli.config import Config
from diffcli.preset import Preset


def keys(schema: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(class, key, what the schema says of it) for every key of a preset."""
    for name, node in [("Preset", schema), *schema["$defs"].items()]:
        yield from ((name, key, each) for key, each in node.get("properties", {}).items())


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return Preset.model_json_schema()


def test_every_key_of_a_preset_is_described(schema: dict[str, Any]):
    assert [f"{name}.{key}" for name, key, node in keys(schema) if not node.get("description")] == []
    assert len(list(keys(schema))) > 400


def test_a_description_says_more_than_the_key(schema: dict[str, Any]):
    bare = {f"{name}.{key}" for name, key, node in keys(schema) if node["description"].lower().strip(".") == key}
    assert not bare


def test_a_key_keeps_the_description_of_the_class_it_is_inherited_from():
    class Parent(Config):
        """A parent."""

        size: int = Field(1, description="edge in pixels")

    class Child(Parent):
        """A child of a parent. Source: nobody."""

        kind: str = "child"
        size: int = 28

    properties = Child.model_json_schema()["properties"]
    assert properties["size"]["description"] == "edge in pixels"
    assert properties["kind"]["description"] == "A child of a parent"
    assert Parent.model_json_schema()["properties"]["size"]["default"] == 1


def test_the_schema_refuses_what_a_preset_refuses(schema: dict[str, Any]):
    """Unknown keys and kinds: an editor marks them as they are typed."""
    assert schema["additionalProperties"] is False
    assert {"data", "task", "train", "name"} <= set(schema["required"])
    kinds = schema["properties"]["sampler"]["discriminator"]["mapping"]
    assert {"ddim", "dpmpp_2m"} <= set(kinds)
