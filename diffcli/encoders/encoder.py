"""Frozen text and image encoders, CLIP and T5, run through transformers or open_clip; loaded when they are first used.

An `Encoder` is no module, so it is not part of state dicts, averages, optimizers and process groups. A run records its name and
the digest of its weights; weights with another digest are refused.
"""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple
from weakref import WeakValueDictionary

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from diffcli.config import Config, Note, UserError, keys_agree
from diffcli.encoders.learned_words import LearnedWords, reading, with_words
from diffcli.encoders.libraries import LOADERS, Origin, Towers, typed
from diffcli.transfer import moved

CLIP_LENGTH = 77  # tokens that published models read; a loaded model has its own limit
T5_LENGTH = 128  # tokens; its positions are relative and set no limit. Source: Saharia et al. 2022, arXiv 2205.11487


class EncoderConfig(Config):
    """A pretrained encoder. model: a local folder, a hub name, or a name that open_clip knows, with the tag of its weights.

    A folder may be a diffusers pipeline; its text encoder and tokenizer are used.
    """

    kind: Literal["clip", "t5"] = "clip"
    model: str = Field(
        min_length=1, description="local folder, name on the hub, or open_clip's name with the tag of its weights"
    )
    library: Literal["transformers", "open_clip"] = Field("transformers", description="which library reads it")
    pretrained: str | None = Field(None, description="tag or file of weights, for names that open_clip knows")
    length: int | None = Field(None, ge=2, description="tokens of a text at most; null: the model's limit, for t5 128")
    layer: Literal[-1, -2] = Field(-1, description="whose tokens: of the last layer, or of the one before it")

    padding: Literal["masked", "read"] = Field(
        "masked", description="whether tokens behind a text's end are read, as Stable Diffusion does"
    )

    @keys_agree
    def _agree(self) -> Iterator[str]:
        if self.kind == "t5" and self.library == "open_clip":
            yield "library is 'open_clip', which has no t5; set library to transformers"
        if self.kind == "t5" and self.layer == -2:
            yield "layer -2 is a choice of clip's tokens, t5 gives its last layer; set layer to -1"
        if self.kind == "t5" and self.padding == "read":
            yield "padding is 'read', but t5 gives nothing behind a text's end; set padding to masked"
        if self.pretrained is not None and (self.library != "open_clip" or "/" in self.model):
            yield (
                f"pretrained is '{self.pretrained}', but only names that open_clip knows have tags; leave pretrained out"
            )

    @property
    def origin(self) -> Origin:
        return Origin(self.kind, self.library, self.model, self.pretrained)

    @property
    def name(self) -> str:
        """The model, with the tag of its weights if it has one."""
        return f"{self.model} {self.pretrained}" if self.pretrained else self.model

    def resolved(self) -> "EncoderConfig":
        """The same config with the absolute path of a local folder."""
        folder = Path(self.model).expanduser()
        return self.model_copy(update={"model": str(folder.absolute())}) if folder.is_dir() else self

    def build(self) -> "Encoder":
        return Encoder(self)


class Encoded(NamedTuple):
    """Encoded texts; rows of `tokens` are 0 if the mask is False."""

    tokens: Tensor  # (B, L, D) float32; L is the limit, whatever the texts: a row does not depend on its neighbours
    mask: Tensor  # (B, L) bool
    pooled: Tensor | None  # (B, P) float32: CLIP's end-of-text token through the text projection; T5 has none


