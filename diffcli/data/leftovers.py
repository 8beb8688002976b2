"""What a command leaves behind that did not come to its end: an unfinished set, which it goes on with, or empty folders."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from diffcli.config import UserError, quoted

WORK = ".work"  # of a set that is being prepared: the request and temporary files, on the same disk as the shards
REQUEST = "request.json"
SHARD = re.compile(r"(train|test)-\d{6}\.tar")


def check_finished(root: Path, key: str) -> None:
    """Raises UserError where a folder holds a set that prep-data began and did not finish. key: what names it."""
    try:
        request = json.loads((root / WORK / REQUEST).read_bytes())
        command = repeated(request, root)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        _check_shards(root, key)
        return  # no request of prep-data, so no unfinished set: what the folder is then, whoever reads it says
    raise UserError(
        f"{key} is '{root}', a set that prep-data has not finished",
        f"repeat its command, which goes on where it stopped: `{command}`, SOURCE being {request['source']}",
    )


def _check_shards(root: Path, key: str) -> None:
    """Raises UserError where a folder holds shards of prep-data without the record of them all."""
    first = next((path for path in sorted(root.glob("t*.tar")) if SHARD.fullmatch(path.name)), None)
    if first is not None and first.with_suffix(".json").is_file() and not (root / "dataset.json").exists():
        raise UserError(
            f"{key} is '{root}', which holds shards of prep-data ({first.name}) but not their dataset.json",
            "copy it from where the set was made, or make the set anew: diffcli prep-data KIND SOURCE --out DIR, an empty one",
        )


def repeated(request: dict[str, Any], root: Path) -> str:
    """The command that a request was made by, as far as it is known."""
    words = ["diffcli prep-data", request["kind"], "SOURCE", "--out", quoted(root)]
    words += ["--first-stage RUN"] * ("latents" in request["options"])
    words += [f"--{name} {request[name]}" for name in ("size", "limit") if request[name] is not None]
    return " ".join(words)


@contextmanager
def tidied(folder: Path) -> Iterator[None]:
    """Takes away the folders on the way to `folder` that were made within it and are empty, where that ends in an error."""
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
