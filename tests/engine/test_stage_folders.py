"""Folders that are no first stage, but often given for one."""

from pathlib import Path

import pytest

from diffcli.config import UserError
from diffcli.engine import stage_reading


def test_a_folder_of_pictures_is_said_to_be_no_run_and_no_first_stage(tmp_path: Path):
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(UserError, match="neither a run of diffcli nor a first stage"):
        stage_reading.describe(tmp_path)


def test_of_a_pipeline_the_first_stage_inside_is_named(tmp_path: Path):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae/config.json").write_text("{}")
    with pytest.raises(UserError) as error:
        stage_reading.describe(tmp_path)
    assert str(tmp_path / "vae") in error.value.hint
