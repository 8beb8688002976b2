"""The Python interface of diffcli: a loaded checkpoint, which `diffcli.load` returns, and the images that it draws.

Everything random about an image follows from its seed, so a call gives the same images as `diffcli sample` with the same options.
Calls from several threads run one after the other.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from typing import Any, Literal, Union, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffcli.config import UserError
from diffcli.engine.arguments import (
    LOAD,
    RECONSTRUCT,
    SAMPLE,
    checked,
    controls_of,
    label_of,
    path_of,
    pictures,
    readable,
    scales_of,
    seed_of,
    settings_of,
    several,
    switch,
    whole,
)
from diffcli.engine.distributed import DeviceName, Group, pick_device
from diffcli.engine.draw.pictured.cascade import cascade
from diffcli.engine.draw.pictured.controls import led
from diffcli.engine.draw.pictured.named_values import named_values, value_of
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
from diffcli.engine.draw.sample import Finished, ImageRequest, Model, SampleOptions, draw, load_model
from diffcli.engine.samples import Samples
from diffcli.engine.stage import StageModel

Pictured = str | Path | Image.Image | np.ndarray | Tensor
Pictures = Pictured | Sequence[Pictured]
Following = Union[str, Path, "LoadedModel"]
Settings = Mapping[str, Any] | Sequence[str]


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
        """The shape of one image: channels, height and width."""
        return tuple(self.model.preset.data.shape)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the classes; None if they have none."""
        return self.model.classes

    @property
    def record(self) -> dict[str, Any]:
        """Path, step, digest of the weights and precision of this model, as JSON values."""
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
        seed: int | Sequence[int] = 0,
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
        augment: float | None = None,
        tile: int | bool | None = None,
        overlap: int | None = None,
        exact_tiles: bool = False,
        control: str | Path | Sequence[str | Path] | Mapping[str | Path, float] = (),
        control_scale: float | Mapping[str, float] | None = None,
        frames: int | None = None,
        fps: float | None = None,
        given_frames: str | None = None,
        window: int | None = None,
        window_overlap: int | None = None,
        then: "Following | Sequence[Following]" = (),
        given: Mapping[str, "Pictures | Samples"] | None = None,
        settings: Settings = (),
        batch_size: int = 64,
        **fields: "Pictures | Samples",
    ) -> Samples:
        """Draws n images, image i from seed + i, or one of each of several seeds. What is left out is as the run was trained;
        see `diffcli sample --help`.

        label: a class by number or name, "all" in turn or "random". labels, prompts: of the images, from the first again where
        there are more images; without n, one image each. size: the edge of the images in pixels, or (height, width).
        image: pictures, as files, folders or in memory: the condition of a model that reads one picture, else the images to start
        from; mask and strength say what may change. restore: the operator that degraded them, sr2, sr4, colour, blur or mask;
        degrade applies it first, and compare shows the pictures beside the results.
        project: make an upscaler's images agree exactly with its picture. augment: level of the noise on that picture. tile,
        overlap: of large images, in pixels; tile=False computes them whole, exact_tiles predict what that would. then: the next
        stages of a cascade, checkpoints or loaded models; the images of earlier stages are in `stages`. control: runs
        whose branches lead the model, too, or a dict of them with their scales; control_scale: of all branches, or by field.
        frames, fps: of clips; given_frames: which of them image gives, as "first:4"; image is then a picture, a film, a folder of
        frames or a tensor (K, C, T, H, W). window, window_overlap: of long clips, in frames.
        given, or keywords with the names of fields: other conditions, as pictures, a tensor or array (K, ...), uint8 if it holds
        pictures, or the samples of another model. settings: keys of sampler.* and guide.*, as {"sampler.steps": 20}.
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
            "seed": seed_of(seed),
            "size": _sides(size),
            "sampler": sampler,
            "steps": steps,
            "eta": eta,
            "guidance": guidance,
            "images": pictures("image", image.pictures() if isinstance(image, Samples) else image),
            "mask": next(iter(masks), None),
            "strength": strength,
            "interpolate": interpolate,
            "restore": restore,
            "degrade": switch("degrade", degrade),
            "project": switch("project", project),
            "compare": switch("compare", compare),
            "augment": augment,
            "tile": None if tile in (None, False) else tile,
            "overlap": overlap,
            "exact_tiles": switch("exact_tiles", exact_tiles),
            "whole": tile is False,
            "frames": frames,
            "fps": fps,
            "given_frames": given_frames,
            "window": window,
            "window_overlap": window_overlap,
            "controls": controls_of(control),
            "control_scale": scales_of(control_scale),
            "overrides": settings_of(settings),
            "batch_size": batch_size,
        }
        following = (then,) if isinstance(then, str | Path | LoadedModel) else several("then", then) if then else ()
        return readable(lambda: self._finished(checked(options), given or {}, fields, following), SAMPLE)

    def reconstruct(
        self,
        images: "Pictures | Samples",
        *,
        size: int | tuple[int, int] | None = None,
        compare: bool = False,
        batch_size: int = 64,
    ) -> Samples:
        """Reconstructions of images by a first stage. Images are picture files, a uint8 tensor (K, C, H, W), or samples.

        size: picture files are cropped and resized to it, as in `sample`. compare: show each original left of its
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
        """Latents of images by a first stage, without noise: float32 (K, c, h, w) on the CPU; see `reconstruct`."""

        def work() -> Tensor:
            stage, originals, batch = self._originals(images, size, batch_size)
            with self._lock:
                return encoded(stage, originals, batch)

        return readable(work, RECONSTRUCT)

    def decode(self, latents: Tensor, *, batch_size: int = 64) -> Samples:
        """Images of latents (K, c, h, w), such as `encode` returns, by a first stage. Raises UserError."""

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
            return _collected(req, batches, ())

    def _finished(
        self,
        options: SampleOptions,
        given: Mapping[str, "Pictures | Samples"],
        fields: Mapping[str, "Pictures | Samples"],
        then: Sequence["Following"],
    ) -> Samples:
        model, options = led(self.model, options)
        named = named_values(model, given, fields, inspect.signature(self.sample).parameters)
        known = [each for each in then if isinstance(each, LoadedModel)]
        with ExitStack() as locks:
            for loaded in sorted({id(each): each for each in (self, *known)}.values(), key=id):
                locks.enter_context(loaded._lock)
            values = {name: value_of(model, name, value, options.size) for name, value in named.items()}
            group, done = Group(0, 1, model.device), list[Samples]()
            models = iter((LoadedModel(model), *then))
            places = [each.model.path if isinstance(each, LoadedModel) else path_of("then", each) for each in then]
            for stage in cascade(
                [model.path, *places], options, group, lambda path: self._beside(next(models), path), values
            ):
                if len({part.shape for part, _ in stage.req.parts}) > 1:
                    raise UserError("the pictures are of several sizes", "give size, or draw one size at a time")
                done.append(_collected(stage.req, list(stage.drawn()), done))
        return done[-1]

    def _beside(self, stage: "Following", path: Path) -> Model:
        """The model of a stage, on the device of this one."""
        if isinstance(stage, LoadedModel):
            return stage.model
        return load_model(path, self.model.device, precision=self.model.precision)


