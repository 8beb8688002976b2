"""The notes of a prepared set on its fields beside the image: what they are, and which encoder made them."""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, assert_never

from pydantic import BeforeValidator, SerializerFunctionWrapHandler, StringConstraints, model_serializer

from diffcli.config import Config
from diffcli.fields import FieldSpec

WHITE = 255  # of a mask in black and white
TOKENS = frozenset({"clip_tokens", "t5_tokens"})  # the fields that --embed fills with sequences
READING = frozenset({"layer", "padding", "length", "empty"})  # entries of a note of what an encoder makes of texts
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
FieldName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]


class FieldNote(Config):
    """The description of a field beside the image: the kind of its FieldSpec, or `video`, an MP4 that is not decoded.

    width: of a vector or of tokens; encoder, sha256: the model that made it, and its weights. classes: of a mask, if known.
    shape: of a latent (C, h, w); pair: whether that of the mirrored image follows it. layer, padding, length: how the encoder
    read texts, None at their defaults; layer and padding matter to tokens alone. empty: digest of the file `empty_file`.
    """

    kind: Literal["text", "image", "mask", "vector", "tokens", "video", "latent"]
    width: int | None = None
    encoder: str | None = None
    sha256: Digest | None = None
    classes: int | None = None
    shape: tuple[int, int, int] | None = None
    pair: bool = False
    layer: int | None = None
    padding: Literal["masked", "read"] | None = None
    length: int | None = None
    empty: Digest | None = None

    @model_serializer(mode="wrap")
    def _known(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what only encoders of texts have: a note of anything else is as earlier versions read it."""
        made: dict[str, Any] = handler(self)
        return {key: value for key, value in made.items() if key not in READING or value is not None}

    def reads(self) -> tuple[int, str, int | None]:
        """How the encoder read texts: layer, padding and length, as its config has them; the defaults for a vector."""
        return self.layer or -1, self.padding or "masked", self.length

    @property
    def reading(self) -> str:
        """The same in words."""
        return "layer {}, padding {}, length {}".format(*self.reads())

    def spec(self, size: tuple[int, int]) -> FieldSpec:
        """The FieldSpec; size: (height, width) of the images."""
        match self.kind:
            case "text":
                return FieldSpec("text")
            case "vector":
                return FieldSpec("vector", (self.width,))
            case "tokens":
                return FieldSpec("tokens", (None, self.width))
            case "image":
                return FieldSpec("image", (1, *size))
            case "mask":
                return FieldSpec("mask", (1, *size), self.classes)
            case "latent":
                return FieldSpec("latent", self.shape or ())
            case "video":
                raise AssertionError("clips are no column of images")
            case never:
                assert_never(never)


def empty_file(field: str) -> str:
    """The file beside dataset.json with what an encoder makes of a text without a word, as an .npy of one row of the field."""
    return f"{field}.empty.npy"


def is_mask(field: str) -> bool:
    """Whether the values of a picture beside an image are class numbers, by the name of its field."""
    return field == "mask" or field.endswith("_mask")


def classes_in(values: Collection[int]) -> int | None:
    """The number of classes of a mask with these values; None if 255 marks pixels without a class.

    Black and white are two classes. Otherwise the values are the numbers of the classes.
    """
    if set(values) <= {0, WHITE}:
        return 2
    return None if max(values) == WHITE else max(2, max(values) + 1)


def _renamed(notes: Any) -> Any:
    """Notes of raw JSON with current names: earlier versions had one kind for all pictures, and one for all embeddings."""
    if not isinstance(notes, Mapping):
        return notes
    return {name: _renamed_note(name, note) if isinstance(note, Mapping) else note for name, note in notes.items()}


def _renamed_note(name: str, note: Mapping[str, Any]) -> Mapping[str, Any]:
    match note.get("kind"):
        case "picture":
            return {**note, "kind": "mask" if is_mask(name) else "image"}
        case "vector" if name in TOKENS:
            return {**note, "kind": "tokens"}
        case _:
            return note


Notes = Annotated[dict[FieldName, FieldNote], BeforeValidator(_renamed)]
