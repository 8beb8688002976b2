"""The Python face of diffcli: a checkpoint that draws, and the images that it drew. `diffcli.load` gives the first.

Everything that is random about an image follows from its seed, so the same call gives the same images as `diffcli sample` does.
Calls from several threads are served one after the other.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Literal, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffcli.config import UserError
from diffcli.engine.arguments import (
    LOAD,
    RECONSTRUCT,
    SAMPLE,
    SAVE,
    checked,
    label_of,
    path_of,
    pictures,
    readable,
    rows_of,
    settings_of,
    several,
    switch,
    whole,
)
from diffcli.engine.distributed import DeviceName, Group, pick_device
from diffcli.engine.draw import output
from diffcli.engine.draw.given import Value, from_files, from_stage, spec_of
from diffcli.engine.draw.pictures import grid
from diffcli.engine.draw.reconstruction import (
    Originals,
    Reconstruction,
    SideBySide,
    check_size,
    encoded,
    given_latents,
    given_originals,
    read_originals,
)
from diffcli.engine.draw.sample import Finished, ImageRequest, Model, SampleOptions, draw, load_model, request_of
from diffcli.engine.stage import StageModel

Pictured = str | Path | Image.Image | np.ndarray | Tensor
Pictures = Pictured | Sequence[Pictured]
Settings = Mapping[str, Any] | Sequence[str]


class Samples:
    """Finished images, in order. labels: int64 (n,), None where the model has no classes. record: all that draws them again."""

    def __init__(self, tensor: Tensor, labels: Tensor | None, record: dict[str, Any]) -> None:
        self.tensor = tensor  # uint8 (n, C, H, W) on the CPU
        self.labels = labels
        self.record = record

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, index: int) -> Image.Image:
        return _picture(self.tensor[index].permute(1, 2, 0).numpy())

    def __iter__(self) -> Iterator[Image.Image]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        size = "x".join(map(str, self.tensor.shape[1:]))
        return f"<{len(self)} images of {size} from {self.record['checkpoint']}>"

    def numpy(self) -> np.ndarray:
        """uint8 (n, H, W, C)."""
        return self.tensor.movedim(1, -1).numpy()

    def pil(self) -> list[Image.Image]:
        """One Pillow image each, grey or RGB."""
        return list(self)

    def grid(self, columns: int | None = None) -> Image.Image:
        """All of them in one picture, row by row; by default as `diffcli sample` lays them out."""
        if columns is not None:
            columns = whole("columns", columns, 1)
        return _picture(grid(self.tensor, columns or output.columns_for(self.record)))

    def save(self, path: str | Path) -> Path:
        """Writes them as `diffcli sample --out` does, with the record beside: a grid (.png), arrays (.npz), or a folder."""
        return readable(lambda: self._save(path_of("path", path)), SAVE)

    def _save(self, path: Path) -> Path:
        output.check_pictures(path, tuple(self.tensor.shape[1:]), Path(self.record["checkpoint"]))
        output.check_output(path, (".png", ".npz"), folder_allowed=True)
        output.write(path, [Finished(self.tensor, self.labels)], self.record)
        return path

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        file = io.BytesIO()
        self.grid().save(file, "PNG")
        return file.getvalue()


class LoadedModel:
    """A checkpoint that draws images; one of a first stage also encodes and decodes them."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._lock = Lock()

    def __repr__(self) -> str:
        size = "x".join(map(str, self.image_shape))
        return f"<{self.model.path}: images of {size}, {self.model.precision} on {self.model.device}>"

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of one image: channels, height and width."""
        return tuple(self.model.preset.data.shape)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the classes, where they have names."""
        return self.model.classes

    @property
    def record(self) -> dict[str, Any]:
        """Which model this is: path, step, digest of the weights, precision. JSON values."""
        return self.model.describe()

    def sample(
        self,
        n: int | None = None,
        *,
        label: int | str | None = None,
        labels: Sequence[int | str] | None = None,
        prompt: str | None = None,
        prompts: Sequence[str] | None = None,
        negative_prompt: str | None = None,
        prior: str | Path | None = None,
        seed: int = 0,
        size: int | tuple[int, int] | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        eta: float | None = None,
        guidance: float | None = None,
        image: Pictures | None = None,
        mask: Pictured | None = None,
        strength: float | None = None,
        interpolate: int | None = None,
        restore: str | None = None,
        degrade: bool = False,
        project: bool = False,
        compare: bool = False,
        given: Mapping[str, "Pictures | Samples"] | None = None,
        settings: Settings = (),
        batch_size: int = 64,
    ) -> Samples:
        """Draws n images, image i from seed + i. What is left out is as the run was trained; see `diffcli sample --help`.

        label: a class by number or name, "all" in turn or "random". labels, prompts: of the images, from the first again where
        there are more images; without n, one image each. image: pictures to begin from, files or in memory; mask and
        strength say what may change in them. restore: what they have lost and get back, sr2, sr4, colour, blur or mask; degrade
        takes it from them first, and compare shows them beside. project: an upscaler's images are
        consistent with what it enlarges.
        given: other conditions by field: pictures, a tensor or array (K, ...), uint8 where it holds pictures, or the samples of
        another model.
        size: the edge of the images in pixels, or (height, width). settings: keys of sampler.* and guide.*, as
        {"sampler.steps": 20}.
        Raises UserError, whose text says what to change.
        """
        for one, other, name in ((label, labels, "label"), (prompt, prompts, "prompt")):
            if one is not None and other is not None:
                raise UserError(f"{name} and {name}s are both given", "give one of them")
            if name == "prompt" and not isinstance(one, str | None):
                raise UserError(
                    f"prompt is {one!r}: must be a text", 'give a text, as prompt="a dog", or a list as prompts'
                )
        masks = pictures("mask", mask)
        if len(masks) > 1:
            raise UserError(f"mask holds {len(masks)} pictures: must be one", "give one, which holds for all images")
        if not isinstance(given, Mapping | None):
            raise UserError(
                f"given is {given!r}: must be a dict", 'give conditions by field, as given={"sketch": "a.png"}'
            )
        options = {
            "n": n,
            "labels": label_of(label) if labels is None else several("labels", labels),
            "prompts": several("prompts", prompts) if prompts is not None else () if prompt is None else (prompt,),
            "negative_prompt": negative_prompt,
            "prior": None if prior is None else str(prior),
            "seed": seed,
            "size": _sides(size),
            "sampler": sampler,
            "steps": steps,
            "eta": eta,
            "guidance": guidance,
            "images": pictures("image", list(image) if isinstance(image, Samples) else image),
            "mask": next(iter(masks), None),
            "strength": strength,
            "interpolate": interpolate,
            "restore": restore,
            "degrade": switch("degrade", degrade),
            "project": switch("project", project),
            "compare": switch("compare", compare),
            "overrides": settings_of(settings),
            "batch_size": batch_size,
        }
        return readable(lambda: self._finished(checked(options), given or {}), SAMPLE)

    def reconstruct(
        self,
        images: "Pictures | Samples",
        *,
        size: int | tuple[int, int] | None = None,
        compare: bool = False,
        batch_size: int = 64,
    ) -> Samples:
        """Of a first stage: what it makes of images. They are picture files, a uint8 tensor (K, C, H, W), or samples.

        size: what picture files are cut and resized to, as in `sample`. compare: each original stands left of its
        reconstruction.
        Raises UserError.
        """

        def work() -> Samples:
            stage, originals, batch = self._originals(images, size, batch_size)
            source = SideBySide(originals) if switch("compare", compare) else originals
            return self._drawn(Reconstruction(stage, source, len(originals.levels), batch))

        return readable(work, RECONSTRUCT)

    def encode(
        self,
        images: "Pictures | Samples",
        *,
        size: int | tuple[int, int] | None = None,
        batch_size: int = 64,
    ) -> Tensor:
        """Of a first stage: the latents of images, without noise, float32 (K, c, h, w) on the CPU; see `reconstruct`."""

        def work() -> Tensor:
            stage, originals, batch = self._originals(images, size, batch_size)
            with self._lock:
                return encoded(stage, originals, batch)

        return readable(work, RECONSTRUCT)

    def decode(self, latents: Tensor, *, batch_size: int = 64) -> Samples:
        """Of a first stage: the images of latents (K, c, h, w), such as `encode` gives. Raises UserError."""

        def work() -> Samples:
            if not isinstance(latents, Tensor):
                raise UserError(f"latents is {latents!r}: must be a tensor", "give what encode(images) gives")
            size = whole("batch_size", batch_size, 1)
            return self._drawn(given_latents(StageModel(self.model), latents, size))

        return readable(work, RECONSTRUCT)

    def _originals(
        self, images: "Pictures | Samples", size: int | tuple[int, int] | None, batch_size: int
    ) -> tuple[StageModel, Originals, int]:
        stage = StageModel(self.model)
        options = checked({"size": _sides(size), "batch_size": batch_size})
        if not isinstance(images, Samples | Tensor):
            check_size(stage, options.size)
            return stage, read_originals(stage, pictures("images", images), options.size), options.batch_size
        if size is not None:
            problem = f"size is {size!r}: images in a tensor are taken in the size that they have"
            raise UserError(problem, "leave size out, or give picture files, which are cut and resized")
        levels, origin = (
            (images.tensor, images.record)
            if isinstance(images, Samples)
            else (images, f"a tensor of {'x'.join(map(str, images.shape))}")
        )
        return stage, given_originals(stage, levels, origin), options.batch_size

    def _drawn(self, req: ImageRequest) -> Samples:
        with self._lock:
            batches = list(draw(req, Group(0, 1, self.model.device)))
            record = json.loads(json.dumps(req.describe(), default=int))
        return Samples(torch.cat([batch.images for batch in batches]), req.labels, record)

    def _finished(self, options: SampleOptions, given: Mapping[str, "Pictures | Samples"]) -> Samples:
        with self._lock:
            values = {name: self._value(name, value) for name, value in given.items()}
            req = request_of(self.model, options, values)
        return self._drawn(req)

    def _value(self, name: str, value: "Pictures | Samples") -> Value:
        if isinstance(value, Samples):
            return from_stage(self.model, value.tensor, value.record, name)[name]
        rows = rows_of(value)
        if rows is None:
            spec_of(self.model, str(name))  # what nobody reads is told before what it is given as
            return from_files(self.model, name, pictures(f"given[{name!r}]", value))
        if not rows.ndim or not len(rows):
            raise UserError(
                f"given[{name!r}] has no rows", "give a tensor (K, ...) with a row for each image, or one for all"
            )
        return Value(rows, f"a tensor of {'x'.join(map(str, rows.shape))}")


def load(
    path: str | Path,
    *,
    device: str = "auto",
    ema: bool = True,
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    compile: bool = False,
    settings: Settings = (),
) -> LoadedModel:
    """See `diffcli.load`."""

    def work() -> LoadedModel:
        checkpoint, moved = path_of("path", path), settings_of(settings)
        averaged, compiled = switch("ema", ema), switch("compile", compile)
        where = pick_device(cast(DeviceName, str(device)))
        return LoadedModel(load_model(checkpoint, where, averaged, moved, str(precision), compiled))

    return readable(work, LOAD)


def _sides(size: Any) -> Any:
    return (size, size) if isinstance(size, int) else size


def _picture(array: np.ndarray) -> Image.Image:
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
