"""Arguments of the Python interface: conversion of all accepted forms, and errors in terms of Python."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from diffcli.config import UserError
from diffcli.config_errors import demand
from diffcli.data.modes import flatten
from diffcli.data.pixels import to_image
from diffcli.engine.draw.pictures import MemoryClip, MemoryPicture
from diffcli.engine.draw.sampling import SampleOptions
from diffcli.engine.draw.sheets.arrangement import CLIPS

SIDES = r"\d+x\d+|HxW"  # of images: height and width
WORD = rf"{SIDES}\b|-?\d[\d.]*\b|\"[^\"]*\"|[A-Z]+\b|ddim\b|cpu\b|none\b"  # the value of a flag in a hint
FLAG = re.compile(rf"--([a-z][a-z-]*)(?: ({WORD}))?")
SETTING = re.compile(r"--set ('[^']*'|\S+=[^\s,;]*)")
Parameters = Mapping[str, str]
"""The parameters of a call, by the flags of the command line."""
T = TypeVar("T")
ALIKE = (
    "n",
    "prompt",
    "prior",
    "seed",
    "sampler",
    "steps",
    "guidance",
    "image",
    "mask",
    "strength",
    "interpolate",
    "restore",
    "degrade",
    "project",
    "compare",
    "size",
    "augment",
    "tile",
    "overlap",
    "frames",
    "fps",
    "window",
    "then",
    "control",
)
SAMPLE: Parameters = {
    **{name: name for name in ALIKE},
    "class": "label",
    "negative-prompt": "negative_prompt",
    "ddim-eta": "eta",
    "set": "settings",
    "batch-size": "batch_size",
    "exact-tiles": "exact_tiles",
    "given-frames": "given_frames",
    "window-overlap": "window_overlap",
    "no-tile": "tile=False",
    "control-scale": "control_scale",
}
LOAD: Parameters = {
    **{name: name for name in ("device", "precision", "compile", "lora", "embedding", "base")},
    "ckpt": "path",
    "set": "settings",
    "no-ema": "ema=False",
}
RECONSTRUCT: Parameters = {"image": "images", "size": "size", "compare": "compare", "batch-size": "batch_size"}
SAVE: Parameters = {"out": "path"}
OPTIONS = {
    "labels": "label",
    "prompts": "prompt",
    "images": "image",
    "overrides": "settings",
    "controls": "control",
}  # parameters by option


def checked(options: dict[str, Any]) -> SampleOptions:
    """The options of a call, by the names of SampleOptions. Raises UserError with the parameter and its value."""
    try:
        chosen = SampleOptions(**options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = str(first["loc"][0])
        name = OPTIONS.get(option, option)
        if option == "labels":
            raise UserError(
                f"label is {options[option]!r}: must be the number or the name of a class",
                'give a number from 0, a name, "all" or "random"; of several classes a list, as labels=[0, 1]',
            ) from None
        wanted = demand(first).removeprefix("must be ")
        raise UserError(
            f"{name} is {options[option]!r}: {demand(first)}", f"give {name} another value: {wanted}"
        ) from None
    chosen.check()
    return chosen


def label_of(value: Any) -> Any:
    """A class, or the classes of a list."""
    return (
        several("label", value) if isinstance(value, list | tuple | np.ndarray | Tensor) and np.ndim(value) else value
    )


def readable(work: Callable[[], T], parameters: Parameters) -> T:
    """Calls work(); its errors name parameters instead of flags."""
    try:
        return work()
    except UserError as error:
        problem, hint = in_python(error.problem, parameters), in_python(error.hint, parameters, hint=True)
        raise UserError(problem, hint, [in_python(other, parameters) for other in error.also]) from error


def in_python(text: str, parameters: Parameters, hint: bool = False) -> str:
    """A message with parameters in place of flags; commands in backquotes and flags of other commands stay as they are.

    hint: write what to type as Python, `guidance=1`.
    """

    def parameter(match: "re.Match[str]") -> str:
        name, value = parameters.get(match[1]), match[2]
        if name is None:
            return match[0]
        if value is None:
            return name
        if not hint:
            return f"{name} {value}"
        if re.fullmatch(SIDES, value):
            return f"{name}=({value.replace('x', ', ')})"
        return f'{name}="{value}"' if value.islower() else f"{name}={value}"

    def setting(match: "re.Match[str]") -> str:
        item = match[1].strip("'")
        return f'{parameters["set"]}=["{item}"]'

    parts = re.split(r"(`[^`]*`)", text.replace("--field ", ""))  # a field is a keyword: low_res=...
    for i in range(0, len(parts), 2):
        if hint and "set" in parameters:
            parts[i] = SETTING.sub(setting, parts[i])
        parts[i] = FLAG.sub(parameter, parts[i])
    return "".join(parts)


def settings_of(value: Any) -> tuple[str, ...]:
    """`KEY=VALUE` each, of a list of these or of a dict. Raises UserError for anything else, a single text above all."""
    hint = 'give a dict, as settings={"sampler.steps": 20}, or a list, as settings=["sampler.steps=20"]'
    if isinstance(value, Mapping):
        return tuple(f"{key}={_yaml(key, each, hint)}" for key, each in value.items())
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise UserError(f"settings is {value!r}: must be a dict or a list", hint)
    items = tuple(value)
    for item in items:
        if not isinstance(item, str):
            raise UserError(f"settings holds {item!r}: must hold texts", hint)
    return items


def path_of(name: str, value: Any) -> Path:
    """A path. Raises UserError where the value is none."""
    if not isinstance(value, str | Path) or value == "":
        raise UserError(
            f"{name} is {value!r}: must be a path", f'give a text or a pathlib.Path, as {name}="runs/digits"'
        )
    return Path(value).expanduser()


def seed_of(value: Any) -> Any:
    """A seed, or the seeds of a list, a range or an array. Raises UserError for a list of what is none."""
    if isinstance(value, str) or not (isinstance(value, Sequence) or np.ndim(value)):
        return value
    return tuple(whole("seed", each, 0) for each in several("seed", value))


def controls_of(value: Any) -> tuple[tuple[Path, float], ...]:
    """(run, scale) of a run, a list of runs, or a dict of runs and scales. Raises UserError."""
    items = value.items() if isinstance(value, Mapping) else [(value, 1.0)] if isinstance(value, str | Path) else None
    pairs = items if items is not None else [(each, 1.0) for each in (several("control", value) if value else ())]
    return tuple((path_of("control", path), _scale("control", path, scale)) for path, scale in pairs)


def scales_of(value: Any) -> tuple[tuple[str | None, float], ...]:
    """(field, scale) of a dict, or (None, scale) of a number; nothing for None. Raises UserError."""
    pairs = value.items() if isinstance(value, Mapping) else () if value is None else [(None, value)]
    return tuple((name, _scale("control_scale", name, scale)) for name, scale in pairs)


def _scale(name: str, key: Any, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(
            f"{name}{'' if key is None else f' of {key}'} is {value!r}: must be a number",
            f"give a number, as {name}=0.8",
        )
    return float(value)


def switch(name: str, value: Any) -> bool:
    """True or False. Raises UserError for anything else."""
    if not isinstance(value, bool):
        raise UserError(f"{name} is {value!r}: must be True or False", f"give {name}=True or {name}=False")
    return value


def whole(name: str, value: Any, least: int) -> int:
    """A whole number. Raises UserError where it is none, or too small."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise UserError(
            f"{name} is {value!r}: must be a whole number of at least {least}", f"give {name}={least} or more"
        )
    return int(value)


