"""Where a first stage is looked for, what is said where it is not, and what its digest is of."""

from pathlib import Path

import pytest

from diffcli.config import UserError
from diffcli.engine import stage_reading
from tests.latents import stage_checkpoint


def refused(path: Path) -> UserError:
    with pytest.raises(UserError, match=r"task\.codec\.from") as raised:
        stage_reading.read(path)
    return raised.value


def test_what_is_not_there_is_to_be_trained_by_a_command_that_can_be_pasted(tmp_path: Path) -> None:
    folder = tmp_path / "my runs" / "mnist-vae"
    assert refused(folder).hint == f"train it first: diffcli train --preset mnist-vae --run-dir '{folder}'"


def test_a_damaged_run_is_not_to_be_trained_again_in_its_place(tmp_path: Path) -> None:
    run = stage_checkpoint(tmp_path / "mnist-vae")
    (run / "checkpoint.json").write_text("{")
    assert "cannot be read as a checkpoint" in refused(run).problem
    assert "diffcli train" not in refused(run).hint
    (run / "checkpoint.json").unlink()
    assert "holds no whole checkpoint" in refused(run).problem
    assert "wait for its first checkpoint" in refused(run).hint
