"""A hint that says `--set KEY=VALUE` names a value that works when it is typed."""

import copy
import re
import shlex
from typing import Any

import pytest

from diffcli import preset as presets
from diffcli.config import UserError

TREE: dict[str, Any] = presets.load("digits").model_dump(mode="json")


def hinted(setting: str) -> str:
    with pytest.raises(UserError) as caught:
        presets.build(TREE, "mine.yaml", [setting])
    return caught.value.hint


@pytest.mark.parametrize(
    "setting",
    [
        "train.batch_size=yes",
        "train.batch_size=0",
        "train.steps=null",
        "train.optimizer.lr=-1",
        "train.clip=x",
        "train.ema=3",
        "data.size=yes",
        "guidance=x",
        "name=3",
        "sampler.steps=0",
        "task.network.width=1.5",
        "task.network.mult=x",
        "task.network.dropout=2",
        "task.schedule.steps=many",
        "task.conditioners.0.dim=0",
    ],
)
def test_the_setting_of_a_hint_builds(setting: str) -> None:
    typed = re.search(r"--set (\S.*)$", hinted(setting))
    assert typed is not None
    key, value = shlex.split(typed[1])[0].split("=", 1)
    assert value != "VALUE"
    assert setting.startswith(key)
    presets.build(TREE, "mine.yaml", [f"{key}={value}"])


@pytest.mark.parametrize("parts", [{"parts": []}, {}])
def test_the_parts_of_a_mixture_are_shown_by_one_that_builds(parts: dict[str, Any]) -> None:
    clips = TREE | presets.load("moving-digits").model_dump(mode="json")
    with pytest.raises(UserError, match=r"data\.parts") as caught:
        presets.build(clips | {"data": {"kind": "mix", "size": 16, "channels": 1} | parts}, "mine.yaml")
    typed = re.search(r"--set (\S.*)$", caught.value.hint)
    assert typed is not None
    presets.build(clips | {"data": {"kind": "mix", "size": 16, "channels": 1}}, "mine.yaml", shlex.split(typed[1]))


@pytest.mark.parametrize("key", ["name", "train.steps", "data", "task", "train"])
def test_what_is_missing_is_a_setting_or_a_part_of_the_file(key: str) -> None:
    tree = copy.deepcopy(TREE)
    node = tree
    *path, last = key.split(".")
    for part in path:
        node = node[part]
    del node[last]
    with pytest.raises(UserError, match=f"{key} is missing") as caught:
        presets.build(tree, "mine.yaml")
    typed = re.search(r"--set (\S+)", caught.value.hint)
    assert ("diffcli presets show" in caught.value.hint) == (typed is None)
    if typed:
        presets.build(tree, "mine.yaml", [typed[1]])
