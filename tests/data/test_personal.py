"""A handful of pictures of one thing: their texts, the pictures of the class beside them, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from diffcli.config import UserError
from diffcli.data.datasets import at_root
from diffcli.data.fitting import fitted
from diffcli.data.personal import PRESERVED, PRESERVED_TEXT, Personal, holds_word, picked
from diffcli.data.prepared import Shards


def pictures(folder: Path, levels: range) -> Path:
    """A folder of grey pictures of 6x6, each of one level."""
    folder.mkdir(parents=True)
    for level in levels:
        Image.new("L", (6, 6), level).save(folder / f"{level:03d}.png")
    return folder


def personal(root: Path | None = None, **keys: Any) -> Personal:
    usual: dict[str, Any] = {"root": root, "size": 6, "channels": 1, "token": "sks", "prompts": ["a photo of sks dog"]}
    return Personal.model_validate({**usual, **keys})


def preserving(tmp_path: Path, own: int = 4, others: int = 7, **keys: Any) -> Personal:
    kept = {"prompts": ["[a|the] dog"], "root": pictures(tmp_path / "class", range(100, 100 + others))}
    return personal(pictures(tmp_path / "own", range(own)), preserve=kept, **keys)


def test_every_epoch_chooses_a_text_with_the_token(tmp_path: Path) -> None:
    data = personal(pictures(tmp_path / "own", range(4)), prompts=["a photo of sks dog", "[my|the] sks"]).build("train")
    draws = torch.arange(600) * 2
    texts = data.read(torch.arange(600) % 4, draws)["text"]
    assert set(texts) == {"a photo of sks dog", "my sks", "the sks"}
    assert data.read(torch.arange(2))["text"] == ["a photo of sks dog"] * 2
    assert data.labels is None


def test_beside_each_picture_stands_one_of_the_class_with_its_own_text(tmp_path: Path) -> None:
    data = preserving(tmp_path).build("train")
    rows, draws = torch.arange(700) % 4, torch.randint(2**62, (700,), generator=torch.Generator().manual_seed(0))
    fields = data.read(rows, draws)
    assert fields["image"][:, 0, 0, 0].equal(rows.to(torch.uint8))
    which = fields[PRESERVED][:, 0, 0, 0].long() - 100
    assert which.equal(picked(rows, draws, 7))
    assert fields[PRESERVED_TEXT] == [("a dog", "the dog")[i % 2] for i in which.tolist()]
    counts = which.bincount(minlength=7)
    assert counts.min() > 60  # of 100 expected each: 4 standard deviations
    assert {name: data.specs[name] for name in (PRESERVED, PRESERVED_TEXT)} == personal(
        preserve={"prompts": ["a dog"]}
    )._beside  # what the preset says before files are read


def test_the_picture_of_the_class_follows_from_the_draw_alone(tmp_path: Path) -> None:
    draws = torch.randint(2**62, (50,), generator=torch.Generator().manual_seed(1))
    assert picked(torch.zeros(50, dtype=torch.int64), draws, 9).equal(picked(torch.arange(50), draws, 9))
    assert picked(torch.arange(12), None, 5).tolist() == [i % 5 for i in range(12)]


def test_held_out_pictures_have_none_of_the_class(tmp_path: Path) -> None:
    config = preserving(tmp_path)
    for split in ("train", "test"):
        (tmp_path / "own" / split).mkdir()
        for path in list((tmp_path / "own").glob("*.png")):
            Image.open(path).save(tmp_path / "own" / split / path.name)
    for path in (tmp_path / "own").glob("*.png"):
        path.unlink()
    assert PRESERVED in config.build("train").specs
    assert PRESERVED not in config.build("test").specs


def test_before_they_are_drawn_there_are_fields_and_no_pictures(tmp_path: Path) -> None:
    data = personal(pictures(tmp_path / "own", range(3)), preserve={"prompts": ["a dog"]}).build("train")
    assert data.specs[PRESERVED].shape == (1, 6, 6)
    with pytest.raises(UserError) as told:
        data.read(torch.arange(2))
    assert "data.preserve.root" in told.value.hint


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_pictures_are_refused(count: int, tmp_path: Path) -> None:
    with pytest.raises(UserError) as told:
        personal(pictures(tmp_path / "own", range(count))).build("train")
    assert "data.root" in told.value.problem
    assert f"{count} picture" in told.value.problem
    assert "3 to 20" in told.value.hint


def test_more_than_a_handful_is_noted(tmp_path: Path) -> None:
    origins = [personal(pictures(tmp_path / str(n), range(n))).build("train").origin for n in (20, 21)]
    assert [bool(origin and origin.notes) for origin in origins] == [False, True]


def test_a_broken_picture_is_refused_by_name(tmp_path: Path) -> None:
    own = pictures(tmp_path / "own", range(4))
    (own / "broken.png").write_bytes((own / "001.png").read_bytes()[:40])
    with pytest.raises(UserError, match=r"broken\.png"):
        personal(own).build("train")


@pytest.mark.parametrize(
    ("keys", "key", "remedy"),
    [
        ({"prompts": ["a photo of sks dog", "a dog"]}, "prompts", "sks"),
        ({"prompts": ["[sks|a] dog"]}, "'a dog'", "sks"),
        ({"prompts": ["a sksdog"]}, "a sksdog", "sks"),
        ({"prompts": []}, "prompts", ""),
        ({"prompts": ["a [sks dog"]}, "bracket", "[a|the]"),
        ({"token": "my dog"}, "my dog", "data.token"),
        ({"token": ""}, "token", ""),
        ({"preserve": {"prompts": ["a photo of sks dog"]}}, "preserve.prompts", "data.preserve.prompts"),
        ({"preserve": {"prompts": []}}, "prompts", ""),
        ({"captions": {"templates": ["{name}"]}}, "captions", "data.captions"),
    ],
)
def test_texts_that_do_not_fit_the_token_are_refused(keys: dict[str, Any], key: str, remedy: str) -> None:
    with pytest.raises(ValidationError) as told:
        personal(**keys)
    assert key in str(told.value)
    assert remedy in str(told.value)


@pytest.mark.parametrize(
    ("text", "word", "there"),
    [
        ("a photo of <cat-toy>", "<cat-toy>", True),
        ("x<cat-toy>y", "<cat-toy>", False),
        ("sks, the dog", "sks", True),
        ("sksks", "sks", False),
        ("S*", "S*", True),
        ("a.b", "a+b", False),
    ],
)
def test_a_word_stands_in_a_text_where_no_letter_touches_it(text: str, word: str, there: bool) -> None:
    assert holds_word(text, word) is there


def test_size_and_channels_follow_from_the_pictures(tmp_path: Path) -> None:
    given = Personal(root=pictures(tmp_path / "own", range(3)), token="sks", prompts=("sks",))
    found = fitted(given)
    assert (found.size, found.channels) == (6, 1)


def test_data_keeps_its_kind(tmp_path: Path) -> None:
    config = preserving(tmp_path)
    moved = at_root(config, pictures(tmp_path / "others", range(5)))
    assert isinstance(moved, Personal)
    assert not isinstance(moved, Shards)
    assert (moved.token, moved.preserve) == (config.token, config.preserve)
    assert len(moved.build("train")) == 5