def load(
    path: str | Path,
    *,
    device: str = "auto",
    ema: bool = True,
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    compile: bool = False,
    lora: str | Path | Sequence[str | Path] = (),
    embedding: str | Path | Sequence[str | Path] = (),
    base: str | Path | None = None,
    settings: Settings = (),
) -> LoadedModel:
    """See `diffcli.load`."""

    def work() -> LoadedModel:
        checkpoint, moved = path_of("path", path), settings_of(settings)
        averaged, compiled = switch("ema", ema), switch("compile", compile)
        changes = (lora,) if isinstance(lora, str | Path) else several("lora", lora) if lora else ()
        words = (
            (embedding,) if isinstance(embedding, str | Path) else several("embedding", embedding) if embedding else ()
        )
        under = None if base is None else path_of("base", base)
        where = pick_device(cast(DeviceName, str(device)))
        added: dict[str, Any] = {"loras": tuple(map(str, changes))}
        added |= {"embeddings": [path_of("embedding", word) for word in words]}
        return LoadedModel(load_model(checkpoint, where, averaged, moved, str(precision), compiled, under, **added))

    return readable(work, LOAD)


def _collected(req: ImageRequest, batches: Sequence[Finished], stages: Sequence[Samples]) -> Samples:
    record = json.loads(json.dumps(req.describe(), default=int))
    labels = [batch.labels for batch in batches if batch.labels is not None]
    images = torch.cat([batch.images for batch in batches])
    return Samples(images, torch.cat(labels) if labels else None, record, stages)


def _sides(size: Any) -> Any:
    return (size, size) if isinstance(size, int) else size
