"""Hard and symbolic links in a tar: what they lead to inside it. Nothing outside of it is ever looked at."""

import posixpath
import tarfile
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

HOPS = 40  # from link to link, as systems allow


def target_of(member: tarfile.TarInfo) -> str | None:
    """The path in the tar that a link names; None where it leads out of it."""
    start = posixpath.dirname(member.name) if member.issym() else ""
    path = posixpath.normpath(posixpath.join(start, member.linkname))
    return None if path.startswith(("/", "../")) or path in ("..", ".") else path


def with_links(files: Mapping[str, T], links: Mapping[str, str | None]) -> tuple[dict[str, T], list[str]]:
    """The files by name, those that links lead to as well, and the links that lead to none.

    links: their targets by name, from `target_of`. A link to a folder stands for all files in it, unless it lies in there.
    """
    files = {posixpath.normpath(name): file for name, file in files.items()}
    found, lost = dict(files), []
    for name, first in links.items():
        target, hops = first, 0
        while target is not None and target not in files and target in links and hops < HOPS:
            target, hops = links[target], hops + 1
        if target is not None and target in files:
            found[posixpath.normpath(name)] = files[target]
            continue
        inside = () if target is None or f"{name}/".startswith(f"{target}/") else tuple(_below(files, target))
        found |= {f"{posixpath.normpath(name)}/{rest}": file for rest, file in inside}
        lost += [] if inside else [name]
    return found, lost


def _below(files: Mapping[str, T], folder: str) -> list[tuple[str, T]]:
    return [(name[len(folder) + 1 :], file) for name, file in files.items() if name.startswith(f"{folder}/")]
