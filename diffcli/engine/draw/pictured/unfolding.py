"""Folders in place of picture files: their pictures in order of name, without those that cannot be read."""

import warnings
from pathlib import Path

from diffcli.config import Note, UserError
from diffcli.data.image_formats import SHOWN_SUFFIXES, images_in
from diffcli.data.pixels import BrokenImage, open_image
from diffcli.engine.draw.pictures import FilePicture, MemoryPicture
from diffcli.engine.draw.sampling import SampleOptions

MOST_NAMED = 5  # broken pictures in one note
Picture = Path | MemoryPicture


def unfolded(options: SampleOptions, notes: bool = True) -> SampleOptions:
    """The options with the pictures of a folder in its place. notes: whether to name those that cannot be read.

    Raises UserError for a folder without a picture that can.
    """
    images = [each for path in options.images for each in pictures_of("--image", path, notes)]
    fields = {
        name: tuple(each for path in paths for each in pictures_of(f"--field {name}=", path, notes))
        for name, paths in options.fields
    }
    return options.model_copy(update={"images": tuple(images), "fields": tuple(fields.items())})


def pictures_of(flag: str, path: Picture, notes: bool) -> list[Picture]:
    """A folder's pictures, read; a file as it is."""
    if isinstance(path, MemoryPicture) or not path.is_dir():
        return [path]
    shown = f"{flag}{path}" if flag.endswith("=") else f"{flag} {path}"
    files = images_in(path)
    if not files:
        raise UserError(f"{shown}: holds no picture", f"give a folder with picture files in it ({SHOWN_SUFFIXES})")
    found: list[Picture] = []
    broken: list[str] = []
    for file in files:
        try:
            found.append(FilePicture(file, open_image(file.read_bytes(), str(file))))
        except BrokenImage as error:
            broken.append(f"{file.name} ({error.reason})")
        except OSError as error:
            broken.append(f"{file.name} ({error.strerror})")
    if not found:
        raise UserError(
            f"{shown}: none of its {len(files)} pictures can be read: {broken[0]}", "give whole picture files"
        )
    if broken and notes:
        more = f" and {len(broken) - MOST_NAMED} more" if len(broken) > MOST_NAMED else ""
        left = f"{len(broken)} of its {len(files)} pictures cannot be read and are left out"
        warnings.warn(f"{shown}: {left}: {', '.join(broken[:MOST_NAMED])}{more}", Note, stacklevel=2)
    return found
