"""Keys that contradict each other are shown together with values that are wrong, and never because of these."""

from typing import Any

import pytest

from diffcli import preset as presets
from diffcli.config import UserError
from tests.conftest import TINY, changed

BETWEEN = {"train__accumulate": 999, "guide": {"classifier_scale": 3.0}}  # contradictions of train and of guide


def lines(**changes: Any) -> list[str]:
    """What is said of a tree, one mistake each."""
    with pytest.raises(UserError) as caught:
        presets.build(changed(TINY, **changes), "tiny.yaml")
    return [caught.value.problem, *caught.value.also]


def test_contradictions_of_several_sections_are_shown_at_once():
    found = lines(**BETWEEN, task__schedule={"kind": "flow"}, task__target="eps", task__learn_variance=True)
    for words in ("target 'eps'", "learn_variance", "accumulate is 999", "classifier_scale is 3.0"):
        assert sum(words in line for line in found) == 1, words
    assert len(found) == 4


@pytest.mark.parametrize(
    "wrong",
    [
        {"train__steps": "x"},
        {"train__steps": None},
        {"name": None},
        {"task__network__widht": 3},
        {"task__network": {"kind": "unett"}},
        {"task__conditioners": [{"kind": "class", "dim": 0}]},
        {"sampler": {"kind": "dimm"}},
        {"gidance": 3},
    ],
)
def test_a_wrong_value_hides_no_contradiction(wrong: dict[str, Any]):
    found = lines(**BETWEEN, **wrong)
    assert any("accumulate is 999" in line for line in found)
    assert any("classifier_scale is 3.0" in line for line in found)
    assert len(found) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"task__drop_condition": None, "task__drop_condtion": 0.1},  # guidance needs it
        {"task__conditioners": [{"kind": "clas"}]},  # drop_condition needs one
        {"task__learn_variance": "x", "sampler": {"kind": "ddpm", "variance": "learned", "steps": 3}},
        {"train__batch_size": "x", "train__accumulate": 3},  # the stand-in is smaller
        {"task__target": "flwo", "task__schedule": {"kind": "flow"}},
    ],
)
def test_what_only_follows_from_a_wrong_value_is_no_contradiction(wrong: dict[str, Any]):
    assert len(lines(**wrong)) == 1


def test_a_config_stays_whole_where_a_tree_with_the_same_defaults_was_refused():
    lines(sampler={"kind": "dimm"}, guide={"rescal": 0.5})
    assert presets.build(changed(TINY, sampler=None, guide=None), "tiny.yaml").sampler.kind == "ddim"
