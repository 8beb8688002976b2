"""Changes that were trained to predict something else, or other classes, than the model that they are added to."""

import warnings
from pathlib import Path
from typing import Any

import pytest

from diffcli import checkpoint
from diffcli.config import Note, UserError
from tests.conftest import TINY
from tests.engine.lora.test_lora_runs import LORA, base, last, run_to, weights

__all__ = ["base"]  # a fixture


def test_changes_of_another_target_are_refused_by_its_name(base: Path, tmp_path: Path) -> None:
    other = "v" if TINY["task"].get("target", "eps") != "v" else "eps"
    run = run_to(tmp_path / "run", 1, base, task__target=other)
    weights(run)
    with pytest.raises(UserError, match=f"task.target {other}"):
        weights(base, loras=[str(run)])
    weights(run, loras=[str(run)])


def test_changes_of_another_schedule_are_added_with_a_note(base: Path, tmp_path: Path) -> None:
    run = run_to(tmp_path / "run", 1, base, task__schedule={"kind": "linear", "steps": 1000})
    with pytest.warns(Note, match=r"--lora .*task\.schedule .*linear"):
        weights(base, loras=[str(run)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", Note)
        weights(run, loras=[str(run)])


def test_a_table_of_other_classes_is_not_mixed_with_that_of_the_model(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 1 would be between two classes, whose names nobody would be told."""
    run = run_to(tmp_path / "run", 1, base, train__lora=LORA | {"whole": ["conditioners.0"]})
    weights(base, loras=[str(run)])
    read = checkpoint.read_record

    def of_other_names(path: Path) -> dict[str, Any]:
        record = read(path)
        return record | {"classes": record["classes"][::-1]} if path == last(run) else record

    monkeypatch.setattr(checkpoint, "read_record", of_other_names)
    with pytest.raises(UserError, match="was trained on the classes"):
        weights(base, loras=[str(run)])
    weights(run)
