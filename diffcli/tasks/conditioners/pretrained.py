"""Texts as a condition, read by a frozen pretrained encoder: in every step, or once for all, by `prep-data --embed`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from diffcli.config import UserError, keys_agree
from diffcli.encoders.encoder import CLIP_LENGTH, T5_LENGTH, Encoded, Encoder, EncoderConfig
from diffcli.encoders.learned_words import LearnedWords
from diffcli.fields import Batch, FieldSpec, Remedies
from diffcli.networks.conditioning import Conditioning, CondShape
from diffcli.noise import Noise
from diffcli.tasks.conditioners.conditioner import UNSEEDED, Conditioner, ConditionerConfig
from diffcli.tasks.conditioners.slots import NO_CAPTIONS, Gives, Slot, readable
from diffcli.tasks.conditioners.stored import TEXT
from diffcli.transfer import moved


class PretrainedConditioner(Conditioner):
    """Reads the field `text` through a frozen encoder, in every step, or what that encoder made of it, stored beside the images.

    empty: what the data have of a text without a word, by field; without it the encoder is asked.
    """

    kind = "pretrained"

    def __init__(self, config: "PretrainedConditionerConfig") -> None:
        super().__init__()
        self.config = config
        self.reads = config.reads
        self.encoder: Encoder = config.encoder.build()
        self.empty: dict[str, Tensor] = {}
        tokens = config.width if config.gives != "vector" else 0
        vector = (config.pooled_width or config.width) if config.gives != "tokens" else 0
        self.learned = config.unconditional == "learned"
        self.tokens = Slot(tokens, config.dim, learned=self.learned) if tokens else None
        self.vector = Slot(vector, config.dim, learned=self.learned) if vector else None
        self.words: LearnedWords | None
        self.register_module("words", None)  # new ones, where a run or --embedding brings any
        self.shape = CondShape(
            vector=self.vector.dim if self.vector else 0, tokens=self.tokens.dim if self.tokens else 0
        )

    def remedies(self, key: str) -> Remedies:
        if not self.config.cached:
            return Remedies(lacking=NO_CAPTIONS)
        first, *rest = self.config.embedded
        again = f" (and again with --embed {rest[0]})" if rest else ""
        return Remedies(
            lacking=f"add it to the set: diffcli prep-data shards --out SET --embed {first} --encoder RUN{again}; "
            f"or read texts in every step: --set {key}.cached=false",
            kind=f"use --set {key}.cached=false",
            shape=f"use --set {key}.width={{found}}",
        )

    @property
    def in_steps(self) -> bool:
        """Whether the encoder runs in every step of a training."""
        return not self.config.cached

    def know(self, empty: Mapping[str, Tensor], device: torch.device) -> None:
        """Takes what its encoder made of a text without a word: a row of each field that it reads."""
        self.empty = {name: value.to(device, torch.float32) for name, value in empty.items() if name in self.reads}

    def forward(self, batch: Batch, keep: Tensor, like: Tensor, noise: Noise = UNSEEDED) -> Conditioning:
        """A vector (B, D) and tokens (B, L, D) with their mask. batch["text"]: B strings."""
        if keep.is_meta:
            encoded = self._planned(keep)
        elif self.config.cached:
            encoded = self._stored(batch, keep)
        else:
            encoded = self._encoded(batch["text"], keep)
        vector = tokens = mask = None
        if self.vector is not None:
            vector = self.vector(self._pooled(encoded), keep, self.encoder, "pooled_width")
        if self.tokens is not None:
            tokens = self.tokens(encoded.tokens, keep, self.encoder, "width")
            mask = readable(encoded.mask, keep) if self.learned else encoded.mask
        return Conditioning(vector=vector, tokens=tokens, mask=mask)

    def _encoded(self, texts: Sequence[str], keep: Tensor) -> Encoded:
        """The features of B texts; without learned null vectors, rows with keep False get those of an empty text."""
        if self.learned:
            return self.encoder.texts(texts, keep.device, self.words)
        found = self.encoder.texts([*texts, ""], keep.device, self.words)
        tokens, mask, pooled = (None if x is None else chosen(keep, x[:-1], x[-1:]) for x in found)
        assert tokens is not None
        assert mask is not None
        return Encoded(tokens, mask, pooled)

    def _stored(self, batch: Batch, keep: Tensor) -> Encoded:
        """The same as the data have it."""
        fields = {name: moved(batch[name], keep.device, torch.float32) for name in self.reads}
        if not self.learned:
            if not fields.keys() <= self.empty.keys():
                nothing = self.encoder.texts([""], keep.device)
                rows = {"tokens": nothing.tokens, "vector": nothing.pooled}
                made = {name: rows[spec.kind] for name, spec in self.reads.items()}
                self.know({name: row[0] for name, row in made.items() if row is not None}, keep.device)
            fields = {name: chosen(keep, value, self.empty[name][None]) for name, value in fields.items()}
        by_kind = {self.reads[name].kind: value for name, value in fields.items()}
        pooled, tokens = by_kind.get("vector"), by_kind.get("tokens")
        if tokens is None:
            assert pooled is not None  # it reads one of both
            tokens = pooled[:, None]
        read = self.encoder.config.padding == "read"
        mask = tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if read else (tokens != 0).any(-1)
        return Encoded(tokens, mask, pooled)

    def _pooled(self, encoded: Encoded) -> Tensor:
        if encoded.pooled is None:
            raise UserError(
                f"{self.encoder.key} is '{self.encoder.config.model}', which gives tokens and no vector",
                "set gives of its conditioner to tokens, or name the folder of a whole CLIP",
            )
        return encoded.pooled

    def _planned(self, keep: Tensor) -> Encoded:
        """Features without values, for a plan, which counts the arithmetic of a step without loading the encoder."""
        config = self.encoder.config
        n, length = len(keep), config.length or (CLIP_LENGTH if config.kind == "clip" else T5_LENGTH)
        widths = [slot.width if slot else 1 for slot in (self.tokens, self.vector)]
        mask = keep.new_ones(n, length)
        learned = 0.0 if self.words is None else self.words.rows.sum()  # what gradients flow to
        tokens = mask[..., None].expand(-1, -1, widths[0]).float() + learned
        return Encoded(tokens, mask, keep.new_zeros(n, widths[1]).float() + learned)


def chosen(keep: Tensor, x: Tensor, other: Tensor) -> Tensor:
    """x (B, ...) where keep (B,) is True, elsewhere the one row of `other` (1, ...)."""
    return torch.where(keep.view(-1, *[1] * (x.ndim - 1)), x, other)


class PretrainedConditionerConfig(ConditionerConfig):
    """Captions, read by a frozen encoder in every step. width, pooled_width: of its tokens and of its pooled feature.

    unconditional: the null of rows without a condition: learned vectors, or the features of an empty text, as in Stable
    Diffusion. cached: training reads what `prep-data --embed` stored and loads no encoder; drawing still reads texts.
    """

    kind: Literal["pretrained"] = "pretrained"
    encoder: EncoderConfig = Field(description="the frozen encoder that reads captions")
    gives: Gives = Field("tokens", description="tokens to attend to, a vector that joins the time, or both")
    width: int = Field(768, ge=1, description="of the encoder's tokens")
    pooled_width: int | None = Field(None, ge=1, description="null: as wide as the tokens")
    dim: int | None = Field(None, ge=1, description="width after a learned projection; null: none")
    unconditional: Literal["learned", "empty"] = Field(
        "learned", description="features for rows without a caption: learned vectors, or those of an empty text"
    )

    cached: bool = Field(
        False, description="in training read what prep-data --embed stored of captions, and load no encoder"
    )

    @property
    def reads(self) -> dict[str, FieldSpec]:
        """The fields of the data that it reads."""
        if not self.cached:
            return {"text": FieldSpec("text")}
        found: dict[str, FieldSpec] = {}
        if self.gives != "vector":
            found[f"{self.encoder.kind}_tokens"] = FieldSpec("tokens", (None, self.width))
        if self.gives != "tokens":
            found[TEXT] = FieldSpec("vector", (self.pooled_width or self.width,))
        return found

    @property
    def embedded(self) -> list[str]:
        """What `prep-data --embed` makes these fields with."""
        of_tokens = "t5" if self.encoder.kind == "t5" else "clip-tokens"
        return [*([of_tokens] if self.gives != "vector" else []), *(["clip"] if self.gives != "tokens" else [])]

    def for_drawing(self) -> Self:
        return self.model_copy(update={"cached": False})

    @keys_agree
    def _agree(self) -> Iterator[str]:
        if self.encoder.kind == "t5" and self.gives != "tokens":
            yield f"gives is '{self.gives}', but t5 has no pooled feature; set gives to tokens"

    def resolved(self) -> Self:
        return self.model_copy(update={"encoder": self.encoder.resolved()})

    def build(self) -> PretrainedConditioner:
        return PretrainedConditioner(self)
