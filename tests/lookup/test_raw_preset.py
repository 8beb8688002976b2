"""Mistakes that the file of the schema proves are those that a preset has, in the same words."""

import json
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.lookup import preset_files
from diffcli.lookup.raw_preset import PRESET, check_values
from diffcli.preset import Preset

NAMES = [
    "digits",
    "cifar10-iddpm",
    "mnist-dit",
    "cc3m-64-text",
    "moving-digits-class",
    "digits-lora",
    "cifar10-vqgan",
    "sit-xl-2",
]


def refusal(work: Any, *arguments: Any) -> UserError | None:
    try:
        work(*arguments)
    except UserError as error:
        return error
    return None


def test_the_file_of_the_schema_is_that_of_the_presets() -> None:
    """`make schema` writes it."""
    assert PRESET.model_json_schema() == json.loads(json.dumps(Preset.model_json_schema()))


@pytest.mark.parametrize(
    "setting",
    [
        "train.steps=-1", "train.stepz=1", "train.steps=many", "train.steps=yes", "train.steps=1.5", "task.network.kind=unett",
        "train.optimizer.lr=fast", "train.optimizer.lr=0", "train.optimizer={kind: adamw, lrr: 3}", "data.kind=foo",
        "train.log=[x]", "sampler.kind=heunn", "sampler.stepz=3", "seed=9223372036854775808", "train.precision=fp8",
        "task.conditioners.0.kind=clas", "train.compile=maybe", "train.every.save=-2", "guide.rescale=2", "trian.steps=1",
    ],
)  # fmt: skip
def test_a_wrong_setting_is_told_without_the_configs_as_with_them(setting: str) -> None:
    raw = preset_files.read(preset_files.find("digits"))
    early, whole = refusal(check_values, raw, "digits", [setting]), refusal(presets.build, raw, "digits", [setting])
    assert early is not None
    assert whole is not None
    assert (early.problem, early.hint, early.also) == (whole.problem, whole.hint, whole.also)


@pytest.mark.parametrize(
    "overrides",
    [
        ["task.control=runs/x"],  # one value for a list of it
        ["task.network.mult=2"],
        ["task.control.from=runs/x"],
        ["train={}"],
        ["from=runs/x"],
        ["train.steps=-1", "task={}"],  # two mistakes, of which one is not certain
        ["train.steps=-1", "from.kind=x"],  # a key is missing beside
        ["train.steps=-1", "name=3"],
    ],
)
def test_what_only_a_config_knows_is_left_to_it(overrides: list[str]) -> None:
    check_values(preset_files.read(preset_files.find("digits")), "digits", overrides)


def test_a_key_below_a_single_value_of_a_list_is_refused() -> None:
    error = refusal(presets.build, RAW["digits"], "digits", ["task.network.mult.0.kind=1"])
    assert error is not None
    assert "task.network.mult.0.kind" in error.problem


def test_data_that_a_flag_names_may_be_of_another_kind_than_in_the_file() -> None:
    raw = preset_files.read(preset_files.find("digits"))
    assert refusal(check_values, raw, "digits", ["data.broken=stop"]) is not None
    assert refusal(lambda: check_values(raw, "digits", ["data.broken=stop"], apart=["data"])) is None


def paths_of(node: Any, start: str = "") -> list[str]:
    """The dotted keys of a raw tree, of records and of values."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [start] * bool(start) + [path for key, each in items for path in paths_of(each, f"{start}.{key}".strip("."))]


RAW = {name: preset_files.read(preset_files.find(name)) for name in NAMES}
MORE = [
    "seed",
    "train.clip",
    "train.accumulate",
    "train.lora",
    "guide.interval",
    "train.ema",
    "sampler",
    "task.times",
    "task.field",
]
VALUES = [
    "0",
    "-1",
    "1",
    "2.5",
    "1e30",
    ".nan",
    "null",
    "[]",
    "{}",
    "[1, 2]",
    "yes",
    "x",
    "'1'",
    "{kind: x}",
    "{kind: ddim}",
]
SETTINGS = st.sampled_from(NAMES).flatmap(
    lambda name: st.tuples(
        st.just(name),
        st.lists(
            st.tuples(
                st.sampled_from([*paths_of(RAW[name]), *MORE]),
                st.sampled_from(["", ".kind", ".x"]),
                st.sampled_from(VALUES),
            ),
            min_size=1,
            max_size=2,
        ),
    )
)


@settings(max_examples=200, deadline=None)
@given(SETTINGS)
def test_what_the_schema_proves_wrong_a_preset_refuses(case: tuple[str, list[tuple[str, str, str]]]) -> None:
    name, items = case
    overrides = [f"{path}{more}={value}" for path, more, value in items]
    early = refusal(check_values, RAW[name], name, overrides)
    if early is not None:
        whole = refusal(presets.build, RAW[name], name, overrides)
        assert whole is not None, overrides
        assert early.problem.partition(": ")[2].split(" (and ")[0] in str(whole)  # perhaps after others


def test_a_shipped_preset_passes() -> None:
    for name, path in preset_files.available().items():
        raw = yaml.safe_load(path.read_text())
        check_values(raw, name, [f"name={name}", f"train.steps={raw['train']['steps']}"])


def test_a_key_that_may_only_be_true_takes_it() -> None:
    raw = preset_files.read(preset_files.find("digits-segmentation"))
    check_values(raw, "digits-segmentation", ["task.codec.clip=true"])
    whole = presets.load("digits-segmentation").model_dump(mode="json")
    assert refusal(check_values, whole, "digits-segmentation", ["train.steps=-1"]) is not None
