"""Which keys `--set` may change of a model that is trained already, when its run is resumed and when it is sampled."""

import re
from collections.abc import Iterable

from diffcli.config import UserError

ENCODER = re.compile(r"task\.conditioners\.\d+\.encoder\.model=")
MOVABLE = ("data.root", "data.shards", "data.test_shards", "data.preserve.root")  # data may lie elsewhere by now
PARTS = ("train.lora", "train.embedding")  # of what the checkpoint holds


def moves_encoder(item: str) -> bool:
    """Whether a `--set` item gives a new place of an encoder; its weights must be the same."""
    return ENCODER.match(item) is not None


def may_change(item: str) -> bool:
    """Whether a resumed run may change what `KEY=VALUE` names."""
    key = item.partition("=")[0]
    if key.startswith(PARTS):
        return False
    return key.startswith("train.") or key in MOVABLE or moves_encoder(item)


def check_resuming(settings: Iterable[str]) -> None:
    """Raises UserError for the first setting that a resumed run cannot have."""
    for item in settings:
        if not may_change(item):
            raise UserError(
                f"--set {item}: a resumed run changes train.* keys only, and data.root, data.shards or the model of an encoder "
                "where they have moved; its data, task and seed stay",
                "train into another --run-dir to change them",
            )


def check_sampling(settings: Iterable[str]) -> None:
    """Raises UserError for the first setting that does not change how images are drawn."""
    for item in settings:
        if not item.startswith(("sampler.", "guide.")) and not moves_encoder(item):
            raise UserError(
                f"--set {item}: sampling changes sampler.* and guide.* keys only, and where an encoder's model lies",
                "train another model to change the rest",
            )
