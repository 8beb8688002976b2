"""A folder of films that are clips themselves, such as `diffcli sample` writes: whole, as long and as large as the first."""

from itertools import islice
from pathlib import Path, PurePosixPath
from typing import ClassVar

from diffcli.config import UserError
from diffcli.data.clips.clip_config import Clips
from diffcli.data.clips.clip_files import ANIMATIONS, FRAME_RATE, RATE_FILE, TreeClips, clips_among
from diffcli.data.clips.film import NoFrames
from diffcli.data.clips.picture_films import animated, animation
from diffcli.data.files import ARCHIVE_ERRORS, FileTree, open_tree
from diffcli.data.image_formats import VIDEOS
from diffcli.data.pixels import BrokenImage


class WholeFilms(Clips):
    """Films that are clips themselves."""

    remedy: ClassVar[str] = (
        "delete or replace it: films that are scored are all of one length, that of the first by name"
    )


def whole_films(folder: Path) -> WholeFilms | None:
    """The films below a folder as data with the size and the number of frames of the first; None where there are none.

    Raises UserError where it cannot be read.
    """
    tree = open_tree(folder, "the folder")
    if not _holds_films(tree):
        return None
    clips = clips_among(tree, "the folder").clips
    first = next(iter(clips))
    try:
        with TreeClips(tree, [first], clips, FRAME_RATE).film(0) as film:
            size, frames = film.size, sum(1 for _ in film.shots(0.0))
    except (NoFrames, BrokenImage, OSError, *ARCHIVE_ERRORS) as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"{folder / first} cannot be read: {reason}", "give a folder of whole films") from error
    return WholeFilms(root=folder, size=size, frames=frames)


def _holds_films(tree: FileTree) -> bool:
    """Whether there is a video, or a file that says how many frames of its folder are shown a second, or the first animation
    has several frames: a .gif may be a picture."""
    if any(
        PurePosixPath(name).suffix.lower() in VIDEOS or PurePosixPath(name).name == RATE_FILE for name in tree.names
    ):
        return True
    drawn = (name for name in tree.names if PurePosixPath(name).suffix.lower() in ANIMATIONS)
    first = next((name for name in drawn if animated(tree.head(name))), None)
    if first is None:
        return False
    try:
        with animation(tree.read(first)) as film:
            return sum(1 for _ in islice(film.shots(0.0), 2)) > 1
    except (NoFrames, BrokenImage):
        return False
