"""The byte-level text encoder: any text, padding that nobody reads, the null, and where the vector is taken."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from diffcli.config import Note, UserError
from diffcli.fields import FieldSpec
from diffcli.networks.conditioning import Conditioning, CondShape
from diffcli.tasks.conditioners.text import TextConditioner, TextConditionerConfig, as_bytes, cut
from tests.networks.waking import normal, wake

LIKE = torch.empty(0)
TEXTS = ["a handwritten seven", "", "七つ", "ein\u0000 Text\n\twith\u0085control", "👩‍🚀", "\ud800 alone"]
LENGTH = 40


def build(gives: str = "both", length: int = LENGTH, neighbours: int = 5) -> TextConditioner:
    config = TextConditionerConfig(
        width=8,
        depth=2,
        heads=2,
        length=length,
        neighbours=neighbours,
        gives=gives,  # type: ignore[arg-type]
    )
    return wake(config.build())  # type: ignore[return-value]


def tell(conditioner: TextConditioner, texts: list[str], keep: list[bool] | None = None) -> Conditioning:
    kept = [True] * len(texts) if keep is None else keep
    return conditioner({"text": texts}, torch.tensor(kept), LIKE)


def slots(told: Conditioning) -> tuple[Tensor, Tensor, Tensor]:
    assert told.vector is not None
    assert told.tokens is not None
    assert told.mask is not None
    return told.vector, told.tokens, told.mask


@pytest.mark.parametrize(
    ("gives", "shape"), [("both", CondShape(8, 8)), ("vector", CondShape(8, 0)), ("tokens", CondShape(0, 8))]
)
def test_it_gives_what_it_declares_and_trains_every_parameter(gives: str, shape: CondShape) -> None:
    conditioner = build(gives)
    told = tell(conditioner, TEXTS, [True] * (len(TEXTS) - 1) + [False])
    assert conditioner.shape == shape
    assert (told.vector is not None, told.tokens is not None) == (shape.vector > 0, shape.tokens > 0)
    assert (told.mask is not None) == (told.tokens is not None)
    total = 0.0
    for slot in (told.vector, told.tokens):
        if slot is not None:
            assert slot.shape == (len(TEXTS), *(LENGTH,) * (slot.ndim - 2), 8)
            total = total + (slot * torch.linspace(-1, 1, slot.numel()).view(slot.shape)).sum()
    total.backward()  # type: ignore[attr-defined]
    assert not [name for name, p in conditioner.named_parameters() if p.grad is None or not p.grad.any()]


def test_the_mask_is_true_for_the_bytes_and_two_marks() -> None:
    _, _, mask = slots(tell(build(), TEXTS[:3]))
    assert mask.sum(dim=1).tolist() == [19 + 2, 2, 6 + 2]
    assert (mask.int().diff(dim=1) <= 0).all()  # padding stands at the end


def test_a_text_does_not_depend_on_what_stands_beside_it() -> None:
    conditioner = build()
    together = slots(tell(conditioner, TEXTS))
    for i, text in enumerate(TEXTS):
        for alone, row in zip(slots(tell(conditioner, [text])), together, strict=True):
            torch.testing.assert_close(alone, row[i : i + 1], atol=1e-5, rtol=1e-5)


def test_how_much_padding_there_is_changes_nothing() -> None:
    """A longer conditioner with the same weights reads a short text in the same way."""
    short, long = build(length=24), build(length=60)
    state = short.state_dict()
    state["positions"] = torch.cat([state["positions"], normal(36, 8)])
    long.load_state_dict(state)
    (vector, tokens, mask), (other, others, padded) = (slots(tell(c, TEXTS[:3])) for c in (short, long))
    torch.testing.assert_close(vector, other, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tokens[mask], others[:, :24][mask], atol=1e-5, rtol=1e-5)
    assert torch.equal(mask, padded[:, :24])
    assert not padded[:, 24:].any()


def test_the_vector_is_the_token_at_the_end_mark() -> None:
    vector, tokens, mask = slots(tell(build(), TEXTS))
    assert torch.equal(vector, tokens[torch.arange(len(TEXTS)), mask.sum(dim=1) - 1])


def test_rows_not_kept_are_the_learned_null_whatever_their_text() -> None:
    conditioner = build()
    vector, tokens, mask = slots(tell(conditioner, ["one", "two and more", "three"], [False, False, True]))
    assert torch.equal(vector[:2], conditioner.null_vector.expand(2, -1))  # type: ignore[union-attr]
    assert torch.equal(tokens[:2][mask[:2]], conditioner.null_token.expand(2, -1))  # type: ignore[union-attr]
    assert mask.sum(dim=1).tolist() == [1, 1, 5 + 2]  # a row without any readable token would attend to nothing
    assert not torch.equal(vector[2], vector[0])


def test_the_order_of_letters_is_read() -> None:
    vector, *_ = slots(tell(build(), ["on", "no"]))
    assert not torch.allclose(vector[0], vector[1], atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60), st.integers(0, 30))
def test_a_cut_text_is_whole_characters_from_its_start_and_as_many_as_fit(text: str, limit: int) -> None:
    data = as_bytes(text)
    kept = cut(data, limit)
    whole = data.decode()
    assert data.startswith(kept)
    assert len(kept) <= limit
    assert whole.startswith(kept.decode())
    if kept != data:
        assert len(kept) + len(whole[len(kept.decode())].encode()) > limit


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(), max_size=80))
def test_any_text_at_all_can_be_read(text: str) -> None:
    conditioner = build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Note)
        told = slots(tell(conditioner, [text]))
        ids, ends = conditioner.tokenise([text])
    assert told[0].isfinite().all()
    assert told[1].isfinite().all()
    row, end = ids[0].tolist(), int(ends)
    assert (row[0], row[end], set(row[end + 1 :])) == (2, 3, set() if end == LENGTH - 1 else {0})
    assert all(byte >= 32 for byte in row[1:end])  # nothing in a text can be taken for a mark


def test_a_text_that_is_cut_is_noted_once_and_by_its_tokens() -> None:
    conditioner = build()
    with pytest.warns(Note, match=f"52 tokens .* {LENGTH} of"):
        tell(conditioner, ["七" * 16 + "xy", "short"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", Note)
        tell(conditioner, ["a" * 100])
    same = slots(tell(conditioner, ["七" * 12 + "xy", "七" * 12 + "zz"]))[0]  # 36 bytes and 2 more fit
    assert not torch.equal(same[0], same[1])
    beyond = slots(tell(conditioner, ["a" * 38 + "x", "a" * 38 + "y"]))[0]
    assert torch.equal(beyond[0], beyond[1])


@torch.no_grad()
def test_an_untrained_encoder_speaks_in_numbers_of_about_one() -> None:
    told = TextConditionerConfig(width=64, depth=4, heads=4, length=48).build()(
        {"text": TEXTS}, torch.ones(6) > 0, LIKE
    )
    vector, tokens, mask = slots(told)
    assert 0.8 < float(vector.std()) < 1.2
    assert 0.8 < float(tokens[mask].std()) < 1.2


def test_data_without_captions_are_the_users_error() -> None:
    with pytest.raises(UserError, match="image, label") as caught:
        build().check({"label": FieldSpec("classes"), "image": FieldSpec("image", (3, 8, 8))}, "task.conditioners.0")
    assert "data.captions" in caught.value.hint


def test_neighbours_are_read_alike_wherever_a_word_stands() -> None:
    """Without positions and blocks, the middle of a word is the same vector in any sentence; without neighbours, one letter."""
    for neighbours, same in ((5, False), (1, True)):
        conditioner = build(neighbours=neighbours)
        with torch.no_grad():
            conditioner.positions.zero_()
        conditioner.blocks = torch.nn.ModuleList()
        _, tokens, _ = slots(tell(conditioner, ["a seven or so", "my own seven", "the even one"]))
        places = [1 + text.index("even") + 1 for text in ("a seven or so", "my own seven", "the even one")]  # the v
        first, second, other = (tokens[i, place] for i, place in enumerate(places))
        torch.testing.assert_close(first, second)
        assert torch.allclose(first, other) == same


def test_an_even_number_of_neighbours_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"neighbours is 4, .*; set it to 5"):
        TextConditionerConfig(neighbours=4)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValidationError, match="heads is 3, which does not divide the width 8"):
        TextConditionerConfig(width=8, heads=3)
