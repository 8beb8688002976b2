"""The files in a folder, a tar or a zip through one interface: names, and bytes by name. Archives are read in place.

A name is the path below the source with forward slashes. Members that would leave the source ("../x", "/x") are refused.
"""

import bz2
import gzip
import io
import lzma
import math
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, NamedTuple

from diffcli.config import UserError, quoted
from diffcli.data.faults import is_momentary, zip_faults
from diffcli.data.naming import check_there, given_as
from diffcli.data.tar_links import list_tar, safe_name, target_in, with_links
from diffcli.data.walk import Walk, ignored_part, shown_ignored
from diffcli.digest import LOOK, stands_in

MAX_MEMBER = 1 << 30  # bytes of one file inside a zip that is read whole; more is a bomb, not an image
ARCHIVE_ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    lzma.LZMAError,
    gzip.BadGzipFile,
    EOFError,
    zlib.error,
)
ZIP_MODE = 16  # bits by which the mode of a file lies above the other attributes in a zip
TWICE = "members that a later one of the same name replaces"
LOST = "links that lead to nothing in their archive"
COPY_CHUNK = 1 << 20  # bytes
MAX_IN_MEMORY = 4 << 30  # largest size in bytes of a compressed tar that is unpacked in memory
MAX_RATIO = 100  # of an unpacked tar over MAX_IN_MEMORY to the packed one; images hardly shrink, so more is a bomb
DECOMPRESSORS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"BZh": bz2.open,
}


class WriteError(OSError):
    """A temporary file could not be written; no fault of the source."""


class Span(NamedTuple):
    """A range of bytes of a file: a member of an uncompressed tar."""

    path: Path
    offset: int
    size: int


class ZipEntry(NamedTuple):
    """A member of a zip; size in bytes once unpacked."""

    path: Path
    name: str
    size: int


Location = Path | Span | ZipEntry | bytes  # picklable, so that worker processes can read for themselves


class FileTree:
    """The files of one source, sorted by name. passed: ignored files, see `Walk`; empty: folders without files.

    locations: None for a dangling link.
    """

    def __init__(
        self,
        source: Path,
        locations: Mapping[str, Location | None],
        passed: Mapping[str, int] = MappingProxyType({}),
        empty: Sequence[str] = (),
    ) -> None:
        self.source, self.empty = source, tuple(map(printable, empty))
        ignored = {name: part for name in locations if (part := ignored_part(name)) is not None}
        found = {name: at for name, at in locations.items() if at is not None and name not in ignored}
        lost = len(locations.keys() - found.keys() - ignored.keys())
        self.passed = Counter(passed) + Counter(map(shown_ignored, ignored.values())) + Counter({LOST: lost})
        self.locations = {printable(name): found[name] for name in sorted(found)}

    @property
    def names(self) -> list[str]:
        return list(self.locations)

    def read(self, name: str) -> bytes:
        return read_location(self.locations[name])

    def head(self, name: str) -> bytes:
        """The first bytes of a file, which show its format; empty if it cannot be read."""
        try:
            with open_location(self.locations[name]) as file:
                return file.read(LOOK)
        except (OSError, *ARCHIVE_ERRORS) as error:
            if is_momentary(error):
                raise
            return b""

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return size_of(self.locations[name])

    def find(self, *basenames: str) -> str | None:
        """The first file with one of these basenames, the shallowest first; None if there is none."""
        found = [name for name in self.locations if name.rsplit("/", 1)[-1] in basenames]
        return min(found, key=lambda name: (name.count("/"), name), default=None)

    @property
    def holds(self) -> str:
        """Its first names, for errors about a wrong source."""
        return ", ".join(self.names[:3]) + (", ..." if len(self.locations) > 3 else "") or "nothing"

    def shown(self, name: str) -> str:
        """The path of a file, for messages."""
        return str(self.source / name)


