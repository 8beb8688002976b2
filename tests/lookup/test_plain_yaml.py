"""What YAML takes in silence and a preset must not: a key twice, and yes for a number."""

import re
from pathlib import Path

import pytest
import yaml

from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.lookup.plain_yaml import parsed


def test_a_key_that_stands_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(
        "name: a\ntrain: {steps: 1}\ndata: &d {kind: digits}\nother: {<<: *d, size: 3}\ntrain: {steps: 2}\n"
    )
    with pytest.raises(UserError, match=r"p\.yaml.*'train'.*2 and 5"):
        presets.read(file)
    file.write_text("name: a\ntrain:\n  every:\n    log: 1\n    save: 2\n    log: 3\n")
    with pytest.raises(UserError, match=r"'log'.*4 and 6"):
        presets.read(file)
    with pytest.raises(UserError, match=r"--set train\.every.*'log'"):
        presets.load("digits", ["train.every={log: 1, log: 2}"])
    file.write_text("a: &d {kind: digits}\nb: {<<: *d, kind: mnist}\n")
    assert presets.read(file)["b"] == {"kind": "mnist"}


@pytest.mark.parametrize(
    "key",
    [
        "train.batch_size",
        "train.ema",
        "train.clip",
        "task.network.width",
        "data.size",
        "data.channels",
        "sampler.steps",
    ],
)
def test_yes_is_no_number(key: str) -> None:
    with pytest.raises(UserError, match=rf"{re.escape(key)} is True") as told:
        presets.load("digits", [f"{key}=yes"])
    assert f"--set {key}=" in told.value.hint or "1, 3" in told.value.hint


def test_yes_is_no_number_in_a_list_and_a_switch_elsewhere() -> None:
    with pytest.raises(UserError, match=r"task\.network\.mult\.1 is True: must be a whole number"):
        presets.load("digits", ["task.network.mult=[1, on]"])
    assert presets.load("digits", ["data.flip=yes", "task.learn_variance=off"]).data.flip is True


def test_data_given_by_a_flag_have_the_keys_of_their_own_kind() -> None:
    url = "https://host/{000..003}.tar"
    data = presets.load("digits", ["data.lanes=2", "data.flip=true"], url).data
    assert (data.kind, data.shards, data.lanes, data.flip, data.size) == ("stream", url, 2, True, None)
    with pytest.raises(UserError, match=r"data\.lanez is not a known key") as told:
        presets.load("digits", ["data.lanez=2"], url)
    assert "did you mean 'lanes'" in told.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "a: {b: 1}\nc: [x, 'y', 1e3, yes, ~]\n",
        "- {x?: 1}",  # what follows is read otherwise by libyaml
        "{a? b: 1}",
        "!",
        "|#\n",
        "a:\tb",
        "- \ufeff",
    ],
)
def test_the_quick_reader_reads_what_the_strict_one_reads(text: str) -> None:
    try:
        expected: object = yaml.safe_load(text)
    except yaml.YAMLError:
        with pytest.raises(yaml.YAMLError):
            parsed(text)
    else:
        assert parsed(text) == expected


def test_what_is_no_yaml_is_told_in_the_words_of_the_strict_reader() -> None:
    for text in ("a: [1", "a: b: c", "'"):
        with pytest.raises(yaml.YAMLError) as strict:
            yaml.safe_load(text)
        with pytest.raises(yaml.YAMLError) as ours:
            parsed(text)
        assert str(ours.value) == str(strict.value)
