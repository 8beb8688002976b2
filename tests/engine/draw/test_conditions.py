"""The contract of conditions, whoever provides them: a row follows from its number and seed alone, and is described in JSON."""

import dataclasses
import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.data.images import MemoryImages
from diffcli.engine.draw.conditions import Blank, Conditions, check_distinct
from diffcli.engine.draw.given import Given, Value
from diffcli.engine.draw.labels import Labels, choose_labels
from diffcli.engine.draw.prompts import Prompts
from diffcli.engine.draw.rows import Rows
from diffcli.fields import FieldSpec
from tests.engine.draw.making import made

TEXT = {"kind": "text", "width": 8, "depth": 1, "heads": 2, "length": 40, "gives": "vector"}
LEVELS = torch.arange(3 * 16, dtype=torch.uint8).view(3, 1, 4, 4)
SPECS = {"low_res": FieldSpec("image", (1, 4, 4))}


class Words:
    """A column of texts."""

    spec = FieldSpec("text")

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def read(self, indices: Tensor, draws: Tensor | None) -> list[str]:
        return [self.texts[i] for i in indices.tolist()]


def rows_of_data() -> Rows:
    labels = torch.tensor([2, 0, 1, 1])
    text = {"text": Words(["one", "two", "three", "four"])}
    data = MemoryImages(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), labels, ("a", "b", "c"), text)
    specs = {"text": FieldSpec("text"), "label": FieldSpec("classes", (), ("a", "b", "c"))}
    return Rows("set:train", data.select({"text"}), specs)


FILLS: dict[str, Callable[[], Conditions]] = {
    "one class": lambda: Labels((3,), 10),
    "all classes": lambda: Labels(tuple(range(10)), 10, tuple("abcdefghij"), each=True),
    "random classes": lambda: Labels("random", 10),
    "prompts": lambda: Prompts(made(task__conditioners=[TEXT]), ("a dog", "two cats")),
    "rows": rows_of_data,
    "given": lambda: Given(SPECS, {"low_res": Value(LEVELS, "a tensor")}),
    "blank": lambda: Blank({"text": FieldSpec("text"), "clip_text": FieldSpec("tokens", (None, 5))}),
}


@pytest.fixture(params=FILLS.values(), ids=FILLS)
def conditions(request: pytest.FixtureRequest) -> Conditions:
    found: Conditions = request.param()
    return found


def same(one: Tensor | list[str], other: Tensor | list[str]) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else one == other


def test_a_row_follows_from_its_number_and_seed_alone(conditions: Conditions) -> None:
    seeds = [100 + i for i in range(25)]
    whole = conditions.fields(range(25), seeds)
    assert whole.keys() == conditions.specs.keys()
    for rows in (range(1), range(7, 12), range(24, 25)):
        part = conditions.fields(rows, seeds[rows.start : rows.stop])
        assert all(same(value, whole[name][rows.start : rows.stop]) for name, value in part.items())


def test_rows_are_on_the_cpu_and_never_end(conditions: Conditions) -> None:
    far = conditions.fields(range(10**6, 10**6 + 2), [0, 1])
    for value in far.values():
        assert len(value) == 2
        assert not isinstance(value, Tensor) or value.device.type == "cpu"


def test_descriptions_are_json_and_as_long_as_the_rows(conditions: Conditions) -> None:
    described = json.loads(json.dumps(conditions.describe(range(3), [7, 8, 9])))
    for key in described.keys() & {"labels", "prompts"}:
        assert len(described[key]) == 3
    captions = conditions.captions(range(3), [7, 8, 9])
    assert captions is None or len(captions) == 3


def test_labels_are_those_of_the_fields(conditions: Conditions) -> None:
    labels = conditions.labels(range(2, 6), [1, 2, 3, 4])
    fields = conditions.fields(range(2, 6), [1, 2, 3, 4])
    assert (labels is None) == ("label" not in fields)
    assert labels is None or torch.equal(labels, fields["label"])


def test_how_many_images_were_asked_for_by_the_piece() -> None:
    found = {name: fill().images for name, fill in FILLS.items()}
    assert found == {
        "one class": None, "all classes": 10, "random classes": None, "prompts": 2, "rows": None, "given": 3, "blank": None,
    }  # fmt: skip


def test_of_values_of_several_fields_the_longest_says_how_many_images() -> None:
    specs = {**SPECS, "number": FieldSpec("number")}
    given = Given(specs, {"low_res": Value(LEVELS, ""), "number": Value(torch.tensor([5.0, 6.0]), "")})
    assert given.images == 3
    assert given.fields(range(3), [0, 1, 2])["number"].tolist() == [5, 6, 5]


def test_one_field_is_not_given_twice() -> None:
    with pytest.raises(UserError, match="'label' is given twice"):
        check_distinct([Labels((1,), 3), Labels("random", 3)])
    check_distinct([Labels((1,), 3), FILLS["given"]()])


def test_all_classes_are_counted_where_they_have_no_names() -> None:
    labels = choose_labels(made(), "all", None, {})
    assert labels is not None
    assert (labels.images, labels.captions(range(2), [0, 1])) == (10, ["class 0", "class 1"])


def test_classes_that_the_data_never_had_are_told_and_not_drawn_unless_asked_for() -> None:
    model = dataclasses.replace(made(), classes=("circle", "square"))
    for which in ("all", "random"):
        labels = choose_labels(model, which, None, {})
        assert labels is not None
        assert set(labels.labels(range(20), range(20)).tolist()) == {0, 1}
    room = model.task.advice({"image": FieldSpec("image", (1, 8, 8)), "label": FieldSpec("classes", (), 2)})
    assert len(room) == 1
    assert "2 classes of 'label'" in room[0]
    assert "task.conditioners.0.num_classes=2" in room[0]
    assert not model.task.advice({"label": FieldSpec("classes", (), 10)})
