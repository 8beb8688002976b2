"""The frames that `--image` gives of clips: still pictures, films, folders of frames or of films, and clips in memory."""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffcli.config import ImageShape, UserError
from diffcli.data.clips.clip_data import Alike
from diffcli.data.clips.clip_files import SHOWN, TreeClips, clips_among, readable
from diffcli.data.clips.film import TOLERANCE, Film, NoFrames, Shot
from diffcli.data.clips.picture_films import animated
from diffcli.data.files import ARCHIVE_ERRORS, open_tree
from diffcli.data.image_formats import HEAD, SUFFIXES
from diffcli.data.pixels import BrokenImage, fit
from diffcli.engine.draw.edits import described, open_picture
from diffcli.engine.draw.pictures import MemoryClip, MemoryPicture
from diffcli.engine.draw.sampling import SampleOptions
from diffcli.engine.model import Model
from diffcli.tasks.conditioners.frame_patterns import FramePattern

ENDS = ("first", "last", "ends")  # kinds of patterns that say where the frames are


class GivenFilms(NamedTuple):
    """clips: the frames to give of each, uint8 (C, K, H, W); clip i takes number i mod their number."""

    pattern: FramePattern
    clips: tuple[Tensor, ...]
    origin: list[Any]

    def chosen(self, rows: range) -> Tensor:
        """Of clips `rows`, uint8 (B, C, K, H, W)."""
        return torch.stack([self.clips[i % len(self.clips)] for i in rows])


class GivenFilm(NamedTuple):
    """One --image. name: as the user knows it; frames: uint8 (C, H, W) each, in order; still: whether it is a single picture."""

    name: str
    frames: Sequence[np.ndarray]
    origin: Any
    still: bool


class Reading(NamedTuple):
    """How films are read. fps: frames per second that they are resampled to by their time stamps; most: frames of a clip.

    ahead: whether only first frames can be needed, so that the rest of a long film is not read.
    """

    fps: float
    most: int
    ahead: bool

    def frames(self, film: Film, shape: ImageShape) -> list[np.ndarray]:
        """uint8 (C, H, W) each; of a long film the first `most` and the last `most` alone."""
        fitted = Alike(shape)
        shots = (fitted(shot.picture()) for shot in shown_at(film, self.fps))
        first = list(islice(shots, self.most))
        return first if self.ahead else [*first, *deque(shots, maxlen=self.most)]


def shown_at(film: Film, fps: float) -> Iterator[Shot]:
    """What a film shows at 0, 1 / fps, 2 / fps and so on. Raises NoFrames or errors of the decoder."""
    held: Shot | None = None
    number = 0
    for shot in film.shots(0.0):
        while held is not None and number / fps < shot.time - TOLERANCE:
            yield held
            number += 1
        held = shot
    while held is not None and number / fps < held.time + held.seconds - TOLERANCE:
        yield held
        number += 1


def needed(pattern: FramePattern) -> int:
    """The number of frames that a pattern gives."""
    return pattern.number * (2 if pattern.kind == "ends" else 1)


def given_films(
    model: Model,
    options: SampleOptions,
    shape: tuple[int, ...],
    fps: float,
    wanted: FramePattern | None,
    known: Sequence[FramePattern],
) -> GivenFilms:
    """The frames that --image gives of clips (C, T, H, W). wanted: where they are, None: what training had and they suffice for.

    fps: of the clips. known: patterns of training. For `ends` still pictures are taken in pairs. Raises UserError where one
    cannot be read, or does not have as many frames as the pattern gives.
    """
    own = ImageShape(shape[0], *shape[2:])
    ends = [each for each in ([wanted] if wanted else known) if each.kind in ENDS]
    reading = Reading(fps, shape[1], ahead=all(each.kind == "first" for each in ends))
    films = [film for path in options.images for film in films_of(path, own, reading)]
    if empty := next((film for film in films if not film.frames), None):
        raise UserError(f"--image {empty.name}: holds no frame", "give a film with frames in it")
    alone = all(film.still for film in films)
    pairs = len(films) % 2 == 0 and alone
    pattern = wanted or suited(model, films, known, shape[1], pairs)
    if pattern.kind == "ends" and alone:
        if not pairs:
            raise UserError(
                f"--given-frames {pattern} with {len(films)} --image: each clip has a first and a last picture",
                "give two pictures a clip, the first and the last: --image FIRST --image LAST",
            )
        films = [joined(*films[i : i + 2]) for i in range(0, len(films), 2)]
    for film in films:
        if len(film.frames) < needed(pattern):
            count = f"{len(film.frames)} frame{'s' * (len(film.frames) != 1)}"
            hint = f"give a film or a folder of {needed(pattern)} frames or more"
            smaller = [each for each in known if each.kind in ENDS and needed(each) <= len(film.frames)]
            raise UserError(
                f"--image {film.name}: has {count}, but {pattern} gives {needed(pattern)} of each clip",
                hint + (f", or fewer of them: --given-frames {smaller[0]}" if smaller else ""),
            )
    number = pattern.number
    picked = []
    for film in films:
        first = [] if pattern.kind == "last" else list(film.frames[:number])
        last = [] if pattern.kind == "first" else list(film.frames[len(film.frames) - number :])
        picked.append(torch.from_numpy(np.stack([*first, *last], axis=1)))
    return GivenFilms(pattern, tuple(picked), [film.origin for film in films])


