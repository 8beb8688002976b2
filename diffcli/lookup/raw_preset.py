"""A preset's raw tree, before it is validated: the values of --set put in, and their mistakes found by the JSON schema alone.

The schema is the file `preset.schema.json` beside this one, which `make schema` writes. It says what each key may be, though not
how keys agree; with it a wrong value is answered in tenths of a second, since nothing here imports torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffcli.config import UserError
from diffcli.config_errors.by_schema import certain_mistakes
from diffcli.config_errors.explaining import in_one
from diffcli.config_errors.schema_paths import Described, SchemaFile, default_kind, forms
from diffcli.lookup.preset_files import key_and_value

PRESET = SchemaFile(Path(__file__).with_name("preset.schema.json"))


def check_values(raw: object, source: str, overrides: Iterable[str], apart: Sequence[str] = ()) -> None:
    """Raises UserError for values of --set that no preset takes, as `preset.build` does; other mistakes are left to that.

    apart: keys of the tree whose settings are not looked at.
    """
    if not isinstance(raw, Mapping):
        return
    tree, changed = overridden(raw, overrides, PRESET)
    own = [key for key in changed if key.partition(".")[0] not in apart]
    if found := certain_mistakes(tree, PRESET, own):
        raise in_one(found, source, changed)


def overridden(raw: Mapping[str, Any], overrides: Iterable[str], model: Described) -> tuple[dict[str, Any], list[str]]:
    """A copy of a raw tree after `--set KEY=VALUE` (VALUE in YAML), and the keys that were set, in their order."""
    tree: dict[str, Any] = copied(raw)
    changed: list[str] = []
    for item in overrides:
        changed.append(_override(tree, item, changed, model))
    return tree, changed


def copied(node: Any) -> Any:
    """A copy of a raw tree, of plain dicts and lists."""
    if isinstance(node, Mapping):
        return {k: copied(v) for k, v in node.items()}
    return [copied(v) for v in node] if isinstance(node, list | tuple) else node


def _override(tree: dict[str, Any], item: str, changed: Sequence[str], model: Described) -> str:
    """Applies one `KEY=VALUE` after those of `changed`; returns KEY."""
    key, given = key_and_value(item)
    node: Any = tree
    path: list[int | str] = []
    *parents, last = key.split(".")
    for part in parents:
        path.append(int(part) if isinstance(node, list) and part.isdecimal() else part)
        if isinstance(node, list):
            node = _item(node, part, key)
            if not isinstance(node, dict | list):
                raise UserError(f"--set {key}: item {part} is {node!r}, which has no keys", f"end the key in .{part}")
        else:
            child = node.get(part)
            if not isinstance(child, dict | list):
                kind = default_kind(model, tree, path)
                child = node[part] = {"kind": kind} if kind else {}
            node = child
    if isinstance(node, list):
        _item(node, last, key)
        node[int(last)] = given
    elif last == "kind" and path and node.get("kind", given) != given:
        before = forms(model, tree, path)
        node["kind"] = given
        _keep_shared(node, before, forms(model, tree, path), ["kind", *(c.removeprefix(key[:-4]) for c in changed)])
    else:
        node[last] = given
    return key


def _keep_shared(
    node: dict[str, Any], before: Mapping[str, Any], after: Mapping[str, Any], given: Sequence[str]
) -> None:
    """Drops keys of the file that the new kind does not have; keys of --set are never dropped.

    Records, and lists of them, stay if both kinds have the same form under that name. before, after: what each key may hold.
    """
    for name, value in list(node.items()):
        plain = not isinstance(value, dict) and not (
            isinstance(value, list) and any(isinstance(v, dict) for v in value)
        )
        shared = name in after and (plain or before.get(name) == after[name])
        if not shared and not any(g == name or g.startswith(f"{name}.") for g in given):
            del node[name]


def _item(items: list[Any], index: str, key: str) -> Any:
    if not index.isdecimal() or int(index) >= len(items):
        raise UserError(
            f"--set {key}: '{index}' is not an item of a list of {len(items)}",
            "count from 0, as in task.conditioners.0",
        )
    return items[int(index)]
