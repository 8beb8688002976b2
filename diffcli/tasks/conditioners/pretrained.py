"""Texts as a condition, read by a frozen pretrained encoder in every step."""

from typing import Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

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
        self.tokens = Slot(tokens, config.dim) if tokens else None
        self.vector = Slot(vector, config.dim) if vector else None
        self.shape = CondShape(
            vector=self.vector.dim if self.vector else 0, tokens=self.tokens.dim if self.tokens else 0
        )

    def remedies(self, key: str) -> Remedies:
        return Remedies(lacking=NO_CAPTIONS)

    def forward(self, batch: Batch, keep: Tensor, like: Tensor, noise: Noise = UNSEEDED) -> Conditioning:
        """A vector (B, D) and tokens (B, L, D) with their mask. batch["text"]: B strings."""
        encoded = self._planned(keep) if keep.is_meta else self.encoder.texts(batch["text"], keep.device)
        vector = tokens = mask = None
        if self.vector is not None and encoded.pooled is not None:
            vector = self.vector(encoded.pooled, keep, self.encoder, "pooled_width")
        if self.tokens is not None:
            tokens = self.tokens(encoded.tokens, keep, self.encoder, "width")
            mask = readable(encoded.mask, keep)
        return Conditioning(vector=vector, tokens=tokens, mask=mask)

    def _planned(self, keep: Tensor) -> Encoded:
        """Features without values: a plan counts the arithmetic of a step, for which nothing is loaded."""
        config = self.encoder.config
        n, length = len(keep), config.length or (CLIP_LENGTH if config.kind == "clip" else T5_LENGTH)
        widths = [slot.width if slot else 1 for slot in (self.tokens, self.vector)]
        mask = keep.new_ones(n, length)
        return Encoded(mask[..., None].expand(-1, -1, widths[0]).float(), mask, keep.new_zeros(n, widths[1]).float())


class PretrainedConditionerConfig(ConditionerConfig):
    """Captions, read by a frozen encoder in every step. width, pooled_width: of its tokens and of its pooled feature."""

    kind: Literal["pretrained"] = "pretrained"
    encoder: EncoderConfig
    gives: Gives = Field("tokens", description="tokens to attend to, a vector that joins the time, or both")
    width: int = Field(768, ge=1)
    pooled_width: int | None = Field(None, ge=1, description="null: as wide as the tokens")
    dim: int | None = Field(None, ge=1, description="width after a learned projection; null: none")

    @model_validator(mode="after")
    def _agree(self) -> "PretrainedConditionerConfig":
        if self.encoder.kind == "t5" and self.gives != "tokens":
            raise ValueError(f"gives is '{self.gives}', but t5 has no pooled feature; set gives to tokens")
        return self

    def resolved(self) -> Self:
        return self.model_copy(update={"encoder": self.encoder.resolved()})

    def build(self) -> PretrainedConditioner:
        return PretrainedConditioner(self)