def suited(
    model: Model, films: Sequence[GivenFilm], known: Sequence[FramePattern], frames: int, pairs: bool
) -> FramePattern:
    """The pattern of training that gives the most frames that all films have; of equal ones the first. Raises UserError."""
    least = min(len(film.frames) for film in films)
    there = max(least, 2 if pairs else 1)
    fitting = [each for each in known if each.kind in ENDS and needed(each) <= there]
    fitting = [each for each in fitting if needed(each) <= least] or fitting
    if fitting:
        return max(fitting, key=needed)
    if any(each.kind == "random" for each in known):
        return FramePattern("first", min(least, frames - 1))
    names = " or ".join(str(each) for each in known if each.kind in ENDS)
    count = f"{least} frame{'s' * (least != 1)}"
    raise UserError(
        f"--image {films[0].name}: has {count}, but {model.path} was trained with other given frames: {names}",
        f"give a film or a folder of {min(needed(each) for each in known if each.kind in ENDS)} frames or more",
    )


def joined(first: GivenFilm, last: GivenFilm) -> GivenFilm:
    """Two pictures as the ends of one clip."""
    return GivenFilm(first.name, [*first.frames, *last.frames], [first.origin, last.origin], still=False)


def films_of(path: Path | MemoryPicture, shape: ImageShape, reading: Reading) -> list[GivenFilm]:
    """What one --image holds, cropped and resized to frames of this shape. Raises UserError where it cannot be read."""
    if isinstance(path, MemoryClip):
        frames = [fit(frame, shape) for frame in path.frames]
        return [GivenFilm(str(path), frames, path.describe(), still=len(frames) == 1)]
    if isinstance(path, Path):
        try:
            if not path.exists():
                raise UserError(f"--image {path}: is not there", "give a picture, a film or a folder of frames")
            if path.is_dir():
                return _in_folder(path, shape, reading)
            if _moves(path):
                with readable(path) as film:
                    frames = reading.frames(film, shape)
                return [GivenFilm(str(path), frames, described(path), still=len(frames) == 1)]
        except (NoFrames, BrokenImage, OSError, *ARCHIVE_ERRORS) as error:
            reason = f"{error.name}: {error.reason}" if isinstance(error, BrokenImage) else str(error)
            raise UserError(
                f"--image {path}: {reason}", f"give a picture, or a film that can be read: {SHOWN}"
            ) from error
    return [GivenFilm(str(path), [fit(open_picture("--image", path), shape)], described(path), still=True)]


def _in_folder(path: Path, shape: ImageShape, reading: Reading) -> list[GivenFilm]:
    """The films of a folder: pictures directly in it are the frames of one."""
    tree = open_tree(path, "--image")
    found = clips_among(tree, "--image").clips
    files = TreeClips(tree, list(found), found, reading.fps)
    films = []
    for number in range(len(files)):
        with files.film(number) as film:
            frames = reading.frames(film, shape)
        films.append(GivenFilm(files.name(number), frames, {"folder": files.name(number)}, still=False))
    return films


def _moves(path: Path) -> bool:
    """Whether a file is a film or an animation, and no still picture."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:
        return False  # is told as of a picture
    return animated(head) or path.suffix.lower() not in SUFFIXES
