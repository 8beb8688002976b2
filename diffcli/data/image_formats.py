"""Recognises image files that can be decoded here: by suffix, by their first bytes, and by the abilities of Pillow.

Only plain pictures are read (no PostScript, no interpreter behind a format), so files from strangers are safe to open. A
format whose package is not installed is known by name, so that its files are counted and the package is named.
"""

import io
import re
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from PIL import Image, UnidentifiedImageError, features

FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "BMP",
    "GIF",
    "TIFF",
    "PPM",
)  # tried first: importing all of Pillow's readers takes time
MORE = ("AVIF", "HEIF", "JPEG2000", "QOI", "PSD", "DDS", "SGI", "PCX", "DIB", "TGA")  # TGA has no mark: the last


def suffixes(names: str) -> frozenset[str]:
    """File suffixes with their dots."""
    return frozenset(f".{name}" for name in names.split())


SUFFIXES = suffixes(
    "png apng jpg jpeg jpe jfif jif pjpeg pjp webp bmp dib gif tif tiff ppm pgm pbm pnm avif avifs heic heif hif jp2 j2k jpf"
    " jpx j2c jpc tga qoi pcx psd sgi dds"
)
VIDEOS = suffixes("mp4 m4v mov webm mkv avi")
SHOWN_SUFFIXES = ".png .jpg .webp .gif .tif .bmp .avif and others that Pillow reads"
SUFFIXES_OF = {"HEIF": suffixes("heic heif hif"), "AVIF": suffixes("avif avifs")}
PLUGINS = {"HEIF": "pillow_heif", "AVIF": "pillow_avif"}  # packages for formats that not every Pillow has
CODECS = {"AVIF": "avif", "JPEG2000": "jpg_2000"}  # as Pillow calls them
NEEDS = {
    "HEIF": "HEIC pictures are read where pillow-heif is installed: pip install 'diffcli[photos]'",
    "AVIF": "AVIF pictures are read by Pillow 11.3 and newer: pip install -U pillow",
}
MARKS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\0\0\0\x0cjP  \r\n": "JPEG2000",
    b"\xff\x4f\xff\x51": "JPEG2000",
    b"qoif": "QOI",
    b"8BPS": "PSD",
}
EXTENSIONS = {"JPEG2000": "jp2", "HEIF": "heic"}  # of formats whose name is not their suffix
HEIF_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"})
AVIF_BRANDS = frozenset({b"avif", b"avis"})
HEAD = 64  # bytes that tell a format
# files that may describe images
TEXTS = suffixes("txt caption captions json jsonl ndjson csv tsv parquet xml yaml yml md rst html htm log toml ini gz")
# raw photographs, which hold a thumbnail; and unfinished or backup files
NO_IMAGES = suffixes(
    "dng nef nrw cr2 cr3 crw arw srf sr2 orf rw2 raf pef raw rwl 3fr iiq erf kdc"
    " part partial crdownload download tmp temp bak old orig swp"
)
PNG_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt", b"iCCP"})  # chunks beside the pixels, of any size


