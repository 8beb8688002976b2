"""A path that is no checkpoint is refused with what to type instead."""

from pathlib import Path

import pytest

from diffcli.config import UserError
from diffcli.lookup.checkpoint_files import locate, run_directory, runs_inside


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("photos.yaml", "diffcli train --preset {}/photos.yaml"),
        ("a.png", "a run directory"),
        ("run/preset.yaml", "the run that it lies in: {}/run"),
        ("run/loss.png", "the run that it lies in: {}/run"),
        (
            "run/checkpoints/step-00000003/checkpoint.json",
            "the checkpoint that it lies in: {}/run/checkpoints/step-00000003",
        ),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused_with_a_remedy(tmp_path: Path, name: str, remedy: str) -> None:
    whole = tmp_path / "run" / "checkpoints" / "step-00000003"
    whole.mkdir(parents=True)
    (whole / "checkpoint.json").write_text("{}")
    (tmp_path / name).write_text("name: photos\n")
    with pytest.raises(UserError) as refused:
        locate(tmp_path / name)
    assert str(tmp_path / name) in refused.value.problem
    assert remedy.format(tmp_path) in refused.value.hint


def test_weights_are_known_by_their_header_whatever_their_name(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes((2).to_bytes(8, "little") + b"{}")
    assert locate(tmp_path / "weights") == tmp_path / "weights"


def test_a_run_is_found_in_the_folder_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("my photos", "judge"):
        (tmp_path / "runs" / name / "checkpoints").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for read in (locate, run_directory):
        with pytest.raises(UserError) as refused:
            read(Path("my photos"))
        assert "'runs/my photos'" in refused.value.hint
    with pytest.raises(UserError) as refused:
        locate(Path("runs"))
    assert refused.value.hint == runs_inside(Path("runs"))
    assert "runs/judge, 'runs/my photos'" in refused.value.hint
    assert runs_inside(tmp_path) == ""