def open_tree(source: Path, key: str, work: Path | None = None) -> FileTree:
    """The files of a folder or of a .tar, .tar.gz, .tar.xz, .tar.bz2 or .zip archive.

    key: the option that names the source (`data.root`, `SOURCE`), for errors. work: the folder for the plain tar of a compressed
    one; None: in memory. Raises UserError if the source is missing or broken, and WriteError if the plain tar cannot be written
    into `work`.
    """
    with _opening(source, key, f"{key} is '{source}', which"):
        check_there(source, key)
        if source.is_dir():
            walk = Walk(source)
            return FileTree(source, walk.files, walk.passed, walk.empty)
        members = list(_members(source, str(source), work))
        found = dict(members)
        return FileTree(source, found, {TWICE: len(members) - len(found)})


def unfold(tree: FileTree, pattern: re.Pattern[str], key: str, work: Path | None = None) -> FileTree:
    """The tree with matching archives in it replaced by their members, as ARCHIVE/MEMBER.

    A tar inside a tar is read in place, too. Raises as `open_tree` does.
    """
    locations: dict[str, Location | None] = {}
    for name, location in tree.locations.items():
        if not pattern.search(name):
            locations[name] = location
            continue
        with _opening(tree.source, key, f"{key} is '{tree.source}', in which {name}"):
            members = dict(_members(location, tree.shown(name), work))
        locations |= {f"{name}/{inner}": at for inner, at in members.items()}
    return FileTree(tree.source, locations, tree.passed, tree.empty)


@contextmanager
def _opening(source: Path, key: str, what: str) -> Iterator[None]:
    """Context that turns errors in an archive into a UserError. what: the start of the sentence that names it."""
    try:
        yield
    except WriteError:
        raise
    except ARCHIVE_ERRORS as error:
        if found := stands_in(source):
            raise UserError(f"{what} is not there", f"{found}, then run the same command again") from error
        hint = f"take a fresh copy, or {given_as(key, 'a folder, .tar, .tar.gz, .tar.xz or .zip')}"
        raise UserError(f"{what} is not a whole archive ({error})", hint) from error
    except OSError as error:
        raise unreadable(source, key, error) from error


def with_zips(tree: FileTree, key: str, work: Path | None = None) -> FileTree:
    """The files of a folder and of the zips in it, as if each zip were a folder of its name."""
    if not tree.source.is_dir():
        return tree
    locations = dict(tree.locations)
    for name in tree.names:
        if name.lower().endswith(".zip"):
            inside = open_tree(tree.source / name, key, work)
            locations |= {f"{name[:-4]}/{member}": location for member, location in inside.locations.items()}
    return FileTree(tree.source, locations, tree.passed, tree.empty)


def unreadable(source: Path | str, key: str, error: OSError) -> UserError:
    """The UserError for a source, given by `key`, that cannot be read."""
    return UserError(f"{key} is '{source}', which cannot be read: {error}", "check its permissions and its disk")


def copy(stream: IO[bytes], target: Path, most: float = math.inf) -> None:
    """Copies a stream into a file, or leaves none. Raises WriteError for the file; errors of the stream are not changed.

    most: bytes; raises EOFError where the stream has more.
    """
    try:
        file = _write(target.open, "wb")
        try:
            while chunk := stream.read(COPY_CHUNK):
                _write(file.write, chunk)
                if file.tell() > most:
                    raise EOFError(f"it unpacks to more than {most} bytes, as no set of images does")
        finally:
            _write(file.close)
    except BaseException:
        with suppress(OSError):
            target.unlink(missing_ok=True)  # on a full disk, give the room back
        raise


def _write(action: Callable[..., Any], *args: object) -> Any:
    try:
        return action(*args)
    except OSError as error:
        raise WriteError(error.errno, error.strerror, error.filename) from error


def read_location(location: Location) -> bytes:
    """The bytes at a location. Raises OSError or one of ARCHIVE_ERRORS."""
    match location:
        case bytes():
            return location
        case Span(path, offset, size):
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read(size)
            if len(data) != size:
                raise EOFError(f"{path} ends before byte {offset + size}")
            return data
        case ZipEntry(path, name, size):
            if size > MAX_MEMBER:
                raise zipfile.BadZipFile(f"it unpacks to {size} bytes, as no image does")
            with zip_faults():
                return _open_zip(path).read(name)
        case _:
            return location.read_bytes()


