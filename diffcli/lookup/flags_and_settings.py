"""Flags that stand for a key of the preset, beside `--set` of the same key: both may be given if they say the same."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffcli.config import UserError
from diffcli.lookup.preset_files import key_and_value

SAMPLING = {"--sampler": "sampler.kind", "--steps": "sampler.steps", "--ddim-eta": "sampler.eta"}
TRAINING = {
    "--steps": "train.steps",
    "--seed": "seed",
    "--from": "from",
    "--from-weights": "from.weights",
    "--data": "data.root",
}
OTHERS = {"from": ("from.path",), "data.root": ("data.shards",)}  # keys that the flag of the first one sets as well


def check_agreement(settings: Iterable[str], keys: Mapping[str, str], values: Mapping[str, Any]) -> None:
    """Raises UserError where a flag and the last `--set` of its key have different values.

    keys: the key of each flag. values: of flags; None where one is not given.
    """
    last = {key: (value, item) for item in settings for key, value in [key_and_value(item)]}
    for flag, value in values.items():
        for key in (keys[flag], *OTHERS.get(keys[flag], ())):
            set_to, item = last.get(key, (None, ""))
            if value is not None and set_to is not None and not _same(value, set_to):
                raise UserError(
                    f"{flag} {value} with --set {item}: two values for one key, {key}",
                    f"leave one of them out: {flag}, or --set {key}",
                )


def _same(value: Any, set_to: Any) -> bool:
    if isinstance(set_to, Mapping):  # of `from`, whose other keys the flag leaves as they are
        return "path" not in set_to or _same(value, set_to["path"])
    if isinstance(value, Path | str):
        one, other = (Path(str(each)).expanduser().absolute() for each in (value, set_to))
        return one == other
    return bool(value == set_to) or str(value) == str(set_to)
