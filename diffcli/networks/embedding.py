"""What pretrained encoders know as a condition: an encoder run in every step, or embeddings that were computed before.

Both give a vector, tokens or both through learned projections; rows without a condition are learned vectors.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from diffcli.config import Config, UserError
from diffcli.networks.conditioning import Conditioner, Conditioning, CondShape
from diffcli.networks.pretrained import CLIP_LENGTH, T5_LENGTH, Encoded, Encoder, EncoderConfig

SMALL = 0.02  # standard deviation of null vectors at first

Gives = Literal["tokens", "vector", "both"]


def unit_variance(embedding: Tensor) -> Tensor:
    """Embeddings (..., D) scaled to length sqrt(D), so that an entry is about 1 in size, as a network likes its inputs.

    What CLIP means by an embedding is its direction. Source: Ramesh et al. 2022, section 2.2 (arXiv 2204.06125), whose prior
    takes embeddings of this scale.
    """
    return functional.normalize(embedding.float(), dim=-1) * embedding.shape[-1] ** 0.5


class PretrainedConditioner(Conditioner):
    """Reads the field `text` through a frozen encoder, in every step."""

    fields = ("text",)

    def __init__(self, config: "PretrainedConditionerConfig") -> None:
        super().__init__()
        self.encoder: Encoder = config.encoder.build()
        tokens = config.width if config.gives != "vector" else 0
        vector = (config.pooled_width or config.width) if config.gives != "tokens" else 0
        self.tokens = _Slot(tokens, config.dim) if tokens else None
        self.vector = _Slot(vector, config.dim) if vector else None
        self.shape = CondShape(
            vector=self.vector.dim if self.vector else 0, tokens=self.tokens.dim if self.tokens else 0
        )

    def check(self, batch: Mapping[str, Any]) -> None:
        if "text" not in batch:
            raise UserError(
                f"a pretrained conditioner reads the field 'text', but the data has only: {', '.join(sorted(batch))}",
                "prepare data that has captions with `diffcli prep-data`, or make captions of class names: data.captions",
            )

    def forward(self, batch: Mapping[str, Any], keep: Tensor, like: Tensor) -> Conditioning:
        """A vector (B, D) and tokens (B, L, D) with their mask. batch["text"]: B strings."""
        self.check(batch)
        encoded = self._planned(keep) if keep.is_meta else self.encoder.texts(batch["text"], keep.device)
        vector = tokens = mask = None
        if self.vector is not None and encoded.pooled is not None:
            vector = self.vector(encoded.pooled, keep, self.encoder, "pooled_width")
        if self.tokens is not None:
            tokens = self.tokens(encoded.tokens, keep, self.encoder, "width")
            mask = _readable(encoded.mask, keep)
        return Conditioning(vector=vector, tokens=tokens, mask=mask)

    def _planned(self, keep: Tensor) -> Encoded:
        """Features without values: a plan counts the arithmetic of a step, for which nothing is loaded."""
        config = self.encoder.config
        n, length = len(keep), config.length or (CLIP_LENGTH if config.kind == "clip" else T5_LENGTH)
        widths = [slot.width if slot else 1 for slot in (self.tokens, self.vector)]
        mask = keep.new_ones(n, length)
        return Encoded(mask[..., None].expand(-1, -1, widths[0]).float(), mask, keep.new_zeros(n, widths[1]).float())


class EmbeddingConditioner(Conditioner):
    """Reads a stored embedding (B, D), or a stored sequence of them (B, L, D). encoder: what embeds prompts, if it is named."""

    def __init__(self, config: "EmbeddingConditionerConfig") -> None:
        super().__init__()
        self.fields = (config.field,)
        self.config = config
        self.encoder: Encoder | None = config.encoder.build() if config.encoder else None
        each = config.tokens if config.stored == "vector" else 1
        self.tokens = _Slot(config.width, config.dim, each) if config.gives != "vector" else None
        self.vector = _Slot(config.width, config.dim) if config.gives != "tokens" else None
        self.shape = CondShape(
            vector=self.vector.dim if self.vector else 0, tokens=self.tokens.dim if self.tokens else 0
        )

    def check(self, batch: Mapping[str, Any]) -> None:
        field, width = self.config.field, self.config.width
        if field not in batch:
            how = {"clip_tokens": "clip-tokens", "t5_tokens": "t5"}.get(field, "clip")
            raise UserError(
                f"an embedding conditioner reads the field '{field}', but the data has only: {', '.join(sorted(batch))}",
                f"add it to the set: diffcli prep-data shards --out SET --embed {how} --encoder MODEL",
            )
        value, found = batch[field], batch[field].shape[-1]
        stored = "vector" if value.ndim == 2 else "sequence"
        if value.numel() and stored != self.config.stored:
            raise UserError(
                f"the field '{field}' holds a {stored} a sample, but stored of its conditioner is {self.config.stored}",
                f"set it to {stored}" + (" and gives to tokens" if stored == "sequence" else ""),
            )
        if found not in (0, width):  # 0: data that do not tell
            raise UserError(
                f"the field '{field}' is {found} wide, the embedding conditioner in task.conditioners expects {width}",
                f"set its width to {found}",
            )

    def forward(self, batch: Mapping[str, Any], keep: Tensor, like: Tensor) -> Conditioning:
        """A vector (B, D) and tokens (B, N, D); of a stored sequence, with the mask of what is not padding (zeros)."""
        self.check(batch)
        value = batch[self.config.field].to(keep.device, torch.float32)
        if self.config.stored == "sequence":
            there = (value != 0).any(-1)
            keep = keep & there.any(1)  # what has no tokens is told nothing
            assert self.tokens is not None
            return Conditioning(tokens=self.tokens(value, keep), mask=_readable(there, keep))
        value = unit_variance(value) if self.config.normalize else value
        vector = None if self.vector is None else self.vector(value, keep)
        tokens = None if self.tokens is None else self.tokens(value[:, None], keep)
        return Conditioning(vector=vector, tokens=tokens)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Tensor:
        """What a set would store of these texts: (B, D) pooled features, or the sequences (B, L, D); on the CPU.

        Raises UserError where the preset names no encoder, or one of another width.
        """
        if self.encoder is None:
            raise UserError(
                f"prompts need an encoder, and the conditioner of '{self.config.field}' names none",
                "train with `encoder: {model: ...}` in task.conditioners, the one that made the embeddings",
            )
        encoded = self.encoder.texts(prompts, next(self.parameters()).device)
        found = encoded.tokens if self.config.stored == "sequence" else encoded.pooled
        assert found is not None  # the config refuses encoders without
        _check_width(found, self.config.width, self.encoder, "width")
        return found.cpu()


class _Slot(nn.Module):
    """A projection to `dim`, or none, into `count` vectors each, and the learned vector of those that have no condition."""

    def __init__(self, width: int, dim: int | None, count: int = 1) -> None:
        super().__init__()
        self.width, self.dim, self.count = width, dim or width, count
        projected = dim is not None or count > 1
        self.project = nn.Linear(width, self.dim * count) if projected else nn.Identity()
        self.null = nn.Parameter(SMALL * torch.randn(count, self.dim))

    def forward(self, x: Tensor, keep: Tensor, encoder: Encoder | None = None, key: str = "") -> Tensor:
        """(B, width) -> (B, dim), or (B, L, width) -> (B, L * count, dim)."""
        if encoder is not None:
            _check_width(x, self.width, encoder, key)
        told = self.project(x)
        if x.ndim == 2:
            return torch.where(keep[:, None], told, self.null[0])
        told = told.unflatten(-1, (self.count, self.dim))  # (B, L, count, dim)
        return torch.where(keep[:, None, None, None], told, self.null).flatten(1, 2)


def _readable(mask: Tensor, keep: Tensor) -> Tensor:
    """(B, L): which tokens are read; of rows without a condition the first, which is the learned null."""
    first = torch.arange(mask.shape[1], device=mask.device) == 0
    return torch.where(keep[:, None], mask, first)


def _check_width(x: Tensor, width: int, encoder: Encoder, key: str) -> None:
    if x.shape[-1] != width:
        raise UserError(
            f"{encoder.key} is '{encoder.config.model}', whose features are {x.shape[-1]} wide, not {width}",
            f"set {key} of its conditioner to {x.shape[-1]}",
        )


class PretrainedConditionerConfig(Config):
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

    def build(self) -> PretrainedConditioner:
        return PretrainedConditioner(self)


class EmbeddingConditionerConfig(Config):
    """Embeddings that `prep-data --embed` stored beside the images, of one vector or of a sequence.

    tokens: how many are made of a vector, as unCLIP does with four. normalize: see `unit_variance`; sequences stay as they are.
    Source: Ramesh et al. 2022, section 2.1 (arXiv 2204.06125).
    """

    kind: Literal["embedding"] = "embedding"
    field: str = Field("clip_image", pattern=r"^[a-z][a-z0-9_]*$")
    stored: Literal["vector", "sequence"] = "vector"
    width: int = Field(768, ge=1, description="of the stored vectors")
    gives: Gives = Field("vector", description="a vector that joins the time, tokens to attend to, or both")
    tokens: int = Field(4, ge=1, description="tokens made of a stored vector")
    dim: int | None = Field(
        None, ge=1, description="width after a learned projection; null: that of the stored vectors"
    )
    normalize: bool = True
    encoder: EncoderConfig | None = Field(None, description="the encoder that made them, for prompts")

    @model_validator(mode="after")
    def _agree(self) -> "EmbeddingConditionerConfig":
        if self.stored == "sequence" and self.gives != "tokens":
            raise ValueError(f"gives is '{self.gives}', but a stored sequence is read as tokens; set gives to tokens")
        if self.stored == "vector" and self.encoder is not None and self.encoder.kind == "t5":
            raise ValueError("encoder is t5, which has no pooled feature; set stored to sequence, or name a clip")
        return self

    def build(self) -> EmbeddingConditioner:
        return EmbeddingConditioner(self)
