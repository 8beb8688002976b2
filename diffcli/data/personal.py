"""A handful of pictures of one thing under texts with a word of its own, and pictures of its class that shall stay as they are.

The pictures of the thing are the field `image`, their texts `text`. Each sample also has a picture of the class and its text, the
fields `preserved` and `preserved_text`: which one follows from the random bits of the sample, so from seed, epoch and index.
Source: Ruiz et al. 2022, sections 3.1 to 3.3 (arXiv 2208.12242).
"""

import copy
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from torch import Tensor

from diffcli.config import Config, ImageShape, UserError, keys_agree
from diffcli.data import captions
from diffcli.data.class_captions import parts, wordings
from diffcli.data.columns import each
from diffcli.data.dataset import DataConfig, TreeFiles
from diffcli.data.files import open_tree
from diffcli.data.images import FileImages, ImageData, ImageOrigin
from diffcli.data.leftovers import check_finished
from diffcli.data.listing import Split, list_images
from diffcli.data.loader import loaded
from diffcli.fields import FieldSpec
from diffcli.noise import Domain, derive

PRESERVED, PRESERVED_TEXT = "preserved", "preserved_text"  # the fields of pictures of the class and of their texts
FEWEST, MOST = 3, 20  # pictures of the thing: fewer are refused, more are noted

Texts = Annotated[tuple[str, ...], Field(min_length=1)]


class Preserve(Config):
    """Pictures of the class, which keep a model from taking the thing for all of its class."""

    prompts: Texts = Field(
        examples=[["a photo of a dog"]], description="texts of the class, in turn; [a|the] holds alternatives"
    )
    count: int = Field(100, ge=1, description="pictures that the model in `from` draws before the first step")
    root: Path | None = Field(None, description="folder of pictures of the class; null: they are drawn, into the run")

    @field_validator("prompts")
    @classmethod
    def _whole(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(whole_brackets, prompts))

    @property
    def texts(self) -> tuple[str, ...]:
        """All wordings: picture i has text i, from the first again."""
        return tuple(text for prompt in self.prompts for text in wordings(prompt))


class Personal(DataConfig):
    """A folder of 3 to 20 pictures of one thing. token: the word that stands for it in every text.

    The fields of pictures of the class are there where `preserve` names their texts.
    """

    kind: Literal["personal"] = "personal"
    token: str = Field(
        min_length=1, examples=["sks"], description="the word for the thing: a rare one, or the one that training makes"
    )
    prompts: Texts = Field(
        examples=[["a photo of sks dog"]],
        description="texts of the pictures, one of which is chosen in each epoch; each has the token; [a|the] holds alternatives",
    )
    preserve: Preserve | None = Field(
        None, description="pictures of the class, which shall stay as they are; null: none"
    )

    @field_validator("token")
    @classmethod
    def _one_word(cls, token: str) -> str:
        if captions.clean(token) != token or " " in token:
            raise ValueError(f"{token!r} is no single word; write it without spaces, as data.token=sks")
        return token

    @field_validator("prompts")
    @classmethod
    def _whole(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(whole_brackets, prompts))

    @keys_agree
    def _named(self) -> Iterator[str]:
        for prompt in self.prompts:
            if lacking := next((text for text in wordings(prompt) if not holds_word(text, self.token)), None):
                yield (
                    f"prompts holds {lacking!r}, in which the token '{self.token}' does not stand; "
                    f"write it into every text, as data.prompts=['a photo of {self.token} dog']"
                )
        for text in self.preserve.texts if self.preserve else ():
            if holds_word(text, self.token):
                yield (
                    f"preserve.prompts holds {text!r} with the token '{self.token}', but it is about other things of the class; "
                    "leave the token out, as data.preserve.prompts=['a photo of a dog']"
                )
        if self.captions is not None:
            yield "captions is set beside prompts, which are the texts of this kind; leave data.captions out"

    @property
    def specs(self) -> dict[str, FieldSpec]:
        return super().specs | {"text": FieldSpec("text")} | self._beside

    @property
    def _beside(self) -> dict[str, FieldSpec]:
        """The fields of pictures of the class."""
        if self.preserve is None:
            return {}
        return {PRESERVED: FieldSpec("image", tuple(self.shape)), PRESERVED_TEXT: FieldSpec("text")}

    def absolute(self) -> "Personal":
        kept = self.preserve
        if kept is not None and kept.root is not None:
            kept = kept.model_copy(update={"root": kept.root.expanduser().absolute()})
        return super().absolute().model_copy(update={"preserve": kept})  # type: ignore[return-value]

    @property
    def paths(self) -> list[Path]:
        return [*super().paths, *([self.preserve.root.expanduser()] if self.preserve and self.preserve.root else [])]

    def build(self, split: Split) -> ImageData:
        source = self._source()
        check_finished(source, "data.root")
        data = copy.copy(self._files(open_tree(source, "data.root"), split))
        data.labels, data.classes = None, None  # folders are no classes here
        if len(data) < FEWEST:
            raise UserError(
                f"data.root is '{source}', which holds {len(data)} picture{'s' if len(data) > 1 else ''} of the thing",
                f"give a folder of {FEWEST} to {MOST} different ones as --data PATH",
            )
        if len(data) > MOST:
            note = f"{len(data)} pictures are more than a handful ({MOST}): data.kind folder, with a text beside each, fits them"
            origin = data.origin or ImageOrigin()
            data.origin = origin._replace(notes=(*origin.notes, note))
        texts = tuple(text for prompt in self.prompts for text in wordings(prompt))
        data.columns = {**data.columns, "text": OwnTexts(texts)}
        if self.preserve is not None and split == "train":
            pictures = self._class_pictures(self.preserve)
            data.columns[PRESERVED] = ClassPictures(pictures, self._beside[PRESERVED])
            data.columns[PRESERVED_TEXT] = PreservedTexts(self.preserve.texts, pictures)
        return data

    def _class_pictures(self, preserve: Preserve) -> ImageData | None:
        """Those of the folder, all at the centre; None where they are still to be drawn."""
        if preserve.root is None:
            return None
        tree = open_tree(preserve.root.expanduser(), "data.preserve.root")
        names = sorted(
            name for listing in list_images(tree, "data.preserve.root").splits.values() for name in listing.names
        )
        return loaded(FileImages(TreeFiles(tree, names), ImageShape(*self.shape)), self.in_memory)


