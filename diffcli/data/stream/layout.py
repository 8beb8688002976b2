"""The members of a streamed sample: image, label, captions, embeddings and pictures, as in prepared shards.

KEY.jpg, .png, ... is the image; KEY.cls or .class its label; KEY.txt its captions, one a line; KEY.json has either, under usual
keys; KEY.FIELD.npy an embedding and KEY.FIELD.png a picture that lies over the image.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from diffcli.config import ImageShape, UserError
from diffcli.data import captions
from diffcli.data.buckets import Framing
from diffcli.data.class_captions import ClassCaptions
from diffcli.data.columns import column
from diffcli.data.derived import Derived
from diffcli.data.field_notes import FieldNote, is_mask
from diffcli.data.images import FileImages, ImageData
from diffcli.data.sample_labels import EXTENSIONS, label_in, number_in
from diffcli.data.stream.tar import IMAGES, TarSample
from diffcli.fields import Batch, FieldSpec, Specs

MEMBERS = {"vector": "npy", "tokens": "npy", "image": "png", "mask": "png"}  # the extension of KEY.FIELD, by its kind
CAPTIONS_OF_TOKENS = 3  # axes of an array that holds a sequence (L, D) for each caption
MAX_LABELS = 1 << 31  # the limit if no class names give a number
APART = "type `diffcli prep-data webdataset`, which finds what lies apart in a tar or is a link, and train on what it writes"
HINT = "take the samples without it out of the shards, or the conditioner that reads it out of the preset"


@dataclass(frozen=True)
class Layout:
    """The fields of the samples of a stream, and their conversion to rows. fields: those beside image and label, by name.

    json_labels: labels may lie in KEY.json; dotted: keys have dots.
    """

    shape: ImageShape
    framing: Framing
    labelled: bool
    classes: tuple[str, ...] | None
    fields: dict[str, FieldNote]
    class_captions: ClassCaptions | None = None
    derived: tuple[Derived, ...] = ()
    reads_image: bool = True
    json_labels: bool = False
    dotted: bool = False

    def select(self, names: Iterable[str]) -> "Layout":
        """The same layout that reads only these fields (labels, and captions made of them, cost nothing)."""
        chosen = set(names)
        fields = {name: note for name, note in self.fields.items() if name in chosen}
        image = FieldSpec("image", tuple(self.shape))
        derived = tuple(each for each in self.derived if each.specs(image).keys() & chosen)
        return replace(self, fields=fields, derived=derived, reads_image="image" in chosen)

    def knowing(self, reads: Specs) -> "Layout":
        """The same layout whose masks have the classes of the reader, if the stream does not give their number."""
        fields = {
            name: note.model_copy(update={"classes": reads[name].class_count})
            if note.kind == "mask" and note.classes is None and name in reads
            else note
            for name, note in self.fields.items()
        }
        return replace(self, fields=fields)

    def wanted(self, extension: str) -> bool:
        """Whether members with this extension are read."""
        if extension in EXTENSIONS:
            return self.labelled
        if extension in ("txt", "json"):
            return "text" in self.fields or (extension == "json" and self.labelled and self.json_labels)
        name, _, kind = extension.rpartition(".")
        if name:
            return name in self.fields and MEMBERS.get(self.fields[name].kind) == kind
        return (self.reads_image or bool(self.derived)) and kind in IMAGES

    def over(self, samples: Sequence[TarSample], names: Sequence[str]) -> ImageData:
        """These samples as data by index; names: for messages. Its `read` raises UserError for a broken one."""
        labels = torch.tensor([self._label(s) for s in samples], dtype=torch.int64) if self.labelled else None
        columns = {
            name: column(self._files(name, note, samples, names), note, self.framing)
            for name, note in self.fields.items()
        }
        images = MemberFiles(samples, names, sorted(IMAGES))
        data: ImageData = SampleImages(images, self.shape, labels, self.classes, columns, self.framing)
        if self.class_captions is not None:
            data = self.class_captions.added(data)
        data = data.deriving(self.derived)
        data.reads_images = self.reads_image
        return data

    @property
    def specs(self) -> Specs:
        """The fields of a sample."""
        return self.over([], []).specs

    def _files(self, name: str, note: FieldNote, samples: Sequence[TarSample], names: Sequence[str]) -> "MemberFiles":
        if note.kind == "text":
            return CaptionFiles(samples, names)
        return MemberFiles(samples, names, (f"{name}.{MEMBERS[note.kind]}",))

    def _label(self, sample: TarSample) -> int:
        """-1 where it has none, or one that names no class."""
        given = label_in(sample.members)
        if given is None:
            return -1
        if self.classes and given in self.classes and number_in(given) is None:
            return self.classes.index(given)
        label = number_in(given)
        return -1 if label is None or not 0 <= label < (len(self.classes) if self.classes else MAX_LABELS) else label


class SampleImages(FileImages):
    """The images of some samples; those with an invalid label are broken."""

    def read(self, indices: Tensor, draws: Tensor | None = None) -> Batch:
        for index in indices.tolist() if self.labels is not None else ():
            if self.labels[index] < 0:  # type: ignore[index]  # not None, as was seen above
                assert isinstance(self.files, MemberFiles)
                raise _unlabelled(self.files.name(index), label_in(self.files.samples[index].members), self.classes)
        return super().read(indices, draws)


def _unlabelled(name: str, label: str | None, classes: tuple[str, ...] | None) -> UserError:
    if label is None:
        return UserError(f"{name} has no label", HINT)
    if number_in(label) is None and not classes:
        return UserError(
            f"{name}: its label is '{label}', and no list of classes gives its number",
            "name all classes in order, --set 'data.classes=[cat, dog]', or type `diffcli prep-data webdataset`",
        )
    known = f"one of the {len(classes)} classes" if classes else "the number of a class"
    return UserError(f"{name}: its label is '{label}', not {known}", HINT)


class MemberFiles:
    """One member of each sample, the first one with some extensions: EncodedFiles, for FileImages and columns."""

    def __init__(self, samples: Sequence[TarSample], names: Sequence[str], extensions: Sequence[str]) -> None:
        self.samples, self.names, self.extensions = samples, names, extensions

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        return self.names[index]

    def read(self, index: int) -> bytes:
        members = self.samples[index].members
        found = next((members[extension] for extension in self.extensions if extension in members), None)
        if found is None:
            sample = self.samples[index]
            what = "image" if len(self.extensions) > 1 else self.extensions[0]
            there = ", ".join((*members, *sample.others))
            raise UserError(f"{self.names[index]} has no {what}, only {there}", APART if sample.remarks else HINT)
        return found


class CaptionFiles(MemberFiles):
    """The captions of each sample from a .txt member, or from a .json without a .txt."""

    def __init__(self, samples: Sequence[TarSample], names: Sequence[str]) -> None:
        super().__init__(samples, names, ("txt", "json"))

    def read(self, index: int) -> bytes:
        members = self.samples[index].members
        if "txt" in members or "json" not in members:
            return members.get("txt", b"")
        return captions.to_bytes(_captions(members["json"]))


def _captions(data: bytes) -> tuple[str, ...]:
    """The captions in a .json member; none if it is garbled."""
    with suppress(ValueError):
        return captions.from_json(data)
    return ()


def fields_of(members: Mapping[str, bytes]) -> dict[str, FieldNote]:
    """The fields that a sample has beside image and label."""
    found = {}
    for extension, data in members.items():
        name, _, kind = extension.rpartition(".")
        if extension == "txt" or (extension == "json" and _captions(data)):
            found["text"] = FieldNote(kind="text")
        elif name.isidentifier() and kind == "npy":
            found[name] = _embedding(data)
        elif name.isidentifier() and kind == "png":
            found[name] = FieldNote(kind="mask" if is_mask(name) else "image")
    return found


def _embedding(data: bytes) -> FieldNote:
    """The spec of an .npy file: a vector for each caption, or a sequence of them; of unknown width if it is garbled."""
    try:
        shape = np.load(io.BytesIO(data), allow_pickle=False).shape
        return FieldNote(kind="tokens" if len(shape) == CAPTIONS_OF_TOKENS else "vector", width=int(shape[-1]))
    except (ValueError, EOFError, IndexError):
        return FieldNote(kind="vector")
