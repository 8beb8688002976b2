"""Embeddings as a condition: computed by a pretrained encoder beforehand and stored beside the images."""

from collections.abc import Iterator, Sequence
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from diffcli.config import UserError, keys_agree
from diffcli.encoders.encoder import Encoder, EncoderConfig
from diffcli.fields import Batch, FieldSpec, Remedies, Specs
from diffcli.networks.conditioning import Conditioning, CondShape
from diffcli.noise import Noise
from diffcli.tasks.conditioners.conditioner import UNSEEDED, Conditioner, ConditionerConfig
from diffcli.tasks.conditioners.slots import Gives, Slot, check_width, readable, unit_variance
from diffcli.transfer import moved

TEXT, IMAGE = "clip_text", "clip_image"  # fields with CLIP's embeddings of captions and of images


class EmbeddingConditioner(Conditioner):
    """Reads a stored embedding (B, D), or a stored sequence of them (B, L, D). encoder: what embeds prompts, if it is named."""

    kind = "embedding"

    def __init__(self, config: "EmbeddingConditionerConfig") -> None:
        super().__init__()
        vector = config.stored == "vector"
        self.reads = {
            config.field: FieldSpec("vector", (config.width,)) if vector else FieldSpec("tokens", (None, config.width))
        }
        self.config = config
        self.encoder: Encoder | None = config.encoder.build() if config.encoder else None
        each = config.tokens if config.stored == "vector" else 1
        self.tokens = Slot(config.width, config.dim, each) if config.gives != "vector" else None
        self.vector = Slot(config.width, config.dim) if config.gives != "tokens" else None
        self.shape = CondShape(
            vector=self.vector.dim if self.vector else 0, tokens=self.tokens.dim if self.tokens else 0
        )

    def remedies(self, key: str) -> Remedies:
        field = self.config.field
        how = {"clip_tokens": "clip-tokens", "t5_tokens": "t5"}.get(field, "clip")
        vector = f"use --set {key}.stored=vector, or name another field"
        sequence = f"use --set {key}.stored=sequence --set {key}.gives=tokens, or name another field"
        return Remedies(
            lacking=f"add it to the set: diffcli prep-data shards --out SET --embed {how} --encoder MODEL",
            kind=vector if self.config.stored == "sequence" else sequence,
            shape=f"use --set {key}.width={{found}}",
        )

    def check(self, has: Specs, key: str) -> None:
        name = self.config.field
        if name in has and has[name].kind not in ("vector", "tokens"):
            wanted = self.reads[name].kind
            fitting = [each for each, spec in has.items() if spec.kind == wanted]
            made = self.remedies(key).lacking.partition(": ")[2]
            hint = f"name another field, --set {key}.field=FIELD, once the set has embeddings: {made}"
            if fitting:
                hint = f"name another field, which holds embeddings: --set {key}.field={fitting[0]}"
            problem = (
                f"{key} ({self.kind}) reads the field '{name}' as {wanted}, but the data's is of kind {has[name].kind}"
            )
            raise UserError(problem, hint)
        super().check(has, key)

    def forward(self, batch: Batch, keep: Tensor, like: Tensor, noise: Noise = UNSEEDED) -> Conditioning:
        """A vector (B, D) and tokens (B, N, D); of a stored sequence, with the mask of what is not padding (zeros)."""
        value = moved(batch[self.config.field], keep.device, torch.float32)
        if self.config.stored == "sequence":
            there = (value != 0).any(-1)
            keep = keep & there.any(1)  # a row without tokens becomes the null
            assert self.tokens is not None
            return Conditioning(tokens=self.tokens(value, keep), mask=readable(there, keep))
        value = unit_variance(value) if self.config.normalize else value
        vector = None if self.vector is None else self.vector(value, keep)
        tokens = None if self.tokens is None else self.tokens(value[:, None], keep)
        return Conditioning(vector=vector, tokens=tokens)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings of these texts as a set stores them: (B, D) pooled features, or sequences (B, L, D); on the CPU.

        Raises UserError if the preset names no encoder, or one of another width.
        """
        if self.encoder is None:
            raise UserError(
                f"prompts need an encoder, and the conditioner of '{self.config.field}' names none",
                "train with `encoder: {model: ...}` in task.conditioners, the one that made the embeddings",
            )
        encoded = self.encoder.texts(prompts, next(self.parameters()).device)
        found = encoded.tokens if self.config.stored == "sequence" else encoded.pooled
        assert found is not None  # the config refuses encoders without
        check_width(found, self.config.width, self.encoder, "width")
        return found.cpu()


class EmbeddingConditionerConfig(ConditionerConfig):
    """Embeddings that `prep-data --embed` stored beside the images, of one vector or of a sequence.

    tokens: the number of tokens made from a vector, four in unCLIP. normalize: see `unit_variance`; sequences stay as they are.
    Source: Ramesh et al. 2022, section 2.1 (arXiv 2204.06125).
    """

    kind: Literal["embedding"] = "embedding"
    field: str = Field(
        "clip_image", pattern=r"^[a-z][a-z0-9_]*$", description="the embedding that prep-data --embed stored"
    )
    stored: Literal["vector", "sequence"] = Field("vector", description="one vector a sample, or a sequence of tokens")
    width: int = Field(768, ge=1, description="of the stored vectors")
    gives: Gives = Field("vector", description="a vector that joins the time, tokens to attend to, or both")
    tokens: int = Field(4, ge=1, description="tokens made of a stored vector")
    dim: int | None = Field(
        None, ge=1, description="width after a learned projection; null: that of the stored vectors"
    )
    normalize: bool = Field(True, description="scale vectors to unit variance of each number")
    encoder: EncoderConfig | None = Field(None, description="the encoder that made them, for prompts")

    @keys_agree
    def _agree(self) -> Iterator[str]:
        if self.stored == "sequence" and self.gives != "tokens":
            yield f"gives is '{self.gives}', but a stored sequence is read as tokens; set gives to tokens"
        if self.stored == "vector" and self.encoder is not None and self.encoder.kind == "t5":
            yield "encoder is t5, which has no pooled feature; set stored to sequence, or name a clip"

    def resolved(self) -> Self:
        return self if self.encoder is None else self.model_copy(update={"encoder": self.encoder.resolved()})

    def build(self) -> EmbeddingConditioner:
        return EmbeddingConditioner(self)
