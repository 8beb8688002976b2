"""Leftovers of interrupted commands: an unfinished set, which the same command continues, or empty folders."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from diffcli.config import UserError, quoted

WORK = ".work"  # in a set that is being prepared: holds the request and temporary files, on the same disk as the shards
REQUEST = "request.json"
SHARD = re.compile(r"(train|test)-\d{6}\.tar")


def check_finished(root: Path, key: str) -> None:
    """Raises UserError if a folder holds an unfinished set of prep-data. key: names it in errors."""
    try:
        request = json.loads((root / WORK / REQUEST).read_bytes())
        command = repeated(request, root)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        _check_shards(root, key)
        return  # no request of prep-data, so no unfinished set
    raise UserError(
        f"{key} is '{root}', a set that prep-data has not finished",
        f"repeat its command, which continues where it stopped: `{command}`, SOURCE being {request['source']}",
    )


def _check_shards(root: Path, key: str) -> None:
    """Raises UserError if a folder holds shards of prep-data without dataset.json."""
    first = next((path for path in sorted(root.glob("t*.tar")) if SHARD.fullmatch(path.name)), None)
    if first is not None and first.with_suffix(".json").is_file() and not (root / "dataset.json").exists():
        raise UserError(
            f"{key} is '{root}', which holds shards of prep-data ({first.name}) but not their dataset.json",
            "copy it from where the set was made, or make the set anew: diffcli prep-data KIND SOURCE --out DIR, an empty one",
        )


def repeated(request: dict[str, Any], root: Path) -> str:
    """The command of a request, as far as it is known."""
    words = ["diffcli prep-data", request["kind"], "SOURCE", "--out", quoted(root)]
    words += ["--first-stage RUN"] * ("latents" in request["options"])
    words += [f"--{name} {request[name]}" for name in ("size", "limit") if request[name] is not None]
    return " ".join(words)


@contextmanager
def tidied(folder: Path) -> Iterator[None]:
    """Context that removes empty folders made inside of it on the way to `folder`, if it ends in an error."""
    place = folder.expanduser().absolute()
    made = [path for path in (place, *place.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        with suppress(OSError):  # the first that is not empty ends it
            for path in made:
                if path.is_dir():
                    path.rmdir()
        raise
