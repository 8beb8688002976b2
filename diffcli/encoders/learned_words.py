"""New words of a text encoder: each is a name and vectors in the place of embeddings of tokens; all else of the encoder stays.

A text is split at the names; every vector then counts as a token, numbered behind the tokens that the encoder knows.
Source: Gal et al. 2022, section 3 (arXiv 2208.01618).
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from diffcli.config import Config
from diffcli.encoders.libraries import OpenClip, Towers, TransformersClip, TransformersClipText, TransformersT5

CHILD = "words"  # of a conditioner that has any


class WordConfig(Config):
    """A new word of the texts, the only thing that is trained; all else stays as in the model that the run begins from."""

    token: str = Field(
        min_length=1, pattern=r"^\S+$", examples=["<cat-toy>"], description="the word, without spaces, as texts have it"
    )
    init: str = Field(min_length=1, examples=["toy"], description="a known word, whose embedding the new one begins as")


class LearnedWords(nn.Module):
    """Words with their vectors (n, D), in the order in which they were added."""

    def __init__(self) -> None:
        super().__init__()
        self.names: tuple[str, ...] = ()
        self.vectors = nn.ParameterList()

    def add(self, name: str, vectors: Tensor) -> None:
        """Adds a word. Its vectors are a parameter of this module."""
        self.names = (*self.names, name)
        self.vectors.append(nn.Parameter(vectors))

    @property
    def rows(self) -> Tensor:
        """The vectors of all words, one after the other: (N, D)."""
        return torch.cat(list(self.vectors))

    @property
    def learning(self) -> bool:
        """Whether training changes any of them."""
        return any(vectors.requires_grad for vectors in self.vectors)

    def split(self, text: str) -> list[str | range]:
        """A text in pieces: what stands between words, and for each word which rows are its vectors."""
        places, end = {}, 0
        for name, vectors in zip(self.names, self.vectors, strict=True):
            places[name] = range(end, end + vectors.shape[0])
            end += vectors.shape[0]
        return [places.get(piece, piece) for piece in self._pattern.split(text) if piece]

    @property
    def _pattern(self) -> re.Pattern[str]:
        longest = sorted(self.names, key=len, reverse=True)
        return re.compile("(" + "|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in longest) + ")")


def of_word(name: str) -> bool:
    """Whether a tensor of this name in a state dict is the vectors of a word."""
    return f".{CHILD}.vectors." in name


def token_table(towers: Towers) -> nn.Embedding:
    """The embedding of tokens of a loaded encoder."""
    match towers:
        case TransformersClip():
            found = towers.clip.text_model.embeddings.token_embedding
        case TransformersClipText():
            found = towers.tower.embeddings.token_embedding
        case TransformersT5():
            found = cast(Any, towers.model).encoder.embed_tokens  # versions of the library share weights, not modules
        case OpenClip():
            found = towers.tower.token_embedding
        case _:
            raise TypeError(f"{type(towers).__name__} has no table of tokens that is known here")
    return cast(nn.Embedding, found)


def with_words(towers: Towers, text: str, words: LearnedWords) -> list[int]:
    """The tokens of a text with the marks of its begin and end; those of words are numbered behind the encoder's own."""
    pieces = words.split(text)
    if not any(isinstance(piece, range) for piece in pieces):
        return towers.ids([text])[0]
    *begin, end = towers.ids([""])[0]
    known, found = token_table(towers).num_embeddings, list(begin)
    for piece in pieces:
        found += [known + row for row in piece] if isinstance(piece, range) else towers.ids([piece])[0][len(begin) : -1]
    return [*found, end]


@contextmanager
def reading(towers: Towers, ids: Tensor, words: LearnedWords) -> Iterator[Tensor]:
    """Within it an encoder reads words; yields ids (B, L) that it knows, for those of `with_words`."""
    table = token_table(towers)
    ours = ids >= table.num_embeddings
    rows = words.rows[(ids - table.num_embeddings).clamp(min=0)]  # (B, L, D)

    def put(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """The embeddings of the encoder, whose texts may be filled up behind ours, with those of words in their places."""
        length = ids.shape[1]
        mixed = torch.where(ours[..., None], rows.to(output.dtype), output[:, :length])
        return mixed if output.shape[1] == length else torch.cat([mixed, output[:, length:]], dim=1)

    handle = table.register_forward_hook(put)
    try:
        yield ids.masked_fill(ours, 0)
    finally:
        handle.remove()
