"""The request of a prepared set, noted in its folder, so that only the same request can continue there.

Errors name the flag that differs.
"""

import ast
import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from diffcli.config import UserError
from diffcli.data.leftovers import REQUEST
from diffcli.data.set_folder import is_prepared
from diffcli.data.shards import PrepRequest, open_shards
from diffcli.prep.items import LatentOptions, Picked
from diffcli.prep.shard import write_whole

GROUPS: dict[str, type[BaseModel]] = {"latents": LatentOptions, "picked": Picked}  # options that are several in one
OF_A_STAGE = ("sha256", "channels", "inputs", "downscale")


def check_request(out: Path, work: Path, request: PrepRequest) -> None:
    """Refuses to mix two requests in one folder; writes the first one down."""
    path = work / REQUEST
    if is_prepared(out):
        before = open_shards(out, "--out").request
    elif path.is_file():
        try:
            before = PrepRequest.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise UserError(f"{path} is garbled", f"delete the folder '{out}' and run again") from error
    else:
        write_whole(path, request.model_dump_json().encode(), work)
        return
    what = difference(before, request)
    if what:
        if is_prepared(out):
            shutil.rmtree(work)
        raise UserError(f"--out '{out}' holds a set made with {what}", "choose another --out, or delete that folder")


def difference(before: PrepRequest, now: PrepRequest) -> str:
    """The difference between two requests in words; empty if they are the same."""
    old, new = before.model_dump(), now.model_dump()
    changed = next((field for field in old if old[field] != new[field]), "")
    if changed == "fingerprint":
        return "other contents of SOURCE"
    if changed in ("size", "limit"):
        return against(changed, old[changed], new[changed])
    if changed == "options":
        return of_options(before.options, now.options)
    return changed and f"{changed} {old[changed]}, not {new[changed]}"


def of_options(before: dict[str, str], now: dict[str, str]) -> str:
    """The first difference among the other options."""
    old, new = unfolded(before), unfolded(now)
    changed = next((name for name in {**old, **new} if old.get(name) != new.get(name)), "")
    if changed in OF_A_STAGE:
        return "another first stage than that of --first-stage"
    return against(changed, old.get(changed), new.get(changed)) if changed else "other options"


def unfolded(options: dict[str, str]) -> dict[str, Any]:
    """Options by name, those of a group beside the others and with its defaults."""
    found: dict[str, Any] = {}
    for name, text in options.items():
        try:
            values = ast.literal_eval(text) if name in GROUPS else {name: text}
        except (ValueError, SyntaxError):
            values = {name: text}
        found |= values
    for group in GROUPS.values():
        for name, field in group.model_fields.items():
            if not field.is_required():
                found.setdefault(name, field.default)
    return found


def against(name: str, old: Any, new: Any) -> str:
    """Two values of an option, as typed: `--size 8, not --size 16`; `no --limit, not --limit 3`."""
    flag = name.replace("_", "-")
    shown = [
        f"--{'' if value else 'no-'}{flag}"
        if isinstance(value, bool)
        else f"no --{flag}"
        if value is None
        else f"--{flag} {value}"
        for value in (old, new)
    ]
    return f"{shown[0]}, not {shown[1]}"
