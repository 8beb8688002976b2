"""The tiny preset with a network of one level: the engine trains and draws with it as with any other, in half the time."""

from typing import Any

from tests.conftest import TINY, changed

SMALL: dict[str, Any] = changed(TINY, task__network__mult=[1], task__network__middle=["res"])
TWO_LEVELS = {"task__network__mult": [1, 2], "task__network__middle": None}  # with attention, for what needs either
