"""What an error of a preset says of a value in the wrong form, and that its hint works when it is typed."""

import json
import shlex

import pytest
import yaml

from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.config_errors.schema_paths import setting
from tests.conftest import TINY, changed


def refused(*overrides: str) -> UserError:
    with pytest.raises(UserError) as caught:
        presets.build(TINY, "tiny.yaml", overrides)
    assert "Input should" not in str(caught.value)
    return caught.value


def typed(hint: str) -> list[str]:
    """What --set is given where somebody types the hint into a shell."""
    words = shlex.split(hint.partition("--set ")[2])
    return words[:1]


@pytest.mark.parametrize(
    ("override", "problem", "hinted"),
    [
        ("train.phases.main.networks=denoiser", "must be a list", "train.phases.main.networks=[denoiser]"),
        ("train.phases=main", "'main': must be KEY: VALUE pairs", "train.phases.main.first=1"),
        ("train.phases=[]", "[]: must be KEY: VALUE pairs", "train.phases={}"),
        ("train.phases.main=", "null: must be KEY: VALUE pairs", "train.phases.main.first=1"),
        ("train.every=3", "3: must be KEY: VALUE pairs", "train.every.log=50"),
        ("sampler=ddpm", "'ddpm': must be KEY: VALUE pairs", "sampler.kind=ddpm"),
        ("task.conditioners=class", "'class': must be a list", "task.conditioners=[{kind: class}]"),
        ("task.conditioners={kind: class}", "must be a list", "task.conditioners=[{kind: class}]"),
        ("task.conditioners=[class]", "task.conditioners.0 is 'class'", "task.conditioners=[{kind: class}]"),
        ("data.buckets=8", "8: must be a list", "data.buckets=[[8, 8]]"),
        ("data.buckets=[[8]]", "data.buckets.0 is [8]: must be a list of 2", "data.buckets=[[8, 8]]"),
        ("data.size=[8]", "data.size is [8]: must be a list of 2", "data.size=[8, 8]"),
        ("train.optimizer.betas=0.9", "0.9: must be a list of 2", "train.optimizer.betas=[0.9, 0.999]"),
        ("guide.interval=3", "3: must be a list of 2", "guide.interval=[0.3, 3.0]"),
        ("train.ema=[]", "[]: must be a list of 1 or more", "train.ema=[0.5]"),
    ],
)
def test_a_value_in_the_wrong_form_is_told_in_the_right_one_which_works(
    override: str, problem: str, hinted: str
) -> None:
    error = refused(override)
    key = override.partition("=")[0]
    assert key in error.problem
    assert problem in error.problem
    assert "more mistake" not in error.problem
    assert typed(error.hint) == [hinted]
    presets.build(TINY, "tiny.yaml", typed(error.hint))


def test_an_empty_list_of_words_is_answered_with_the_default() -> None:
    with pytest.raises(UserError) as error:
        presets.load("digits-lora", ["train.lora.targets=[]"])
    assert "train.lora.targets=[attention]" in error.value.hint


def test_an_empty_list_of_texts_without_a_default_is_answered_with_an_example() -> None:
    for key, example in (("prompts", "a photo of sks dog"), ("preserve.prompts", "a photo of a dog")):
        data = {"kind": "personal", "root": "x", "token": "sks", "prompts": ["sks"], "preserve": {"prompts": ["dog"]}}
        told = refused(f"data={json.dumps(data)}", f"data.{key}=[]")
        assert typed(told.hint) == [f"data.{key}=[{example}]"]


def test_a_record_of_a_kind_lists_the_kinds() -> None:
    error = refused("train.optimizer=adamw2")
    assert "did you mean 'adamw'?" in error.hint
    assert "--set train.optimizer.kind=KIND" in error.hint


def test_a_record_without_a_simple_key_lists_its_keys() -> None:
    assert refused("data.captions=hi").hint == "write KEY: VALUE pairs, of the keys templates, names"


@pytest.mark.parametrize(
    ("override", "demand"),
    [
        ("train.steps=a", "must be a whole number"),
        ("train.steps=", "train.steps is null: must be a whole number"),
        ("train.steps=0", "must be at least 1"),
        ("train.clip=0", "must be above 0"),
        ("task.drop_condition=1", "must be below 1"),
        ("train.clip=a", "must be a number"),
        ("train.clip=.nan", "must be a finite number"),
        ("train.compile=3", "must be true or false"),
        ("name=3", "must be a text"),
    ],
)
def test_a_value_out_of_range_is_told_what_it_must_be(override: str, demand: str) -> None:
    assert demand in refused(override).problem


def test_all_mistakes_of_a_preset_are_shown_at_once() -> None:
    tree = changed(TINY, train__steps=0, task__schedule={"kind": "cosin"}, task__network__widht=3, gidance=2)
    with pytest.raises(UserError) as caught:
        presets.build(tree, "tiny.yaml", ["train.clip=0"])
    error = caught.value
    lines = [f"{error.problem}; {error.hint}", *error.also]
    wanted = {
        "task.schedule.kind": ("'cosin'", "'cosine'"),
        "task.network.widht": ("not a known key", "'width'"),
        "train.steps": ("0", "--set train.steps="),
        "train.clip": ("with --set", "0"),
        "gidance": ("not a known key", "'guidance'"),
    }
    assert len(lines) == len(wanted)
    for key, words in wanted.items():
        (line,) = [line for line in lines if key in line]
        assert all(word in line for word in words), line
    assert all(line in str(error) for line in error.also)


def test_each_wrong_value_of_a_list_is_a_mistake_and_none_is_shown_twice() -> None:
    error = refused("train.ema=[0.5, 2, x]")
    assert "train.ema.1 is 2" in error.problem
    assert [other.partition(":")[0] for other in error.also] == ["train.ema.2 is 'x'"]
    stds = refused("train.ema={kind: power, stds: [9, x]}")
    assert "train.ema.stds.0" in stds.problem
    assert len(stds.also) == 1
    assert not refused("train.ema=x").also


@pytest.mark.parametrize("value", [[1, [2, "a b"]], {"x": 1, "y": None}, "text", 3, 0.5, True, "007"])
def test_a_setting_gives_its_value_back_through_a_shell_and_yaml(value: object) -> None:
    [word] = shlex.split(setting({}, ["a", "b"], value))
    key, _, text = word.partition("=")
    assert (key, yaml.safe_load(text)) == ("a.b", value)


def test_a_setting_inside_a_list_gives_the_whole_list() -> None:
    tree = {"items": [{"kind": "one", "width": 3}, {"kind": "two"}]}
    assert setting(tree, ["items", 0, "width"], 4) == "'items=[{kind: one, width: 4}, {kind: two}]'"


@pytest.mark.parametrize(
    ("name", "override", "setting"),
    [
        ("digits", "data.size=null", "data.size=28"),
        ("moving-digits", "data.frames=null", "data.frames=16"),
        ("digits", "data.size={kind: x}", "data.size=28"),
        ("cifar10-class", "train.phases.main.optimizer.betas=0.5", "'train.phases.main.optimizer.betas=[0.5]'"),
    ],
)
def test_the_form_of_a_value_is_no_key(name: str, override: str, setting: str) -> None:
    """pydantic ends the place of a mistake by the form that it tried, as `tuple[int, int]`."""
    with pytest.raises(UserError) as refused:
        presets.load(name, [override])
    assert refused.value.problem.count(override.partition("=")[0])
    assert "[" not in refused.value.problem.partition(" is ")[0]
    assert f"--set {setting}" in refused.value.hint
