"""Given frames of the clips that are drawn: from --image, or from the rows of a reference. What was given is in the output.

`--given-frames` says where in the clip they are: `first:K` (image to video, prediction), `last:K`, or `ends:K` (interpolation).
The first K frames of a film are the first K of the clip, and its last K the last ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffcli.config import ImageShape, UserError
from diffcli.engine.draw.clips.given_films import ENDS, GivenFilms, given_films, needed
from diffcli.engine.draw.clips.lengths import draws_clips
from diffcli.engine.draw.conditions import Conditions
from diffcli.engine.draw.rows import Reference
from diffcli.engine.draw.sampling import SampleOptions
from diffcli.engine.model import Model
from diffcli.fields import Batch, FieldSpec, Specs
from diffcli.tasks.conditioners.frame_patterns import FramePattern, frame_pattern
from diffcli.tasks.conditioners.frame_rate import FPS
from diffcli.tasks.conditioners.given_frames import GIVEN, FramesConditioner
from diffcli.tasks.diffusion import DiffusionTask


@dataclass(frozen=True)
class FrameRate(Conditions):
    """One frame rate for all clips, frames per second."""

    fps: float

    @property
    def specs(self) -> Specs:
        return {FPS: FieldSpec("number")}

    def fields(self, rows: range, seeds: Sequence[int]) -> Batch:
        return {FPS: torch.full((len(rows),), self.fps)}


@dataclass(frozen=True)
class GivenClips(Conditions):
    """Frames of clips. pattern: where they are; read: gives whole clips or the given frames of rows, uint8 (B, C, T', H, W).

    T' of `ends` is at least twice its number. count: of different clips; None if no single ones were asked for.
    """

    field: str
    shape: tuple[int, ...]  # of a clip: (C, T, H, W)
    pattern: FramePattern
    read: Callable[[range], Tensor]
    count: int | None
    origin: Any

    @property
    def specs(self) -> Specs:
        return {self.field: FieldSpec("clip", self.shape), GIVEN: FieldSpec("vector", (self.shape[1],))}

    @property
    def images(self) -> int | None:
        return self.count

    def fields(self, rows: range, seeds: Sequence[int]) -> Batch:
        found, clips = self.read(rows), torch.zeros(len(rows), *self.shape, dtype=torch.uint8)
        given = self.pattern.mask(self.shape[1])
        number = self.pattern.number
        if self.pattern.kind != "last":
            clips[:, :, :number] = found[:, :, :number]
        if self.pattern.kind != "first":
            clips[:, :, self.shape[1] - number :] = found[:, :, found.shape[2] - number :]
        return {self.field: clips, GIVEN: given.float().expand(len(rows), -1)}

    def kept(self, made: Tensor, rows: range) -> Tensor:
        """Finished clips with the given frames as they were given, to the level."""
        found = self.fields(rows, rows)
        return torch.where(
            found[GIVEN].bool()[:, None, :, None, None].to(made.device), found[self.field].to(made), made
        )

    def describe(self, rows: range, seeds: Sequence[int]) -> dict[str, Any]:
        return {"given_frames": str(self.pattern), "given": {self.field: self.origin}}


def clip_conditions(
    model: Model, options: SampleOptions, fps: float | None, reference: Reference | None
) -> tuple[SampleOptions, list[Conditions]]:
    """The frame rate and the given frames of clips, where a model reads them; and the options without the pictures of these.

    fps: of the clips; None for still images. Raises UserError where frames are given that the model does not read, or not as
    many as it was trained with, and where it needs some and there are none.
    """
    if fps is None or not draws_clips(model):
        return options, []
    assert isinstance(model.task, DiffusionTask)
    found: list[Conditions] = [FrameRate(fps)] if FPS in model.task.reads else []
    reader = next((each for each in model.task.modules() if isinstance(each, FramesConditioner)), None)
    if reader is None:
        check_reads_none(model, options)
        return options, found
    known = [pattern for pattern, _ in reader.config.patterns]
    shape = model.task.shape
    wanted = asked_for(model, options, known)
    if options.images:
        films = given_films(model, options, shape, fps, wanted, known)
        check_room(model, options, films, shape[1])
        given = GivenClips(model.task.field, shape, films.pattern, films.chosen, len(films.clips), films.origin)
        return options.model_copy(update={"images": ()}), [*found, given]
    data = None if reference is None else reference.data
    if reference is not None and data is not None and model.task.field in data.specs:
        pattern = wanted or most_used(reader)
        field = model.task.field
        rows = data.select({field})

        def read(places: range) -> Tensor:
            at = torch.arange(places.start, places.stop) % len(rows)
            clips: Tensor = rows.read(at)[field]
            return clips

        if pattern.kind != "none":
            there = rows.specs[model.task.field].shape
            check_reference(model, reference, shape, there, pattern)
            return options, [*found, GivenClips(model.task.field, shape, pattern, read, None, str(reference.name))]
    source = "--image FILE|DIR" if reference is None else "--ref of clips, NAME:SPLIT or a folder of films"
    if wanted is not None and wanted.kind != "none":
        raise UserError(f"--given-frames {wanted}: there are no frames to give", f"give them: {source}")
    check_none_known(model, reader, source)
    return options, found


def reads_frames(model: Model) -> bool:
    """Whether given frames condition a model."""
    return any(isinstance(each, FramesConditioner) for each in model.task.modules())


def asked_for(model: Model, options: SampleOptions, known: Sequence[FramePattern]) -> FramePattern | None:
    """The pattern of --given-frames. Raises UserError where it is none, or one that the model was not trained with."""
    if options.given_frames is None:
        return None
    flag = f"--given-frames {options.given_frames}"
    try:
        found = frame_pattern(options.given_frames)
    except ValueError as error:
        raise UserError(f"{flag}: names no frames", "use first:K, last:K or ends:K") from error
    own = found.kind == "none" and not options.images  # clips of its own, although a reference could give frames
    if found.kind not in ENDS and not own:
        raise UserError(f"{flag}: says nothing of where the frames are", "use first:K, last:K or ends:K")
    if not any(each.covers(found) for each in known):
        names = " or ".join(str(each) for each in known if each.kind in ENDS)
        raise UserError(f"{flag}: {model.path} was not trained with these", f"use --given-frames {names}")
    return found


def check_reads_none(model: Model, options: SampleOptions) -> None:
    """Raises UserError where frames are given to a model that reads none."""
    flag = f"--image {options.images[0]}" if options.images else f"--given-frames {options.given_frames}"
    if options.images or options.given_frames is not None:
        raise UserError(
            f"{flag}: {model.path} was not trained on given frames",
            f"leave {flag.split()[0]} out, or train a model with the conditioner frames: task.conditioners: [{{kind: frames}}]",
        )


def check_none_known(model: Model, reader: FramesConditioner, source: str) -> None:
    """Raises UserError where a model always was given frames, and there are none. source: what could give them."""
    if not reader.config.alone:
        names = " or ".join(str(pattern) for pattern, _ in reader.config.patterns)
        raise UserError(
            f"{model.path}: draws what follows from given frames ({names}), and there are none",
            f"give a picture, or a film whose frames are given: {source}",
        )


def most_used(reader: FramesConditioner) -> FramePattern:
    """The pattern that most clips of training had, of those that say where the frames are; else none."""
    ends = [(weight, pattern) for pattern, weight in reader.config.patterns if pattern.kind in ENDS]
    return max(ends, key=lambda each: each[0])[1] if ends else FramePattern("none")


def check_room(model: Model, options: SampleOptions, films: GivenFilms, frames: int) -> None:
    """Raises UserError where as many frames are given as the clips have, or more."""
    if (count := needed(films.pattern)) >= frames:
        given = f"{count} frame{'s' * (count != 1)} ({films.pattern})"
        raise UserError(
            f"--image {options.images[0]}: gives {given} of clips of {frames}, so none is left to draw",
            f"draw longer clips: --frames {2 * count}",
        )


def check_reference(
    model: Model, reference: Reference, shape: tuple[int, ...], there: tuple[int | None, ...], pattern: FramePattern
) -> None:
    """Raises UserError where the clips of a reference cannot give frames to clips of this shape."""
    sizes = ImageShape(shape[0], *shape[2:]), (there[0], *there[2:])
    if sizes[0] != sizes[1] or (there[1] is not None and there[1] < needed(pattern)):
        wanted, found = ("x".join(map(str, each)) for each in (shape, there))
        raise UserError(
            f"--ref {reference.name}: {model.path} takes the given frames ({pattern}) of clips of {wanted} from clips of {found}",
            "give a reference of clips of the size of the model",
        )
