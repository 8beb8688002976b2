"""Texts as a condition, read by a frozen pretrained encoder in every step."""

from collections.abc import Iterator, Sequence
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from diffcli.config import UserError, keys_agree
from diffcli.encoders.encoder import CLIP_LENGTH, T5_LENGTH, Encoded, Encoder, EncoderConfig
from diffcli.fields import Batch, FieldSpec, Remedies
from diffcli.networks.conditioning import Conditioning, CondShape
from diffcli.noise import Noise
from diffcli.tasks.conditioners.conditioner import UNSEEDED, Conditioner, ConditionerConfig
from diffcli.tasks.conditioners.slots import NO_CAPTIONS, Gives, Slot, readable


class PretrainedConditioner(Conditioner):
    """Reads the field `text` through a frozen encoder, in every step."""

    kind = "pretrained"

    def __init__(self, config: "PretrainedConditionerConfig") -> None:
        super().__init__()
        self.reads = {"text": FieldSpec("text")}
        self.encoder: Encoder = config.encoder.build()
        tokens = config.width if config.gives != "vector" else 0
        vector = (config.pooled_width or config.width) if config.gives != "tokens" else 0
        self.learned = config.unconditional == "learned"
        self.tokens = Slot(tokens, config.dim, learned=self.learned) if tokens else None
        self.vector = Slot(vector, config.dim, learned=self.learned) if vector else None
        self.shape = CondShape(
            vector=self.vector.dim if self.vector else 0, tokens=self.tokens.dim if self.tokens else 0
        )

    def remedies(self, key: str) -> Remedies:
        return Remedies(lacking=NO_CAPTIONS)

    def forward(self, batch: Batch, keep: Tensor, like: Tensor, noise: Noise = UNSEEDED) -> Conditioning:
        """A vector (B, D) and tokens (B, L, D) with their mask. batch["text"]: B strings."""
        encoded = self._planned(keep) if keep.is_meta else self._encoded(batch["text"], keep)
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
            return self.encoder.texts(texts, keep.device)
        found = self.encoder.texts([*texts, ""], keep.device)

        def chosen(x: Tensor) -> Tensor:
            return torch.where(keep.view(-1, *[1] * (x.ndim - 1)), x[:-1], x[-1:])

        return Encoded(chosen(found.tokens), chosen(found.mask), None if found.pooled is None else chosen(found.pooled))

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
        return Encoded(mask[..., None].expand(-1, -1, widths[0]).float(), mask, keep.new_zeros(n, widths[1]).float())


class PretrainedConditionerConfig(ConditionerConfig):
    """Captions, read by a frozen encoder in every step. width, pooled_width: of its tokens and of its pooled feature.

    unconditional: the null of rows without a condition: learned vectors, or the features of an empty text, as in Stable
    Diffusion.
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

    @keys_agree
    def _agree(self) -> Iterator[str]:
        if self.encoder.kind == "t5" and self.gives != "tokens":
            yield f"gives is '{self.gives}', but t5 has no pooled feature; set gives to tokens"

    def resolved(self) -> Self:
        return self.model_copy(update={"encoder": self.encoder.resolved()})

    def build(self) -> PretrainedConditioner:
        return PretrainedConditioner(self)