def several(name: str, value: Any) -> tuple[Any, ...]:
    """The items of a list, an array or a tensor. Raises UserError where it is none, or empty."""
    items = value.tolist() if isinstance(value, np.ndarray | Tensor) else value
    if isinstance(items, str) or not isinstance(items, Sequence):
        raise UserError(f"{name} is {value!r}: must be a list", f"give a list, as {name}=[{value!r}]")
    if not items:
        raise UserError(f"{name} is empty: must be a list of at least one", f"leave {name} out, or name one")
    return tuple(items)


def pictures(name: str, value: Any) -> tuple[Path | MemoryPicture, ...]:
    """Picture files, Pillow images, arrays (H, W), (H, W, C) and tensors (C, H, W) of uint8, one or a list; none for None.

    An array (K, H, W, C) or a tensor (K, C, H, W) is K pictures; (K, T, H, W, C) or (K, C, T, H, W) are K clips. Raises UserError
    for anything else.
    """
    if value is None:
        return ()
    if isinstance(value, np.ndarray | Tensor) and value.ndim == CLIPS:
        clips = [each.movedim(1, 0) if isinstance(each, Tensor) else each for each in value]
        return tuple(MemoryClip([_levels(name, frame).image for frame in clip]) for clip in clips)
    if isinstance(value, np.ndarray | Tensor) and value.ndim == 4:
        value = list(value)
    if isinstance(value, list | tuple):
        if not value:
            raise UserError(f"{name} is empty: must name a picture", f"leave {name} out, or give one")
        return tuple(_picture(name, each) for each in value)
    return (_picture(name, value),)


def _picture(name: str, value: Any) -> Path | MemoryPicture:
    if isinstance(value, str | Path):
        return Path(value).expanduser()
    if isinstance(value, Image.Image):
        try:
            return MemoryPicture(flatten(value))
        except ValueError as error:
            raise UserError(
                f"{name} is a picture that cannot be read: {error}", "give one of 8 bits, grey or RGB"
            ) from None
    if isinstance(value, np.ndarray | Tensor):
        return _levels(name, value)
    raise UserError(
        f"{name} is {value!r}: is no picture",
        f'give a file, as {name}="a.png", a Pillow image, an array (H, W, C) or a tensor (C, H, W) of uint8, or a list of them',
    )


def _levels(name: str, value: np.ndarray | Tensor) -> MemoryPicture:
    """The picture of an array (H, W), (H, W, C) or a tensor (C, H, W). Raises UserError."""
    levels = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    if levels.ndim == 3 and isinstance(value, np.ndarray):
        levels = levels.transpose(2, 0, 1)
    levels = levels[None] if levels.ndim == 2 else levels
    if levels.dtype == np.uint8 and levels.ndim == 3 and len(levels) in (1, 3) and levels.size:
        return MemoryPicture(to_image(levels))
    form = f"{'tensor' if isinstance(value, Tensor) else 'array'} of {value.dtype} and shape {tuple(value.shape)}"
    raise UserError(
        f"{name} is an {form}" if form[0] == "a" else f"{name} is a {form}",
        "give levels from 0 to 255 as uint8, an array (H, W, C) or a tensor (C, H, W) with 1 or 3 channels",
    )


def rows_of(value: Any) -> Tensor | None:
    """The rows of a condition, of a tensor or array (K, ...); None where the value is neither."""
    return (
        torch.from_numpy(np.ascontiguousarray(value))
        if isinstance(value, np.ndarray)
        else value.cpu()
        if isinstance(value, Tensor)
        else None
    )


def _yaml(key: Any, value: Any, hint: str) -> str:
    try:
        return json.dumps(str(value) if isinstance(value, Path) else value)
    except (TypeError, ValueError):
        raise UserError(f"settings holds {key!r}: {value!r}, which no preset can hold", hint) from None