def size_of(location: Location) -> int:
    """The bytes at a location; 0 at a dangling link, of which reading it says so."""
    match location:
        case bytes() as data:
            return len(data)
        case Span(_, _, size) | ZipEntry(_, _, size):
            return size
        case path:
            return path.stat().st_size if path.exists() else 0


def open_location(location: Location) -> IO[bytes]:
    """A stream over a location; a member of a zip is unpacked as it is read."""
    match location:
        case Path():
            return location.open("rb")
        case ZipEntry(path, name, _):
            with zip_faults():
                return _open_zip(path).open(name)
        case _:
            return io.BytesIO(read_location(location))


def _open_zip(path: Path) -> zipfile.ZipFile:
    return _opened(path, os.getpid())


@lru_cache(maxsize=4)
def _opened(path: Path, process: int) -> zipfile.ZipFile:
    """The open archive, cached because reading its directory for every member would be quadratic; one for each process.

    A forked worker would share the position of an inherited open file with the other processes.
    """
    with zip_faults():
        return zipfile.ZipFile(path)


def printable(name: str) -> str:
    """A name as text that can be written: what was no UTF-8 on disk or in an archive becomes an escape, as \\udcff."""
    return name.encode("utf-8", "backslashreplace").decode()


def _members(location: Location, shown: str, work: Path | None) -> Iterator[tuple[str, Location | None]]:
    """The files of an archive: a file on disk, or a tar inside a tar. None: a dangling link."""
    match location:
        case Path() if zipfile.is_zipfile(location):
            yield from _zip_members(location)
        case Path():
            yield from _tar_members(location, work)
        case Span(path, offset, size):
            with path.open("rb") as stream:
                stream.seek(offset)
                for name, place in list_tar(stream, shown, offset + size):
                    yield name, place and Span(path, *place)
        case _:
            raise UserError(f"{shown} is an archive in a packed archive", "unpack the outer one, then give its folder")


def _zip_members(source: Path) -> Iterator[tuple[str, ZipEntry | None]]:
    files, links = dict[str, ZipEntry](), dict[str, str | None]()
    for info in _open_zip(source).infolist():
        name = safe_name(info.filename, source)
        if info.is_dir():
            continue
        if info.flag_bits & 1:
            raise UserError(f"{source} is encrypted ('{name}')", "unpack it with its password, then give the folder")
        if name in files:
            yield name, files[name]  # the later one counts, as in a tar
        files[name] = ZipEntry(source, info.filename, info.file_size)
        if stat.S_ISLNK(info.external_attr >> ZIP_MODE):
            links[name] = target_in(name, os.fsdecode(read_location(files.pop(name))))
    found, lost = with_links(files, links)
    yield from (found | dict.fromkeys(lost)).items()


def _tar_members(source: Path, work: Path | None) -> Iterator[tuple[str, Location | None]]:
    with source.open("rb") as file:
        magic = file.read(6)
    opener = next((opener for start, opener in DECOMPRESSORS.items() if magic.startswith(start)), None)
    plain = source if opener is None else _decompress(source, opener, work)
    stream: IO[bytes] = io.BytesIO(plain) if isinstance(plain, bytes) else plain.open("rb")
    with stream:
        for name, place in list_tar(stream, str(source)):
            if place is None:
                yield name, None
            elif isinstance(plain, bytes):
                yield name, plain[place[0] : sum(place)]
            else:
                yield name, Span(plain, *place)


def _decompress(source: Path, opener: Callable[..., Any], work: Path | None) -> Path | bytes:
    """The plain tar inside a compressed one; random access into xz or gzip would decompress everything for every member."""
    with opener(source, "rb") as stream:
        if work is None:
            plain = stream.read(MAX_IN_MEMORY + 1)
            if len(plain) > MAX_IN_MEMORY:
                problem = f"{source} is too large to read from its archive (over {MAX_IN_MEMORY >> 30} GiB unpacked)"
                raise UserError(problem, f"run `diffcli prep-data KIND {quoted(source)} --out DIR` first, then use DIR")
            return plain
        target = work / f"{source.name}.plain"
        copy(stream, target, max(MAX_IN_MEMORY, MAX_RATIO * source.stat().st_size))
    return target
