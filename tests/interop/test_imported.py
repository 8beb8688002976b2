"""Which rows of a foreign table of classes are ours."""

from pathlib import Path

import pytest
import torch

from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.interop.imported import null_row
from tests.conftest import TINY, changed

LABELS = "labels.weight"
FILE = Path("theirs.pt")


def table(rows: int) -> dict[str, torch.Tensor]:
    return {LABELS: torch.zeros(rows, 2)}


def given(classes: int, drop: float) -> presets.Preset:
    keys = {"task__conditioners": [{"kind": "class", "num_classes": classes, "dim": 8}], "task__drop_condition": drop}
    return presets.build(changed(TINY, **keys, guidance=1), "mine.yaml")


def test_one_row_more_than_classes_is_that_of_no_class() -> None:
    assert null_row(given(4, 0.1), table(5), LABELS, FILE)
    assert not null_row(given(4, 0), table(4), LABELS, FILE)
    with pytest.raises(UserError, match=r"4 rows.*4 classes") as caught:
        null_row(given(4, 0.1), table(4), LABELS, FILE)
    assert "task.drop_condition to 0" in caught.value.hint


@pytest.mark.parametrize(("drop", "fitting"), [(0.1, 9), (0, 10)])
def test_weights_of_other_classes_than_those_of_the_preset_say_how_many_they_have(drop: float, fitting: int) -> None:
    with pytest.raises(UserError, match=r"theirs\.pt.*10 rows.*task\.conditioners\.0\.num_classes 4") as caught:
        null_row(given(4, drop), table(10), LABELS, FILE)
    assert f"task.conditioners.0.num_classes is {fitting}" in caught.value.hint
    null_row(given(fitting, drop), table(10), LABELS, FILE)  # what the hint says fits
