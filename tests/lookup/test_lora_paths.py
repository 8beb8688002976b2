from pathlib import Path

import pytest

from diffcli.config import UserError
from diffcli.lookup.lora_paths import lora_text, lora_wish


@pytest.mark.parametrize(
    ("made", "typed", "path", "scale"),
    [
        ("a", "a", "a", 1.0),
        ("a", "a:0.5", "a", 0.5),
        ("a", "a:-2", "a", -2.0),
        ("a:0.5", "a:0.5", "a:0.5", 1.0),
        ("a:0.5", "a:0.5:2", "a:0.5", 2.0),
        ("C:", "C:", "C:", 1.0),
        ("b c:x", "b c:x", "b c:x", 1.0),
        ("b c:x", "b c:x:1e-1", "b c:x", 0.1),
    ],
)
def test_a_number_behind_the_last_colon_is_a_scale_unless_it_is_a_part_of_the_name(
    made: str, typed: str, path: str, scale: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(made).write_text("")
    found = lora_wish(typed)
    assert (str(found.path), found.scale) == (path, scale)


@pytest.mark.parametrize(
    ("typed", "word"), [("gone", "gone"), ("gone:0.5", "gone"), ("a:nan", "nan"), ("a:inf", "inf")]
)
def test_what_is_not_there_or_no_number_is_refused(
    typed: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a").write_text("")
    with pytest.raises(UserError, match=word) as error:
        lora_wish(typed)
    assert f"--lora {typed}" in error.value.problem


def test_it_is_the_same_when_typed_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a").write_text("")
    monkeypatch.chdir(tmp_path / "here")
    found = lora_wish("a:0.3")
    monkeypatch.chdir(tmp_path)
    again = lora_wish(lora_text(found, tmp_path / "here"))
    assert (again.path, again.scale) == (tmp_path / "here" / "a", 0.3)
