"""Whether a run can go on, as far as its files tell; the rest is left to the run itself."""

from pathlib import Path

import pytest

from diffcli.config import UserError
from diffcli.lookup.run_folders import check_to_do

TRAINED = {"name": "a", "train": {"steps": 6}}


@pytest.mark.parametrize("settings", [[], ["train.steps=6"], ["train.steps=5"]])
def test_a_run_at_its_last_step_has_nothing_to_do(tmp_path: Path, settings: list[str]) -> None:
    with pytest.raises(UserError, match="at step 6 of") as refused:
        check_to_do(tmp_path, 6, TRAINED, settings)
    assert "--steps 12" in refused.value.hint


def test_more_steps_may_stand_in_the_settings_and_in_the_edited_preset(tmp_path: Path) -> None:
    check_to_do(tmp_path, 6, TRAINED, ["train.steps=7"])
    (tmp_path / "preset.yaml").write_text("train: {steps: 9}")
    check_to_do(tmp_path, 6, TRAINED, [])
    with pytest.raises(UserError, match="at step 6 of 6"):
        check_to_do(tmp_path, 6, TRAINED, ["train.steps=6"])


@pytest.mark.parametrize("edited", ["train:", "train: [1]", "train: {steps: yes}", "train: {steps: x}", "a: 1"])
def test_an_edited_preset_that_is_wrong_is_left_to_its_reader(tmp_path: Path, edited: str) -> None:
    (tmp_path / "preset.yaml").write_text(edited)
    check_to_do(tmp_path, 6, TRAINED, [])
