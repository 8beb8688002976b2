"""What `--lora PATH[:SCALE]` names; imports no torch."""

import math
from pathlib import Path
from typing import NamedTuple

from diffcli.config import UserError, quoted


class LoraWish(NamedTuple):
    """One `--lora`. text: as it was typed."""

    text: str
    path: Path
    scale: float


def lora_wish(text: str) -> LoraWish:
    """PATH[:SCALE]; what stands behind the last colon is a scale where it is a number, and no part of a path that is there.

    Raises UserError for a scale that is not finite, and for a path where nothing is.
    """
    head, colon, tail = text.rpartition(":")
    path, scale = Path(text).expanduser(), 1.0
    if colon and head and not path.exists():
        try:
            path, scale = Path(head).expanduser(), float(tail)
        except ValueError:
            path = Path(text).expanduser()
    if not math.isfinite(scale):
        raise UserError(
            f"--lora {text}: the scale {tail} is not a finite number", f"give one, as --lora {quoted(head)}:0.8"
        )
    if not path.exists():
        raise UserError(
            f"--lora {text}: {path} is not there",
            "give a LoRA run of diffcli, or a .safetensors file of diffusers, peft or kohya, and a scale behind a colon",
        )
    return LoraWish(text, path, scale)


def lora_text(wish: LoraWish, folder: Path) -> str:
    """The same as it is typed elsewhere, when it was typed in `folder`."""
    return f"{folder / wish.path}:{wish.scale!r}"
