"""Words added to pretrained encoders: read as the libraries read tokens that are added to them, with gradients of their own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffcli.encoders.encoder import Encoder, EncoderConfig
from diffcli.encoders.learned_words import LearnedWords, token_table, with_words
from tests.encoders.making import tiny_clip, tiny_t5, tiny_text_tower

NEW = "<toy>"


def words_of(encoder: Encoder, **vectors: Tensor) -> LearnedWords:
    words = LearnedWords()
    for name, values in vectors.items():
        words.add(f"<{name}>", values)
    return words


def rows(encoder: Encoder, count: int, seed: int = 0) -> Tensor:
    width = token_table(encoder.towers).embedding_dim
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[tiny_clip, tiny_text_tower, tiny_t5])
def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> Encoder:
    making: Callable[[Path], Path] = request.param
    kind: Any = "t5" if making is tiny_t5 else "clip"
    return EncoderConfig(
        kind=kind, model=str(making(tmp_path / "encoder")), length=None if kind == "clip" else 12
    ).build()


def test_a_text_is_split_at_words_and_the_longest_name_wins() -> None:
    words = LearnedWords()
    words.add("S*", torch.zeros(2, 4))
    words.add("cat", torch.zeros(1, 4))
    words.add("cat-toy", torch.zeros(3, 4))
    assert words.split("a cat-toy, the cat") == ["a ", range(3, 6), ", the ", range(2, 3)]
    assert words.split("S*concat S*") == ["S*concat ", range(2)]
    assert words.split("nothing") == ["nothing"]
    assert words.split("") == []


def test_a_word_with_the_vector_of_a_token_is_that_token(encoder: Encoder) -> None:
    towers = encoder.towers
    begin = len(towers.ids([""])[0]) - 1
    (token,) = towers.ids(["b"])[0][begin:-1]
    words = words_of(encoder, toy=token_table(towers).weight[[token]].clone())
    found, known = encoder.texts(["a <toy>", "c"], words=words), encoder.texts(["a b", "c"])
    assert torch.equal(found.tokens, known.tokens)
    assert torch.equal(found.mask, known.mask)
    if known.pooled is not None:
        assert torch.equal(found.pooled, known.pooled)  # type: ignore[arg-type]


def test_gradients_reach_the_words_alone(encoder: Encoder) -> None:
    words = words_of(encoder, toy=rows(encoder, 2), other=rows(encoder, 1, 1))
    encoder.texts(["a <toy>", "b"], words=words).tokens.square().sum().backward()
    gradients = [vectors.grad for vectors in words.vectors]
    assert all(g is not None for g in gradients)
    assert gradients[0].any(dim=1).all()  # type: ignore[union-attr]
    assert not gradients[1].any()  # type: ignore[union-attr]
    assert all(p.grad is None for p in encoder.towers.model.parameters())
    assert not encoder.texts(["a <toy>"], words=words.requires_grad_(False)).tokens.requires_grad


def test_nothing_of_a_word_stays_in_the_encoder(encoder: Encoder) -> None:
    before, digest = encoder.texts(["a b"]).tokens, encoder.digest
    encoder.texts(["a <toy>"], words=words_of(encoder, toy=rows(encoder, 3)))
    assert torch.equal(encoder.texts(["a b"]).tokens, before)
    assert not token_table(encoder.towers)._forward_hooks
    assert encoder.digest == digest


def test_texts_that_are_too_long_end_with_the_mark(encoder: Encoder) -> None:
    with pytest.warns(UserWarning, match="tokens long"):
        found = encoder.texts(["<toy> " * 9], words=words_of(encoder, toy=rows(encoder, 2)))
    assert found.mask.all()


@pytest.mark.parametrize("making", [tiny_clip, tiny_text_tower])
def test_they_are_what_the_library_makes_of_tokens_added_to_it(making: Callable[[Path], Path], tmp_path: Path) -> None:
    import transformers

    folder = making(tmp_path / "encoder")
    encoder = EncoderConfig(model=str(folder)).build()
    values = rows(encoder, 2)
    words = words_of(encoder, toy=values)
    inner = folder if making is tiny_clip else folder / "text_encoder"
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder if making is tiny_clip else folder / "tokenizer")
    model = transformers.CLIPTextModel.from_pretrained(inner)
    assert tokenizer.add_tokens(["<toy>", "<toy>_1"]) == 2
    model.resize_token_embeddings(len(tokenizer))
    first = tokenizer.convert_tokens_to_ids("<toy>")
    model.get_input_embeddings().weight.data[first:] = values
    theirs = tokenizer("my <toy> <toy>_1 is b")["input_ids"]
    assert with_words(encoder.towers, "my <toy> is b", words) == theirs
    with torch.no_grad():
        whole = model(torch.tensor([theirs])).last_hidden_state
    torch.testing.assert_close(encoder.texts(["my <toy> is b"], words=words).tokens[:, : len(theirs)].detach(), whole)
