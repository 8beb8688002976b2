"""Captions under pictures, in every script for which this machine has a font.

Pillow's own font is the same on every machine and has the letters of ASCII. A text with other letters uses the first font of the
machine that has them all, or else a font for each part. A letter without a font is shown as `?`, and a `Note` names it.
"""

import sys
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diffcli.config import Note

LETTERS = 12  # pixels that they are high
LINE = 15  # pixels from one line of a caption to the next
MOST_LINES = 4
ELLIPSIS = "..."
UNKNOWN = "?"
MARGIN = 2  # pixels left and right of a line
NO_LETTER = "\U0010ffff"  # which no font has
MOST_NAMED = 5  # missing letters that a note names
FOLDERS = {
    "darwin": ("~/Library/Fonts", "/Library/Fonts", "/System/Library/Fonts"),
    "win32": ("C:/Windows/Fonts", "~/AppData/Local/Microsoft/Windows/Fonts"),
}
ELSEWHERE = ("~/.local/share/fonts", "~/.fonts", "/usr/local/share/fonts", "/usr/share/fonts")
SUFFIXES = (".ttf", ".otf", ".ttc")
STYLED = (
    "bold",
    "italic",
    "oblique",
    "mono",
    "condensed",
    "light",
    "thin",
    "black",
    "serif",
    "math",
    "emoji",
    "symbol",
)
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Ruler(Protocol):
    """Measures the width of a text in pixels."""

    def getlength(self, text: str) -> float: ...


class Lettering:
    """Fonts of one size; those of the machine are opened when a letter needs them."""

    def __init__(self, size: int = LETTERS, files: Sequence[Path] | None = None) -> None:
        self.size = size
        self.fonts: list[Font] = [ImageFont.load_default(size)]
        self._more = opened(font_files() if files is None else files, size)

    def readable(self, text: str) -> tuple[str, set[str]]:
        """The text with `?` in place of letters that no font has, and these letters."""
        text = unicodedata.normalize("NFC", text)
        missing = {letter for letter in set(text) if self._font_of(letter) is None}
        return "".join(UNKNOWN if letter in missing else letter for letter in text), missing

    def runs(self, text: str) -> list[tuple[str, Font]]:
        """The parts of a text, each with the font that has it; one where a font has all of its letters."""
        for font in self.fonts:
            if all(has(font, letter) for letter in text):
                return [(text, font)]
        found: list[tuple[str, Font]] = []
        for letter in text:
            if found and has(found[-1][1], letter):
                found[-1] = found[-1][0] + letter, found[-1][1]
            else:
                found.append((letter, self._font_of(letter) or self.fonts[0]))
        return found

    def getlength(self, text: str) -> float:
        """Width in pixels."""
        return sum(font.getlength(part) for part, font in self.runs(text))

    def write(self, draw: ImageDraw.ImageDraw, text: str, middle: tuple[float, float]) -> None:
        """Draws a line of text around a point, white."""
        x = middle[0] - self.getlength(text) / 2
        for part, font in self.runs(text):
            draw.text((x, middle[1]), part, fill=255, font=font, anchor="lm")
            x += font.getlength(part)

    def _font_of(self, letter: str) -> Font | None:
        """The first font that has a letter; None where there is none."""
        for font in self.fonts:
            if has(font, letter):
                return font
        for font in self._more:
            self.fonts.append(font)
            if has(font, letter):
                return font
        return None


@lru_cache
def lettering() -> Lettering:
    """The lettering of captions, with cached fonts of this machine."""
    return Lettering()


@lru_cache(maxsize=100_000)
def has(font: Font, letter: str) -> bool:
    """Whether a font draws a letter differently from a letter that no font has. Spaces and format characters need no drawing."""
    if letter.isspace() or unicodedata.category(letter) == "Cf":
        return True
    return bytes(font.getmask(letter)) != bytes(font.getmask(NO_LETTER))


def font_files() -> list[Path]:
    """The font files of this machine, upright text faces without serifs first, in an order that is the same every time."""
    found = [
        path
        for folder in FOLDERS.get(sys.platform, ELSEWHERE)
        for path in Path(folder).expanduser().rglob("*")
        if path.suffix.lower() in SUFFIXES
    ]
    return sorted(found, key=lambda path: (sum(word in path.stem.lower() for word in STYLED), str(path)))


def opened(files: Sequence[Path], size: int) -> Iterator[Font]:
    """Each of the files that is a font of this size."""
    for path in files:
        try:
            yield ImageFont.truetype(str(path), size)
        except (OSError, ValueError):  # damaged, or pictures of another size
            continue


def strips(captions: Sequence[str], width: int) -> Tensor:
    """uint8 (B, H, width): captions, white on black, each broken into lines in the middle. Notes letters that no font has."""
    ours = lettering()
    readable = [ours.readable(caption) for caption in captions]
    note_missing({letter for _, missing in readable for letter in missing})
    broken_up = [lines(text, width - 2 * MARGIN, ours) for text, _ in readable]
    height = LINE * max(map(len, broken_up))
    return torch.stack([strip(each, (width, height), ours) for each in broken_up])


def note_missing(letters: set[str]) -> None:
    """Notes which letters are shown as `?`."""
    if letters:
        named = [f"{letter} ({unicodedata.name(letter, f'U+{ord(letter):04X}')})" for letter in sorted(letters)]
        others = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
        text = (
            f"captions: no font of this machine has {', '.join(named[:MOST_NAMED])}{others}, which show as {UNKNOWN}; "
            "install one that has them, such as those of Noto (https://fonts.google.com/noto), and draw again"
        )
        warnings.warn(text, Note, stacklevel=2)


def strip(text: Sequence[str], size: tuple[int, int], letters: Lettering) -> Tensor:
    """uint8 (H, W) of size (W, H): lines of text, each in the middle, white on black."""
    image = Image.new("L", size)
    draw = ImageDraw.Draw(image)
    for i, line in enumerate(text):
        letters.write(draw, line, (size[0] / 2, LINE * (i + 0.5)))
    return torch.from_numpy(np.array(image))


def lines(text: str, width: int, font: Ruler) -> list[str]:
    """A text broken into lines that fit a width in pixels, at most `MOST_LINES`; what is left out shows as an ellipsis."""
    found = list(islice(broken(text, width, font), MOST_LINES + 1))
    if len(found) > MOST_LINES:
        last = found[MOST_LINES - 1]
        while font.getlength(last + ELLIPSIS) > width:
            last = last[:-1]
        found[MOST_LINES - 1 :] = [last + ELLIPSIS]
    return found


def broken(text: str, width: int, font: Ruler) -> Iterator[str]:
    """Lines of whole words where they fit, of as many letters as fit where a word alone does not."""
    line = ""
    for word in text.split():
        if line and font.getlength(f"{line} {word}") <= width:
            line = f"{line} {word}"
            continue
        if line:
            yield line
        while fits := next((n for n in range(1, len(word)) if font.getlength(word[: n + 1]) > width), 0):
            yield word[:fits]
            word = word[fits:]
        line = word
    yield line