class Encoder:
    """An encoder that is loaded when first used and shared by all users of the same name, also by copies of a module.

    key: the key of its model in a preset, for errors. promised: the digest that its weights must have, once it is known.
    """

    def __init__(self, config: EncoderConfig) -> None:
        self.config = config
        self.key = "encoder.model"
        self.promised: str | None = None
        self._stated = ""  # by what
        self._towers: Towers | None = None
        self._told = False  # that a text was cut

    def __deepcopy__(self, memo: dict[int, Any]) -> "Encoder":
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the weights, see `Towers.digest`; loads them."""
        return self.towers.digest

    def promise(self, sha256: str | None, where: str) -> None:
        """Requires this digest of the weights, which `where` states. Raises UserError if another one is required or loaded."""
        if sha256 is None:
            return
        known = self.promised or (self._towers.digest if self._towers else None)
        if known not in (None, sha256):
            raise self._differs(str(known), sha256, where)
        self.promised, self._stated = sha256, where

    @property
    def towers(self) -> Towers:
        """The loaded model. Raises UserError if it cannot be loaded, or if its weights have another digest than required."""
        if self._towers is None:
            towers = _shared(self.config.origin, self.key)
            if self.promised not in (None, towers.digest):
                raise self._differs(towers.digest, str(self.promised), self._stated)
            self._towers = towers
        return self._towers

    @property
    def length(self) -> int:
        """Tokens of a text at most."""
        limit = self.towers.limit or T5_LENGTH
        if self.config.length is not None and self.towers.limit is not None and self.config.length > limit:
            raise UserError(
                f"{self.key} is '{self.config.model}', which reads {limit} tokens at most, but length is {self.config.length}",
                f"set length to {limit} or less, or leave it out",
            )
        return self.config.length or limit

    def texts(
        self, texts: Sequence[str], device: torch.device | str = "cpu", words: LearnedWords | None = None
    ) -> Encoded:
        """Encodes B texts on a device; those longer than the limit are cut there, with a warning that counts tokens.

        words: new ones that they may hold, on the same device; gradients reach these alone.
        """
        learning = words is not None and words.learning and torch.is_grad_enabled()
        with torch.set_grad_enabled(learning):
            return self._encoded(texts, torch.device(device), words)

    def _encoded(self, texts: Sequence[str], device: torch.device, words: LearnedWords | None) -> Encoded:
        row = {text: i for i, text in enumerate(dict.fromkeys(texts))}  # both branches of guidance read the same
        ids, mask = self._tokenized(list(row), words)
        towers = self.towers
        towers.move_text(device)
        ids, mask = moved(ids, device), moved(mask, device)
        with _whole_range(self.config.kind, device):
            if words is None:
                tokens, pooled = towers.text(ids, mask, self.config.layer)
            else:
                with reading(towers, ids, words) as known:
                    tokens, pooled = towers.text(known, mask, self.config.layer)
        rows = moved(torch.tensor([row[text] for text in texts]), device)
        mask = torch.ones_like(mask) if self.config.padding == "read" else mask
        tokens = tokens.float() * mask[..., None]
        return Encoded(tokens[rows], mask[rows], None if pooled is None else pooled.float()[rows])

    @torch.no_grad()
    def images(self, x: Tensor) -> Tensor:
        """CLIP's image features (B, P) float32 of images (B, C, H, W) in [-1, 1]; grey ones count as RGB."""
        return self.image_features(self.pixels(x))

    def pixels(self, x: Tensor) -> Tensor:
        """The input of CLIP's image tower (B, 3, S, S): resized (bicubic, antialiased), cropped to the centre, standardised.

        Computed in floats, so it differs by a grey level or two from Pillow, which rounds to bytes after each direction.
        """
        view = self.towers.view
        if view is None:
            raise UserError(f"{self.config.model} is a {self.config.kind} encoder, which reads no images", "use a CLIP")
        height, width = x.shape[-2:]
        sides = [view.size * side // min(height, width) for side in (height, width)]
        if [height, width] != sides:
            x = functional.interpolate(x.float(), sides, mode="bicubic", antialias=True, align_corners=False)
        top, left = ((side - view.size) // 2 for side in sides)
        x = x[..., top : top + view.size, left : left + view.size].expand(-1, 3, -1, -1)
        mean, std = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in (view.mean, view.std))
        return ((x.clamp(-1, 1) + 1) / 2 - mean) / std

    @torch.no_grad()
    def image_features(self, pixels: Tensor) -> Tensor:
        """Image features (B, P) float32 of what `pixels` gives."""
        self.towers.move_images(pixels.device)
        return self.towers.images(pixels).float()

    def _tokenized(self, texts: Sequence[str], words: LearnedWords | None = None) -> tuple[Tensor, Tensor]:
        """Ids int64 (B, L) and which of them are there, (B, L) bool; every row ends with the end-of-text token."""
        length, towers = self.length, self.towers
        ids = torch.full((len(texts), length), towers.pad, dtype=torch.int64)
        mask = torch.zeros(len(texts), length, dtype=torch.bool)
        found = towers.ids(texts) if words is None else [with_words(towers, text, words) for text in texts]
        longest = max(map(len, found), default=0)
        if longest > length and not self._told:
            self._told = True
            note = f"a text is {longest} tokens long; tokens beyond the {length} of {self.config.model} are not read"
            warnings.warn(note, Note, stacklevel=3)
        for i, whole in enumerate(found):
            kept = whole if len(whole) <= length else [*whole[: length - 1], whole[-1]]
            ids[i, : len(kept)] = torch.tensor(kept)
            mask[i, : len(kept)] = True
        return ids, mask

    def _differs(self, found: str, wanted: str, where: str) -> UserError:
        return UserError(
            f"{self.key} is '{self.config.model}', whose weights are {found[:12]}..., but {where} used {wanted[:12]}...",
            f"name the encoder with those weights: {typed(self.key)}",
        )


_alive: WeakValueDictionary[Origin, Towers] = WeakValueDictionary()


def _shared(origin: Origin, key: str) -> Towers:
    """The loaded model of an origin, one for all who hold it."""
    towers = _alive.get(origin)
    if towers is None:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):  # a library draws weights before it loads them
            towers = _alive[origin] = LOADERS[origin.library, origin.kind](origin, key)
    return towers


def _whole_range(kind: str, device: torch.device) -> torch.autocast:
    """Leaves autocast as it is, but for T5 in float16, where its feed-forward layers overflow."""
    dtype = torch.get_autocast_dtype(device.type)
    on = torch.is_autocast_enabled(device.type) and not (kind == "t5" and dtype == torch.float16)
    return torch.autocast(device.type, dtype=dtype, enabled=on)
