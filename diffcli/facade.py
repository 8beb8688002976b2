"""The Python face of diffcli: a checkpoint that draws, and the images that it drew. `diffcli.load` gives the first.

Everything that is random about an image follows from its seed, so the same call gives the same images as `diffcli sample` does.
Calls from several threads are served one after the other.
"""

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from diffcli.config import UserError
from diffcli.engine.distributed import DeviceName, Group, pick_device
from diffcli.engine.draw import output
from diffcli.engine.draw.given import Value, from_files, from_stage
from diffcli.engine.draw.pictures import grid
from diffcli.engine.draw.reconstruction import (
    Originals,
    check_size,
    encoded,
    given_latents,
    given_originals,
    read_originals,
    reconstruction_of,
)
from diffcli.engine.draw.sample import Finished, ImageRequest, Model, SampleOptions, draw, load_model, request_of
from diffcli.engine.stage import StageModel

T = TypeVar("T")
Paths = str | Path | Sequence[str | Path]
PARAMETERS = {
    "class": "label",
    "ddim-eta": "eta",
    "ckpt": "path",
    "set": "settings",
    "batch-size": "batch_size",
    "no-ema": "ema",
}


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
        return _picture(grid(self.tensor, columns or output.columns_for(self.record)))

    def save(self, path: str | Path) -> Path:
        """Writes them as `diffcli sample --out` does, with the record beside: a grid (.png), arrays (.npz), or a folder."""
        return _readable(lambda: self._save(Path(path)))

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
        image: Paths | None = None,
        mask: str | Path | None = None,
        strength: float | None = None,
        interpolate: int | None = None,
        given: Mapping[str, "Paths | Tensor | Samples"] | None = None,
        settings: Sequence[str] = (),
        batch_size: int = 64,
    ) -> Samples:
        """Draws n images, image i from seed + i. What is left out is as the run was trained; see `diffcli sample --help`.

        label: a class by number or name, "all" in turn or "random". labels, prompts: of the images, from the first again where
        there are more images; without n, one image each. image: files to begin from, mask and strength what may change in them.
        given: other conditions by field: picture files, a tensor (K, ...) with uint8 pictures, or the samples of another model.
        size: the edge of the images in pixels, or (height, width). settings: KEY=VALUE of sampler.* and guide.*.
        Raises UserError, whose text says what to change.
        """
        for one, other, name in ((label, labels, "label"), (prompt, prompts, "prompt")):
            if one is not None and other is not None:
                raise UserError(f"{name} and {name}s are both given", "give one of them")
        options = {
            "n": n,
            "labels": label if labels is None else tuple(labels),
            "prompts": (prompt,) if prompt is not None else tuple(prompts or ()),
            "negative_prompt": negative_prompt,
            "prior": None if prior is None else str(prior),
            "seed": seed,
            "size": (size, size) if isinstance(size, int) else size,
            "sampler": sampler,
            "steps": steps,
            "eta": eta,
            "guidance": guidance,
            "images": _paths(image),
            "mask": mask,
            "strength": strength,
            "interpolate": interpolate,
            "overrides": tuple(settings),
            "batch_size": batch_size,
        }
        return _readable(lambda: self._finished(_checked(options), given or {}))

    def reconstruct(
        self,
        images: "Paths | Tensor | Samples",
        *,
        size: int | tuple[int, int] | None = None,
        compare: bool = False,
        batch_size: int = 64,
    ) -> Samples:
        """Of a first stage: what it makes of images. They are picture files, a uint8 tensor (K, C, H, W), or samples.

        size: what files are cut and resized to, as in `sample`. compare: each original stands left of its reconstruction.
        Raises UserError.
        """

        def work() -> Samples:
            stage, originals = self._originals(images, size)
            options = _checked({"images": (Path("given"),), "compare": compare, "batch_size": batch_size})
            return self._drawn(reconstruction_of(stage, options, originals))

        return _readable(work)

    def encode(
        self,
        images: "Paths | Tensor | Samples",
        *,
        size: int | tuple[int, int] | None = None,
        batch_size: int = 64,
    ) -> Tensor:
        """Of a first stage: the latents of images, without noise, float32 (K, c, h, w) on the CPU; see `reconstruct`."""

        def work() -> Tensor:
            stage, originals = self._originals(images, size)
            with self._lock:
                return encoded(stage, originals, batch_size)

        return _readable(work)

    def decode(self, latents: Tensor, *, batch_size: int = 64) -> Samples:
        """Of a first stage: the images of latents (K, c, h, w), such as `encode` gives. Raises UserError."""
        return _readable(lambda: self._drawn(given_latents(StageModel(self.model), latents, batch_size)))

    def _originals(
        self, images: "Paths | Tensor | Samples", size: int | tuple[int, int] | None
    ) -> tuple[StageModel, Originals]:
        stage, wanted = StageModel(self.model), (size, size) if isinstance(size, int) else size
        if isinstance(images, Samples):
            return stage, given_originals(stage, images.tensor, images.record)
        if isinstance(images, Tensor):
            return stage, given_originals(stage, images, f"a tensor of {'x'.join(map(str, images.shape))}")
        check_size(stage, wanted)
        return stage, read_originals(stage, _paths(images), wanted)

    def _drawn(self, req: ImageRequest) -> Samples:
        with self._lock:
            batches = list(draw(req, Group(0, 1, self.model.device)))
            record = json.loads(json.dumps(req.describe(), default=int))
        return Samples(torch.cat([batch.images for batch in batches]), req.labels, record)

    def _finished(self, options: SampleOptions, given: Mapping[str, "Paths | Tensor | Samples"]) -> Samples:
        with self._lock:
            values = {name: self._value(name, value) for name, value in given.items()}
            req = request_of(self.model, options, values)
        return self._drawn(req)

    def _value(self, name: str, value: "Paths | Tensor | Samples") -> Value:
        if isinstance(value, Samples):
            return from_stage(self.model, value.tensor, value.record, name)[name]
        if isinstance(value, Tensor):
            return Value(value.cpu(), f"a tensor of {'x'.join(map(str, value.shape))}")
        return from_files(self.model, name, _paths(value))


def load(
    path: str | Path,
    *,
    device: str = "auto",
    ema: bool = True,
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    compile: bool = False,
    settings: Sequence[str] = (),
) -> LoadedModel:
    """See `diffcli.load`."""

    def work() -> LoadedModel:
        where = pick_device(cast(DeviceName, device))
        return LoadedModel(load_model(Path(path).expanduser(), where, ema, settings, precision, compile))

    return _readable(work)


def _checked(options: dict[str, Any]) -> SampleOptions:
    try:
        chosen = SampleOptions(**options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = {"labels": "label", "prompts": "prompt", "images": "image"}.get(str(first["loc"][0]), first["loc"][0])
        raise UserError(f"{name} is {first['input']!r}: {first['msg']}", f"change {name}") from None
    chosen.check()
    return chosen


def _paths(value: Paths | None) -> tuple[Path, ...]:
    if value is None:
        return ()
    return tuple(Path(each).expanduser() for each in ([value] if isinstance(value, str | Path) else value))


def _readable(work: Callable[[], T]) -> T:
    """work(), its mistakes in terms of parameters instead of flags."""
    try:
        return work()
    except UserError as error:
        problem, hint = (re.sub(r"--([a-z][a-z-]*)", _parameter, text) for text in (error.problem, error.hint))
        raise UserError(problem, hint) from error


def _parameter(flag: "re.Match[str]") -> str:
    return PARAMETERS.get(flag[1], flag[1].replace("-", "_"))


def _picture(array: np.ndarray) -> Image.Image:
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