class ImageFiles(NamedTuple):
    """The images among some files, in their order; others: numbers of other files by suffix, without TEXTS."""

    images: list[str]
    others: Counter[str]

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the other files, and on packages that could read some of them."""
        if not self.others:
            return ()
        counted = ", ".join(f"{count} {suffix}" for suffix, count in sorted(self.others.items()))
        unread = [
            name for name, suffixes in SUFFIXES_OF.items() if self.others.keys() & suffixes and not readable(name)
        ]
        return (
            f"{self.others.total()} files are no images that can be read: {counted}",
            *(NEEDS[name] for name in unread),
        )


def images_among(names: Iterable[str], head: Callable[[str], bytes]) -> ImageFiles:
    """Sorts files by name into images and others. head: gives the first bytes of a file with an unknown suffix."""
    images, others = [], Counter[str]()
    for name in names:
        suffix = PurePosixPath(name).suffix.lower()
        if is_image(suffix, lambda name=name: head(name)):  # type: ignore[misc]  # bound now
            images.append(name)
        elif suffix not in TEXTS:
            others[suffix if re.fullmatch(r"\.\w{1,9}", suffix) else "with another name"] += 1
    return ImageFiles(images, others)


def images_in(folder: Path) -> list[Path]:
    """The images directly in a folder, by name, including formats that cannot be decoded here."""

    def head(path: Path) -> bytes:
        with suppress(OSError), path.open("rb") as file:
            return file.read(HEAD)
        return b""

    files = sorted(path for path in folder.iterdir() if path.name[0] != "." and path.is_file())
    suffixes = [path.suffix.lower() for path in files]
    known = SUFFIXES | TEXTS | NO_IMAGES
    return [p for p, s in zip(files, suffixes, strict=True) if s in SUFFIXES or (s not in known and format_of(head(p)))]


def is_image(suffix: str, head: Callable[[], bytes]) -> bool:
    """Whether a file with this suffix, in small letters, is an image of a format that can be decoded here."""
    if suffix in SUFFIXES:
        return all(suffix not in suffixes or readable(name) for name, suffixes in SUFFIXES_OF.items())
    if suffix in TEXTS or suffix in NO_IMAGES:
        return False
    found = format_of(head())
    return found is not None and readable(found)


def format_of(head: bytes) -> str | None:
    """The format whose mark a file begins with, by Pillow's name; None for an unknown beginning."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return "AVIF" if head[8:12] in AVIF_BRANDS else "HEIF" if head[8:12] in HEIF_BRANDS else None
    return next((name for mark, name in MARKS.items() if head.startswith(mark)), None)


def extension_of(head: bytes) -> str | None:
    """The suffix, without a dot, for a format recognised by its first bytes; None if they are not of an image."""
    found = format_of(head)
    return None if found is None else EXTENSIONS.get(found, found.lower())


def readable(name: str) -> bool:
    """Whether Pillow, with its plugins, decodes a format."""
    return name in FORMATS or name in _further()


def open_encoded(file: IO[bytes]) -> Image.Image:
    """The image in a file, of which only the header has been read. Raises whatever Pillow's parsers raise on garbled files.

    A PNG whose texts are larger than Pillow admits is read without them.
    """
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        file.seek(0)
        found = format_of(file.read(HEAD))
        if found in NEEDS and not readable(found):
            raise ValueError(NEEDS[found]) from error
        file.seek(0)
        return Image.open(file, formats=_further())
    except ValueError:  # of the texts of a PNG
        file.seek(0)
        plain = without_texts(file.read())
        if plain is None:
            raise
        return Image.open(io.BytesIO(plain), formats=FORMATS)


def without_texts(data: bytes) -> bytes | None:
    """A PNG without its texts and colour profile; None where it is no PNG, or has none."""
    mark, at, kept = next(iter(MARKS)), 8, []
    if not data.startswith(mark):
        return None
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if data[at + 4 : at + 8] not in PNG_TEXTS:
            kept.append(data[at : at + 12 + length])
        at += 12 + length
    plain = mark + b"".join(kept)
    return plain if len(plain) < len(data) else None


@cache
def _further() -> tuple[str, ...]:
    """The formats of MORE that can be decoded here."""
    Image.init()
    for name, plugin in PLUGINS.items():
        if name not in Image.OPEN:
            with suppress(ImportError):
                getattr(import_module(plugin), "register_heif_opener", int)()  # pillow_avif registers as it is imported
    return tuple(name for name in MORE if name in Image.OPEN and _has_codec(name))


def _has_codec(name: str) -> bool:
    """Whether Pillow was built with an optional format."""
    if name == "AVIF" and PLUGINS[name] in sys.modules:
        return True
    return name not in CODECS or bool(features.check(CODECS[name]))
