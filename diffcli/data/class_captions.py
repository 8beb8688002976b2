"""Captions made of classes: the section `data.captions` of a preset, for labelled data that have no captions of their own."""

import copy
import re
from itertools import product
from math import prod
from typing import Annotated

from pydantic import Field, field_validator

from diffcli.config import Config, UserError
from diffcli.data.columns import ClassTexts
from diffcli.data.images import ImageData

MOST_WORDINGS = 10_000  # of one template: all are held


class ClassCaptions(Config):
    """Each epoch chooses for each image one of the templates, and one of the names of its class for {name}.

    Brackets in a template hold alternatives: "[a|the] {name}[ on paper|]" has four wordings.
    names: a list for each class, in order; None uses the class names of the set.
    """

    templates: tuple[str, ...] = Field(
        min_length=1, description="texts with {name}, one of which is chosen in each epoch; [a|the] holds alternatives"
    )
    names: tuple[Annotated[tuple[str, ...], Field(min_length=1)], ...] | None = Field(
        None, description="a list of names for each class, in order; null: the class names of the set"
    )

    @field_validator("templates")
    @classmethod
    def _naming(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            given = parts(template)
            if any(set("[]") & set(part) for part in given[::2]):
                raise ValueError(
                    f"{template!r} has a bracket inside another, or without its other half; write '[a|the] {{name}}'"
                )
            if (count := prod(part.count("|") + 1 for part in given[1::2])) > MOST_WORDINGS:
                raise ValueError(
                    f"{template!r} has {count:,} wordings; make several templates of it, of {MOST_WORDINGS:,} at most"
                )
            if not all("{name}" in wording for wording in wordings(template)):
                raise ValueError(f"{template!r} does not name the class; write for example 'a photo of a {{name}}'")
        return templates

    def added(self, data: ImageData) -> ImageData:
        """The same data with the field `text`. Raises UserError if it cannot be made."""
        if "text" in data.columns:
            raise UserError("data.captions: the data have captions of their own", "leave data.captions out")
        if data.labels is None or not data.classes:
            raise UserError(
                "data.captions: the data have no classes that captions could name",
                "choose data with classes (a folder with one subfolder a class), or leave data.captions out",
            )
        names = self.names or tuple((name,) for name in data.classes)
        if len(names) != len(data.classes):
            shown = ", ".join(data.classes[:5]) + ", ..." * (len(data.classes) > 5)
            raise UserError(
                f"data.captions.names has {len(names)} lists, but the data have {len(data.classes)} classes ({shown})",
                "give one list of names for each class, or leave it out for the names of the set",
            )
        captioned = copy.copy(data)
        captioned.columns = {**data.columns, "text": ClassTexts(data.labels, [*map(wordings, self.templates)], names)}
        return captioned


def wordings(template: str) -> list[str]:
    """All wordings of a template: the combinations of the alternatives in its brackets."""
    choices = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts(template))]
    return ["".join(words) for words in product(*choices)]


def parts(template: str) -> list[str]:
    """Its pieces in order, of which every second one stood in brackets."""
    return re.split(r"\[([^\[\]]*)\]", template)
