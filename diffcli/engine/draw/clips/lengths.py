"""`--frames`, `--fps` and `--window`: how long the clips are, how fast, and in which windows a long one is predicted."""

from collections.abc import Iterator, Mapping
from typing import Any

from diffcli.config import UserError
from diffcli.diffusion.windows import Windows
from diffcli.engine.draw.pictured.following import ClipLength, Frame
from diffcli.engine.draw.sampling import SampleOptions
from diffcli.engine.model import Model, lengthened
from diffcli.engine.options.record_checks import without_clips
from diffcli.preset import Preset
from diffcli.tasks.conditioners.frame_rate import FPS
from diffcli.tasks.diffusion import DiffusionTask

UNKNOWN_FPS = 8.0  # of clips whose data do not say theirs


def draws_clips(model: Model) -> bool:
    """Whether the samples of a model are clips."""
    return isinstance(model.task, DiffusionTask) and model.task.spec.kind == "clip"


def check_no_clips(model: Model, options: SampleOptions) -> None:
    """Raises UserError for an option of clips, for a model that draws none."""
    given = {
        "--frames": options.frames,
        "--fps": options.fps,
        "--window": options.window,
        "--window-overlap": options.window_overlap,
        "--given-frames": options.given_frames,
    }
    for flag, value in given.items():
        if value is not None:
            raise without_clips(flag, value, model.path)


def clip_length(model: Model, options: SampleOptions) -> ClipLength:
    """The length of the clips that are drawn: as options say, or as in training. Raises UserError where neither says it."""
    assert isinstance(model.task, DiffusionTask)
    data = model.preset.data.model_dump(mode="json")
    spec = model.trained_on.get(model.task.field, model.task.spec)
    known = [spec.shape[1]] if spec.shape[1] is not None else [int(each) for each in said(data, "frames")]
    trained = max(known, default=None)
    frames = options.frames or trained
    if frames is None:
        raise UserError(
            f"{model.path}: was trained on clips of several lengths, and none is known", "say how long: --frames 16"
        )
    return ClipLength(frames, options.fps or trained_fps(model.preset), trained)


def trained_fps(preset: Preset) -> float:
    """Frames per second of the clips of training, the first where there are several; a guess where the preset does not say it."""
    return float(next(said(preset.data.model_dump(mode="json"), FPS), UNKNOWN_FPS))


def said(tree: Any, key: str) -> Iterator[Any]:
    """The numbers under this key anywhere in a tree, in order."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            if name == key and value is not None:
                yield from value if isinstance(value, list) else [value]
            else:
                yield from said(value, key)
    elif isinstance(tree, list):
        for each in tree:
            yield from said(each, key)


def clip_frame(model: Model, options: SampleOptions, frame: Frame) -> tuple[Model, Frame]:
    """The model for clips of the length that options say, and how its network sees them: whole, or in windows.

    A model of still images stays as it is. Raises UserError.
    """
    if not draws_clips(model):
        check_no_clips(model, options)
        return model, frame
    length = clip_length(model, options)
    made = lengthened(model, length.frames)
    windows = choose_windows(model, options, length)
    if windows is None:
        return made, frame._replace(clip=length)
    count = len(windows.spans(length.frames))
    tiling = {"size": windows.size, "overlap": windows.overlap, "count": count}
    return made, frame._replace(clip=length, tiles=windows, at_once=max(1, options.batch_size // count), tiling=tiling)


def guides_of_length(models: Mapping[str, Model], frame: Frame) -> dict[str, Model]:
    """The models that guide, for clips of the length that is drawn."""
    if frame.clip is None:
        return dict(models)
    frames = frame.clip.frames
    return {name: lengthened(each, frames) if draws_clips(each) else each for name, each in models.items()}


def choose_windows(model: Model, options: SampleOptions, length: ClipLength) -> Windows | None:
    """The windows of clips of a length: --window, or as long as the clips of training; None for clips that fit into one."""
    size = options.window or length.trained or length.frames
    overlap = size // 2 if options.window_overlap is None else options.window_overlap
    if options.window_overlap is not None and overlap >= size:
        raise UserError(
            f"--window-overlap {overlap}: windows of {model.path} have {size} frames, and two must not be the same",
            f"use --window-overlap {size // 2}, or longer windows: --window {2 * overlap}",
        )
    if length.frames <= size:
        if options.window_overlap is not None:
            raise UserError(
                f"--window-overlap {overlap}: clips of {length.frames} frames fit into one window of {size}",
                f"leave --window-overlap out, or add --window {max(1, length.frames // 2)}",
            )
        return None
    return Windows(size, overlap, options.batch_size)
