"""Captions in any script, and what is said where no font has a letter."""

import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from diffcli.config import Note
from diffcli.engine.draw.sheets import lettering
from diffcli.engine.draw.sheets.lettering import Lettering, font_files, has, strips

MISSING = "\U0010fffd"  # for private use: no font has it


def ink(letters: Lettering, text: str) -> bytes:
    image = Image.new("L", (60, 20))
    letters.write(ImageDraw.Draw(image), text, (30, 10))
    return image.tobytes()


def test_a_letter_that_the_font_has_not_is_told_from_one_that_it_has() -> None:
    font = ImageFont.load_default(12)
    assert has(font, "a")
    assert has(font, " ")
    assert not has(font, MISSING)


def test_a_text_that_the_first_font_has_needs_no_other() -> None:
    letters = Lettering()
    assert letters.readable("a cat") == ("a cat", set())
    assert len(letters.fonts) == 1  # no file was opened


@pytest.mark.skipif(not font_files(), reason="no fonts on this machine")
def test_other_letters_are_drawn_with_a_font_of_the_machine_that_has_them() -> None:
    letters = Lettering()
    assert letters.readable("naïve Жук") == ("naïve Жук", set())
    assert ink(letters, "Ж") != ink(letters, "Я")  # not the same box twice
    assert [part for part, _ in letters.runs("naïve Жук")] == ["naïve Жук"]  # in one face


def test_a_letter_and_its_accent_apart_are_the_letter_with_the_accent() -> None:
    assert Lettering().readable("e\u0301")[0] in ("é", "?")


def test_what_no_font_has_is_a_question_mark_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering, "lettering", lambda: Lettering(files=[]))
    with pytest.warns(Note, match="CYRILLIC CAPITAL LETTER ZHE"):
        shown = strips(["aЖ"], 96)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(shown, strips(["a?"], 96))


def test_files_that_are_no_fonts_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.ttf").write_bytes(b"none")
    assert Lettering(files=[tmp_path / "a.ttf"]).readable("Ж") == ("?", {"Ж"})
