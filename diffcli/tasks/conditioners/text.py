"""Text as a condition: a small transformer over UTF-8 bytes, trained jointly with the network.

A text is its bytes between a begin and an end mark, padded to `length`. Captions hold no control characters, so three of those
serve
as marks: the vocabulary is the 256 values of a byte, for every language. A convolution may first mix every byte with its
neighbours, so that a word is recognised by its letters at every position. The vector is the output at the end mark, the tokens
are the outputs at every byte and mark; padding is masked. Source: Nichol et al. 2021, section 3 (arXiv 2112.10741): a text
enters by a vector and by tokens; bytes, of Xue et al. 2021 (arXiv 2105.13626); a convolution over them, of Clark et al. 2021
(arXiv 2103.06874).
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from diffcli.config import Note, keys_agree
from diffcli.encoders.learned_words import LearnedWords
from diffcli.fields import Batch, FieldSpec, Remedies
from diffcli.networks.attention_blocks import TokenAttention
from diffcli.networks.conditioning import Conditioning, CondShape
from diffcli.noise import Noise
from diffcli.tasks.conditioners.conditioner import UNSEEDED, Conditioner, ConditionerConfig
from diffcli.tasks.conditioners.slots import NO_CAPTIONS, SMALL, Gives
from diffcli.transfer import moved

PAD, BEGIN, END = b"\x00", b"\x02", b"\x03"  # NUL, start of text, end of text
MARKS = 2
VOCABULARY = 256
SPACED = bytes(max(byte, ord(" ")) for byte in range(VOCABULARY))  # control characters become spaces


class TextConditioner(Conditioner):
    """Reads the field `text`; see the module's docstring for what it gives. Rows without a condition are learned vectors."""

    kind = "text"

    def __init__(self, config: "TextConditionerConfig") -> None:
        super().__init__()
        self.reads = {"text": FieldSpec("text")}
        width = config.width
        self.length = config.length
        self.shape = CondShape(
            vector=width if config.gives != "tokens" else 0, tokens=width if config.gives != "vector" else 0
        )
        self.told = False  # that a text was cut
        self.words: LearnedWords | None
        self.register_module("words", None)  # new ones, where a run or --embedding brings any
        self.embedding = nn.Parameter(SMALL * torch.randn(VOCABULARY, width))
        seen = config.neighbours
        self.neighbours = nn.Conv1d(width, width, seen, padding=seen // 2) if seen > 1 else None
        self.positions = nn.Parameter(SMALL * torch.randn(config.length, width))
        self.blocks = nn.ModuleList(TextBlock(width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.null_vector = nn.Parameter(SMALL * torch.randn(width)) if self.shape.vector else None
        self.null_token = nn.Parameter(SMALL * torch.randn(width)) if self.shape.tokens else None

    def remedies(self, key: str) -> Remedies:
        return Remedies(lacking=NO_CAPTIONS)

    def forward(self, batch: Batch, keep: Tensor, like: Tensor, noise: Noise = UNSEEDED) -> Conditioning:
        """A vector (B, width), and tokens (B, length, width) with their mask. batch["text"]: B strings."""
        texts = list(batch["text"])
        # both branches of guidance have the same texts; in training duplicates are kept, so that sums keep their order
        read = texts if torch.is_grad_enabled() else list(dict.fromkeys(texts))
        ids, ends = self.tokenise(read)
        ids, ends = moved(ids, keep.device), moved(ends, keep.device)
        place = torch.arange(self.length, device=keep.device)
        mask = place <= ends[:, None]  # (B, L)
        table = self.embedding if self.words is None else torch.cat([self.embedding, self.words.rows])
        h = table[ids] * mask[:, :, None]  # (B, L, D)
        if self.neighbours is not None:
            h = h + self.neighbours(h.mT).mT
        h = h + self.positions
        for block in self.blocks:
            h = block(h, mask)
        h = self.norm(h)
        if len(read) < len(texts):
            at = {text: i for i, text in enumerate(read)}
            again = moved(torch.tensor([at[text] for text in texts]), keep.device)
            h, ends, mask = h[again], ends[again], mask[again]
        vector = None
        if self.null_vector is not None:
            vector = torch.where(keep[:, None], h[torch.arange(len(h), device=h.device), ends], self.null_vector)
        if self.null_token is None:
            return Conditioning(vector=vector)
        tokens = torch.where(keep[:, None, None], h, self.null_token)
        return Conditioning(vector=vector, tokens=tokens, mask=mask & (keep[:, None] | (place == 0)))

    def tokenise(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """int64 (B, length), one id a byte or a vector of a word, and (B,), where the end marks stand.

        Longer texts are cut, with one note.
        """
        encoded = [self.pieces(text) for text in texts]
        longest = max((sum(map(len, pieces)) for pieces in encoded), default=0) + MARKS
        if longest > self.length and not self.told:
            self.told = True
            warnings.warn(
                f"a text is {longest} tokens long (bytes and {MARKS} marks); bytes beyond the {self.length} of "
                "task.conditioners: text, length, is not read",
                Note,
                stacklevel=2,
            )
        kept = [shortened(pieces, self.length - MARKS) for pieces in encoded]
        rows = [[*BEGIN, *ids, *END] for ids in kept]
        filled = [row + [*PAD] * (self.length - len(row)) for row in rows]
        ends = torch.tensor([len(row) - 1 for row in rows], dtype=torch.int64)
        return torch.tensor(filled, dtype=torch.int64).view(len(kept), self.length), ends

    def pieces(self, text: str) -> list[bytes | range]:
        """A text as bytes, and the numbers of the vectors of words, which follow those of bytes."""
        if self.words is None:
            return [as_bytes(text)]
        parts = self.words.split(text)
        return [
            range(VOCABULARY + p.start, VOCABULARY + p.stop) if isinstance(p, range) else as_bytes(p) for p in parts
        ]


class TextBlock(nn.Module):
    """Self-attention and an MLP, each on a residual after a layer norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = TokenAttention(width, width, width // heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        items = self.norm1(x)
        x = x + self.attention(items, items, mask)
        return x + self.mlp(self.norm2(x))


def as_bytes(text: str) -> bytes:
    """UTF-8 without the bytes of the marks; an invalid character (a lone surrogate) becomes a question mark."""
    return text.encode("utf-8", "replace").translate(SPACED)


def cut(data: bytes, limit: int) -> bytes:
    """The longest run of whole UTF-8 characters from the start that takes at most `limit` bytes."""
    return data[:limit].decode("utf-8", "ignore").encode()


def shortened(pieces: Sequence[bytes | range], limit: int) -> list[int]:
    """The numbers of the longest run of whole characters and words from the start that takes at most `limit`."""
    found: list[int] = []
    for piece in pieces:
        left = limit - len(found)
        fits = len(piece) <= left
        found += piece if fits else cut(piece, left) if isinstance(piece, bytes) else ()
        if not fits:
            break
    return found


class TextConditionerConfig(ConditionerConfig):
    """Captions, read by a byte-level transformer that is trained with the rest.

    length: tokens, that is bytes and two marks, of which a Latin letter takes one and most others two to four.
    """

    kind: Literal["text"] = "text"
    width: int = Field(256, ge=1, description="of the vector and of the tokens")
    depth: int = Field(4, ge=1, description="layers of the transformer")
    heads: int = Field(4, ge=1, description="of each attention; a divisor of width")
    length: int = Field(
        128, ge=8, description="bytes of a caption that are read, and two marks; longer captions are cut"
    )
    neighbours: int = Field(1, ge=1, description="bytes that a convolution sees around each, itself counted; 1: none")
    gives: Gives = Field("both", description="tokens to attend to, a vector that joins the time, or both")

    @keys_agree
    def _agree(self) -> Iterator[str]:
        if self.neighbours % 2 == 0:
            yield (f"neighbours is {self.neighbours}, which has no byte in the middle; set it to {self.neighbours + 1}")
        if self.width % self.heads:
            yield (
                f"heads is {self.heads}, which does not divide the width {self.width}; "
                "choose a divisor of the width, or a width that is a multiple of heads"
            )

    def build(self) -> TextConditioner:
        return TextConditioner(self)
