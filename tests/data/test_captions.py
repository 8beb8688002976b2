"""Captions survive storage in any language, stay on their line, and each epoch reads one of several."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffcli.data.captions import UTF16_MARKS, chosen, clean, from_bytes, from_json, texts, to_bytes

ANYTHING = st.text(st.characters(), max_size=40)  # lone surrogates and control characters too


@given(st.lists(ANYTHING, max_size=5))
def test_what_was_stored_is_read(captions: list[str]):
    assert from_bytes(to_bytes(captions)) == ([c for c in map(clean, captions) if c] or [""])


@given(ANYTHING)
def test_a_clean_caption_is_one_line_of_valid_text_and_stays_as_it_is(text: str):
    cleaned = clean(text)
    assert len(cleaned.encode().splitlines()) <= 1
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in cleaned)
    assert cleaned == cleaned.strip() == clean(cleaned)


@given(st.binary(max_size=60))
def test_any_bytes_give_at_least_one_caption_or_are_refused_as_no_utf8(data: bytes):
    try:
        found = from_bytes(data)
    except UnicodeDecodeError:
        with pytest.raises(UnicodeDecodeError):
            data.decode("utf-16" if data[:2] in UTF16_MARKS else "utf-8")
        return
    assert found
    assert all(caption == clean(caption) for caption in found)


def test_marks_of_spreadsheets_and_of_utf16_are_understood():
    assert from_bytes("a cat\nü".encode("utf-8-sig")) == from_bytes("a cat\nü".encode("utf-16")) == ["a cat", "ü"]


def test_nothing_is_no_caption():
    assert texts(float("nan")) == texts(None) == texts([None, float("nan"), {}]) == ()
    assert from_json(b'{"caption": null, "text": "words"}') == ("words",)
    assert from_json(b'{"caption": NaN}') == ()
    assert texts(3.5) == ("3.5",)


def test_captions_of_any_language_keep_every_character():
    captions = ["猫が窓辺で寝ている", "کتاب روی میز", "Füchse 🦊 im Wald", "e\u0301"]
    assert from_bytes(to_bytes(captions)) == captions


def test_control_characters_and_line_ends_become_spaces():
    assert clean("a\x00dog\r\n\tin\u2028the\x85 snow\x1b ") == "a dog in the snow"
    assert from_bytes(b"one\r\n\n two \n") == ["one", "two"]


@given(st.integers(1, 9), st.integers(0, 2**63 - 1))
def test_a_draw_chooses_one_of_them_whatever_it_mirrors(count: int, draw: int):
    assert 0 <= chosen(count, draw) < count
    assert chosen(count, draw | 1) == chosen(count, draw & ~1)
    assert chosen(count, None) == 0


def test_every_caption_is_chosen_about_as_often():
    from torch import arange, bincount, tensor

    from diffcli.data.order import epoch_draws

    found = bincount(tensor([chosen(5, draw) for draw in epoch_draws(0, 0, arange(5000)).tolist()]))
    assert (abs(found - 1000) < 150).all()


def test_json_beside_an_image_is_a_text_a_list_or_an_object_with_a_usual_key():
    for data in (b'"a"', b'["a"]', b'{"caption": "a"}', b'{"captions": ["a"]}', b'{"text": "a", "url": 1}'):
        assert from_json(data) == ("a",)
    assert from_json(b'{"url": "a"}') == from_json("null") == ()
    for data in (b"{", b"[" * 100_000, b"\xff"):
        with pytest.raises(ValueError, match=r"."):
            from_json(data)
