"""The files of a tar, and the targets of links inside an archive. Nothing outside of it is read."""

import math
import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, TypeVar

from diffcli.config import UserError

T = TypeVar("T")

HOPS = 40  # from link to link, as systems allow


def list_tar(stream: IO[bytes], shown: str, end: float = math.inf) -> Iterator[tuple[str, tuple[int, int] | None]]:
    """The files of the tar from the position of the stream to byte `end`: name, and first byte and size.

    Links are replaced by their targets, or None. Raises EOFError or TarError if it is incomplete, and UserError for names
    that lead out of it.
    """
    links: dict[str, str | None] = {}
    files: dict[str, tuple[int, int]] = {}
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        for member in tar:
            if member.offset_data + member.size > end:
                raise EOFError("it was cut")
            name = safe_name(member.name, shown)
            if member.isreg():
                files[name] = member.offset_data, member.size
            elif member.issym() or member.islnk():
                links[name] = target_of(member)
        stream.seek(tar.offset)
        block = stream.read(tarfile.BLOCKSIZE)
        if block.strip(b"\0"):  # tarfile stops silently at a header that it does not understand
            raise tarfile.ReadError(f"its header at byte {tar.offset} is garbled")
        if not block or tar.offset >= end:  # between two members: only the empty block at its end is missing
            raise EOFError("it was cut")
    found, lost = with_links(files, links)
    yield from (found | dict.fromkeys(lost)).items()


def safe_name(name: str, source: Path | str) -> str:
    """The path of a member. Raises UserError if it would leave the archive."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0].endswith(":")):
        raise UserError(
            f"{source} holds the member '{name}', which points outside of the archive",
            "do not trust that archive; take it from its official source",
        )
    return str(path)


def target_of(member: tarfile.TarInfo) -> str | None:
    """The path in a tar that a link names; None if it leads out of it. Hard links are relative to the root of the tar."""
    return target_in(member.name if member.issym() else "", member.linkname)


def target_in(name: str, link: str) -> str | None:
    """The target in an archive of the symbolic link of this name; None if it leads out of it."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(name), link))
    return None if path.startswith(("/", "../")) or path in ("..", ".") else path


def with_links(files: Mapping[str, T], links: Mapping[str, str | None]) -> tuple[dict[str, T], list[str]]:
    """The files by name, including targets of links, and the dangling links.

    links: their targets by name, from `target_of`. A link to a folder stands for all files in it, unless it is inside of it.
    """
    found, folders, lost = {posixpath.normpath(name): file for name, file in files.items()}, dict[str, str](), []
    for name, first in links.items():
        target, hops = first, 0
        while target is not None and target not in found and target in links and hops < HOPS:
            target, hops = links[target], hops + 1
        if target is not None and target in found:
            found[posixpath.normpath(name)] = found[target]
        elif target is None or f"{name}/".startswith(f"{target}/"):
            lost.append(name)
        else:
            folders[posixpath.normpath(name)] = target
    for name, target in folders.items():
        inside = _below(found, target)
        found |= {f"{name}/{rest}": file for rest, file in inside}
        lost += [] if inside else [name]
    return found, lost


def _below(files: Mapping[str, T], folder: str) -> list[tuple[str, T]]:
    return [(name[len(folder) + 1 :], file) for name, file in files.items() if name.startswith(f"{folder}/")]
