"""Several data sets in one run, `data: {kind: mix}`: each batch is of one part, chosen by seed and step among those then active.

All parts give the field clip; images are clips of one frame. Where nothing is trained, in previews, validation and scores,
the data are their last part.
"""

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from diffcli.data.clips.clip_data import CLIP, FPS, clip_specs
from diffcli.data.images import ImageData, ImageOrigin, Share
from diffcli.fields import Batch, FieldSpec, Specs

IMAGE = "image"


class StillClips(ImageData):
    """The images of a set as clips of one frame. Their frame rate is 0, which stands for a still image."""

    def __init__(self, whole: ImageData) -> None:
        super().__init__(whole.shape, whole.labels, whole.classes)
        self.whole = whole
        self.framing, self.in_files, self.origin = whole.framing, whole.in_files, whole.origin
        self.reads_images = False
        self.columns = whole.columns

    def __len__(self) -> int:
        return len(self.whole)

    @property
    def specs(self) -> dict[str, FieldSpec]:
        has = self.whole.specs
        clip = clip_specs(self.shape, 1) if IMAGE in has else {}
        return clip | {name: spec for name, spec in has.items() if name not in (IMAGE, CLIP, FPS)}

    def select(self, fields: Collection[str]) -> ImageData:
        wanted = {IMAGE if name == CLIP else name for name in fields}
        return StillClips(self.whole.select(wanted))

    def knowing(self, reads: Specs) -> ImageData:
        return StillClips(self.whole.knowing(reads))

    def pixels(self, indices: Tensor, draws: Tensor | None = None) -> Tensor:
        """uint8 (B, C, 1, H, W)."""
        return self.whole.pixels(indices, draws)[:, :, None]

    def read(self, indices: Tensor, draws: Tensor | None = None) -> Batch:
        fields = dict(self.whole.read(indices, draws))
        if IMAGE in fields:
            fields |= {CLIP: fields.pop(IMAGE)[:, :, None], FPS: torch.zeros(len(indices))}
        return fields


class MixedData(ImageData):
    """Parts of one shape and of the fields that all of them have. Batches of training come as the variants of all parts."""

    def __init__(self, parts: Sequence[Share]) -> None:
        shared = fields_of_all(parts)
        self.parts = tuple(part._replace(data=part.data.select(shared)) for part in parts)
        self.last = self.parts[-1].data
        labels = self.last.labels if "label" in shared else None
        super().__init__(self.last.shape, labels, self.last.classes, self.last.columns)
        self.in_files = any(part.data.in_files for part in parts)
        self.framing = self.last.framing
        self.shared = shared
        self.origin = (self.last.origin or ImageOrigin())._replace(notes=notes_on(parts, shared))

    def __len__(self) -> int:
        return len(self.last)

    @property
    def variants(self) -> tuple[ImageData, ...]:
        return tuple(variant for part in self.parts for variant in part.data.variants)

    @property
    def specs(self) -> dict[str, FieldSpec]:
        return {name: spec for name, spec in self.last.specs.items() if name in self.shared}

    def select(self, fields: Collection[str]) -> ImageData:
        return self._of(part.data.select(fields) for part in self.parts)

    def knowing(self, reads: Specs) -> ImageData:
        return self._of(part.data.knowing(reads) for part in self.parts)

    def pixels(self, indices: Tensor, draws: Tensor | None = None) -> Tensor:
        return self.last.pixels(indices, draws)

    def read(self, indices: Tensor, draws: Tensor | None = None) -> Batch:
        return self.last.read(indices, draws)

    def _of(self, sets: Iterable[ImageData]) -> "MixedData":
        made = MixedData([part._replace(data=data) for part, data in zip(self.parts, sets, strict=True)])
        made.origin = self.origin
        return made


def fields_of_all(parts: Sequence[Share]) -> set[str]:
    """The fields that all parts have, of one kind and with the same classes."""
    specs = [part.data.specs for part in parts]
    return {
        name
        for name, spec in specs[-1].items()
        if all(name in has and (has[name].kind, has[name].classes) == (spec.kind, spec.classes) for has in specs)
    }


def notes_on(parts: Sequence[Share], shared: Collection[str]) -> tuple[str, ...]:
    """What is to say of each part: its own notes, its steps, and its fields that others lack."""
    notes = []
    for number, part in enumerate(parts):
        until = "the end" if part.last is None else f"step {part.last:,}"
        what = f"data.parts.{number}: {len(part.data):,} samples, from step {part.first:,} to {until}, weight {part.weight:g}"
        own = sorted(part.data.specs.keys() - shared)
        notes.append(what + (f"; not of all parts, so not read: {', '.join(own)}" if own else ""))
        notes += part.data.origin.notes if part.data.origin else ()
    return tuple(notes)
