"""Models that guide another know the same classes by the same numbers."""

from dataclasses import replace

import pytest

from diffcli.config import UserError
from diffcli.engine.draw.guides import check_class_names, check_weaker
from diffcli.engine.model import Model
from tests.engine.draw.making import made

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def named(*names: str) -> Model:
    return replace(made(), classes=names)


def test_classes_of_one_number_and_two_names_are_refused() -> None:
    model, swapped = named(*NAMES), named("one", "zero", *NAMES[2:])
    with pytest.raises(UserError, match=r"guide\.weaker.*class 0 is 'one'.*'zero'") as caught:
        check_weaker(swapped, model)
    assert "same data" in caught.value.hint
    check_weaker(named(*NAMES), model)
    check_weaker(made(), model)  # whose names nobody knows


def test_where_the_model_is_told_no_class_the_classifier_alone_names_them() -> None:
    model = replace(made(task__conditioners=[], task__drop_condition=0, guidance=1), classes=NAMES)
    check_class_names("guide.classifier", named("a", "b"), model, "train one")
    with pytest.raises(UserError, match="class 1"):
        check_class_names("guide.classifier", named("zero", "b"), named(*NAMES), "train one")
