"""Captions made of classes: every template with every name of the class, another one each epoch, and what cannot be captioned."""

import re
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.data.class_captions import ClassCaptions, wordings
from diffcli.data.datasets import Digits, Folder, Mnist, at_root
from diffcli.data.images import ImageData, MemoryImages
from diffcli.data.loader import batches
from diffcli.data.order import epoch_draws
from diffcli.data.prepared import Shards
from diffcli.prep.prepare import prepare
from tests.conftest import TINY, changed
from tests.data import making

TEMPLATES = ("a {name}", "{name}, drawn by hand", "the {name} of {name}")
NAMES = tuple((f"word{i}", str(i)) for i in range(10))
CAPTIONS = ClassCaptions(templates=TEMPLATES, names=NAMES)


def texts(data: ImageData, rows: torch.Tensor, draws: torch.Tensor | None = None) -> list[str]:
    found = data.read(rows, draws)["text"]
    assert isinstance(found, list)
    return found


def test_every_template_is_told_with_every_name_of_the_class_about_as_often() -> None:
    data = Digits(size=8, captions=CAPTIONS).build("test")
    assert data.labels is not None
    draws = torch.arange(1200) << 1  # bit 0 is the mirror's
    label = int(data.labels[5])
    found = texts(data, torch.full((1200,), 5), draws)
    expected = {t.replace("{name}", n) for t in TEMPLATES for n in NAMES[label]}
    assert {text: found.count(text) for text in set(found)} == dict.fromkeys(expected, 1200 // 6)


def test_without_a_draw_a_caption_is_the_first_template_with_the_first_name() -> None:
    data = Digits(size=8, captions=CAPTIONS).build("test")
    assert data.labels is not None
    assert texts(data, torch.arange(20)) == [f"a word{int(label)}" for label in data.labels[:20]]


def test_names_left_out_are_those_of_the_set() -> None:
    data = Digits(size=8, captions=ClassCaptions(templates=("a {name}",))).build("test")
    assert data.labels is not None
    assert texts(data, torch.arange(20)) == [f"a {int(label)}" for label in data.labels[:20]]


def test_an_epoch_draws_other_captions_and_the_same_ones_again_for_whoever_resumes() -> None:
    data = Digits(size=8, captions=CAPTIONS).build("test").select({"text"})
    told: dict[int, list[str]] = {}
    settings = {"batch_size": 500, "seed": 3, "flip": False, "device": torch.device("cpu")}
    for step, batch in batches(data, first=0, last=4, **settings):  # type: ignore[arg-type]
        for index, text in zip(batch["index"].tolist(), batch["text"], strict=True):
            told.setdefault(index, []).append(text)
        if step == 4:
            last = batch["text"]
    differ = sum(one != other for one, other in told.values())
    assert differ == pytest.approx(1000 * 5 / 6, abs=60)
    ((_, again),) = batches(data, first=3, last=4, **settings)  # type: ignore[arg-type]
    assert again["text"] == last


def test_every_labelled_kind_can_be_captioned(tmp_path: Path) -> None:
    making.class_folders(tmp_path / "folder/train")
    making.mnist(tmp_path / "mnist")
    list(prepare("folder", tmp_path / "folder", tmp_path / "set", images_per_shard=2))
    short = ClassCaptions(templates=("a {name}",))
    for config in (
        Folder(root=tmp_path / "folder", size=8, captions=short),
        Mnist(root=tmp_path / "mnist", captions=short),
        Shards(root=tmp_path / "set", size=8, captions=short),
        at_root(Folder(size=8, captions=short), tmp_path / "set"),
    ):
        data = config.build("train")
        assert data.labels is not None
        assert data.classes is not None
        assert texts(data, torch.arange(2)) == [f"a {data.classes[int(label)]}" for label in data.labels[:2]]


def test_a_set_without_classes_is_refused(tmp_path: Path) -> None:
    making.class_folders(tmp_path / "classes")
    with pytest.raises(UserError, match=r"data\.captions: the data have no classes"):
        Folder(root=tmp_path / "classes/cat", size=8, captions=ClassCaptions(templates=("a {name}",))).build("train")


def test_another_number_of_name_lists_than_classes_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.captions\.names has 2 lists, but the data have 10 classes"):
        Digits(captions=ClassCaptions(templates=("a {name}",), names=(("a",), ("b",)))).build("test")


def test_a_set_that_has_captions_is_refused() -> None:
    class Own:
        def read(self, indices: torch.Tensor, draws: torch.Tensor | None) -> list[str]:
            return ["mine"] * len(indices)

    data = MemoryImages(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), ["a", "b"], {"text": Own()})
    with pytest.raises(UserError, match="captions of their own"):
        ClassCaptions(templates=("a {name}",)).added(data)


@pytest.mark.parametrize(
    "wrong",
    [
        {"templates": ["a digit"]},
        {"templates": []},
        {"templates": ["{name}"], "names": [[]]},
        {"templates": ["[a|the {name}"]},
        {"templates": ["[a|[the|one] only] {name}"]},
        {"templates": ["[a|b]" * 60 + "{name}"]},  # 2^60 wordings
    ],
)
def test_what_cannot_make_captions_is_refused_by_key(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ClassCaptions.model_validate(wrong)
    with pytest.raises(UserError, match=r"data\.captions\.(templates|names)"):
        presets.build(changed(TINY, data__captions=wrong), "tiny.yaml")


def test_brackets_hold_words_of_which_one_is_drawn() -> None:
    assert wordings("[a|the] {name}[ on paper|]") == [
        "a {name} on paper",
        "a {name}",
        "the {name} on paper",
        "the {name}",
    ]
    assert wordings("a {name}") == ["a {name}"]
    data = Digits(captions=ClassCaptions(templates=("[a|the] {name}", "{name}[!|?]"))).build("test")
    index = torch.arange(len(data))
    said = [text for epoch in range(3) for text in texts(data, index, epoch_draws(0, epoch, index))]
    assert {re.sub(r"\d", "7", text) for text in said} == {"a 7", "the 7", "7!", "7?"}
    share = sum(text.startswith(("a ", "the ")) for text in said) / len(said)
    assert abs(share - 0.5) < 0.03
    assert abs(sum(text.startswith("a ") for text in said) / len(said) - 0.25) < 0.03
