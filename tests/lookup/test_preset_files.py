"""A preset that is not found is answered with the file that was probably meant."""

from pathlib import Path

import pytest

from diffcli.config import UserError
from diffcli.lookup.preset_files import available, find, read


@pytest.mark.parametrize(
    ("typed", "remedy"), [("photos", "--preset photos.yaml"), ("photo.yaml", "photos.yaml"), ("digit", "'digits'")]
)
def test_a_name_close_to_a_file_is_answered_with_the_file(
    typed: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos.yaml").write_text("name: photos")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        find(typed)
    assert f"--preset {typed}" in refused.value.problem
    assert remedy in refused.value.hint


def test_the_first_line_of_every_preset_is_whole() -> None:
    """`presets list` shows it alone."""
    for path in available().values():
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        assert first.count("(") == first.count(")"), path


@pytest.mark.parametrize(
    ("text", "problem", "remedy"),
    [
        ("", "is empty", "presets show digits"),
        ("- a", "a list", "presets show digits"),
        ("a", "a single value", "presets show digits"),
        ("data:\n\tkind: folder", "line 2", "spaces"),
    ],
)
def test_a_file_that_is_no_preset_is_described_in_words(tmp_path: Path, text: str, problem: str, remedy: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError) as refused:
        read(tmp_path / "mine.yaml")
    assert "mine.yaml" in refused.value.problem
    assert problem in refused.value.problem
    assert remedy in refused.value.hint
    assert "unicode string" not in refused.value.problem
