"""Changes that were trained to predict something else than the model that they are added to."""

from pathlib import Path

import pytest

from diffcli.config import UserError
from tests.conftest import TINY
from tests.engine.lora.test_lora_runs import base, run_to, weights

__all__ = ["base"]  # a fixture


def test_changes_of_another_target_are_refused_by_its_name(base: Path, tmp_path: Path) -> None:
    other = "v" if TINY["task"].get("target", "eps") != "v" else "eps"
    run = run_to(tmp_path / "run", 1, base, task__target=other)
    weights(run)
    with pytest.raises(UserError, match=f"task.target {other}"):
        weights(base, loras=[str(run)])
    weights(run, loras=[str(run)])