def whole_brackets(text: str) -> str:
    """The same text. Raises ValueError where a bracket lacks its other half."""
    if any(set("[]") & set(part) for part in parts(text)[::2]):
        raise ValueError(f"{text!r} has a bracket inside another, or without its other half; write '[a|the]'")
    return text


def holds_word(text: str, word: str) -> bool:
    """Whether a word stands in a text, and not inside another one."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None


def picked(indices: Tensor, draws: Tensor | None, count: int) -> Tensor:
    """Which of `count` pictures of the class stand beside these samples: int64 (B,). draws: see ImageData.read."""
    return indices % count if draws is None else derive(0, Domain.AUGMENT, draws) % count


class OwnTexts:
    """One of some texts, the same for all rows, chosen by the draw of a sample."""

    spec = FieldSpec("text")

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = tuple(texts)

    def read(self, indices: Tensor, draws: Tensor | None) -> list[str]:
        return [self.texts[captions.chosen(len(self.texts), draw)] for draw in each(draws, len(indices))]


class ClassPictures:
    """A picture of the class beside each sample. pictures: None before they are drawn."""

    def __init__(self, pictures: ImageData | None, spec: FieldSpec) -> None:
        self.pictures, self.spec = pictures, spec

    def read(self, indices: Tensor, draws: Tensor | None) -> Tensor:
        there = drawn(self.pictures)
        return there.pixels(picked(indices, draws, len(there)))


class PreservedTexts:
    """The texts of the pictures that `ClassPictures` gives for the same rows."""

    spec = FieldSpec("text")

    def __init__(self, texts: Sequence[str], pictures: ImageData | None) -> None:
        self.texts, self.pictures = tuple(texts), pictures

    def read(self, indices: Tensor, draws: Tensor | None) -> list[str]:
        rows = picked(indices, draws, len(drawn(self.pictures)))
        return [self.texts[row % len(self.texts)] for row in rows.tolist()]


def drawn(pictures: ImageData | None) -> ImageData:
    if pictures is None:
        raise UserError(
            "data.preserve: the pictures of the class are not drawn yet",
            "train, which draws them, or name a folder of them: --set data.preserve.root=DIR",
        )
    return pictures
