from pathlib import Path

import pytest

import diffcli
from diffcli.config import UserError
from tests.conftest import Cli


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        (["train", "--preset", "digits", "--run-dir", ""], "--run-dir"),
        (["train", "--preset", "digits", "--data="], "--data"),
        (["resume", ""], "RUN_DIR"),
        (["prep-data", "folder", "", "--out", "shards"], "SOURCE"),
        (["prep-data", "folder", "pictures", "--out", ""], "--out"),
        (["sample", ""], "CKPT"),
        (["sample", "RUN", "--image", "a.png", "--image", ""], "--image"),
        (["sample", "RUN", "--out", ""], "--out"),
        (["fid", "a", ""], "A B|CKPT"),
        (["fid", "RUN", "--ref="], "--ref"),
        (["presets", "new", "mine", "--data", ""], "--data"),
        (["info", ""], "PATH"),
    ],
)
def test_an_empty_path_is_not_the_working_folder(
    cli: Cli, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: list[str], name: str
) -> None:
    (tmp_path / "pictures").mkdir()
    monkeypatch.chdir(tmp_path)
    cli(*(trained if word == "RUN" else word for word in typed)).refused(
        f"{name} '': is empty", "the working folder is ."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_a_prompt_may_be_empty_and_a_dot_is_the_working_folder(
    cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("sample", trained, "--prompt", "").refused("was not trained on texts")
    monkeypatch.chdir(trained)
    assert cli("info", ".").code == 0


def test_an_empty_path_in_python_is_refused() -> None:
    with pytest.raises(UserError, match="path is '': must be a path"):
        diffcli.load("")
