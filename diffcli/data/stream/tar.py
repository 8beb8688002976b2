"""Samples of a tar in the WebDataset layout, in their order, each with the byte where it begins.

Consecutive members with the same name up to the first dot of their file name are one sample; the rest of the name is the type.
For an unknown type, the first bytes show whether a member is an image. Links are not followed, because their targets have passed.
Nothing is unpickled or extracted. Reading may begin at any sample's offset, since the rest of a tar is a tar. (Headers are read
here and not by webdataset or `tarfile`, which have no offsets or read what they skip, and accept a tar that breaks off between
two members.)
"""

import re
import tarfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

from diffcli.data.image_formats import HEAD, NO_IMAGES, SUFFIXES, TEXTS, extension_of
from diffcli.data.sample_labels import EXTENSIONS
from diffcli.data.stream.opening import BrokenShard, ShardBytes

BLOCK = 512
LARGEST_MEMBER = 256 << 20  # bytes; a larger member is skipped
LARGEST_HEADER = 1 << 20  # of long names and pax records
LARGEST_SIZE = 1 << 50  # largest plausible member; base-256 headers can hold any number, also a negative one
LONG_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
PICKLES = frozenset({"pyd", "pkl", "pickle", "pth", "pt", "ckpt", "bin", "npz", "joblib"})  # npz may hold objects, too
IMAGES = frozenset(suffix[1:] for suffix in SUFFIXES)
OTHERS = PICKLES | {suffix[1:] for suffix in TEXTS} | {*EXTENSIONS, "npy"}  # never an image
KNOWN = IMAGES | OTHERS | {suffix[1:] for suffix in NO_IMAGES} | {"mp4"}  # kinds of members by their name
REMARKS = {
    "pickles": "members that would have to be unpickled are never read",
    "links": "links in a shard are not followed; `diffcli prep-data webdataset` follows them",
    "apart": "members of a sample lie apart, or a sample is in a shard twice; `diffcli prep-data webdataset` puts them together",
}
NAME = re.compile(r"((?:.*/|)[^./][^.]*|[^.]+)[.]([^/]*)")  # key, extension: as webdataset splits them
PAX_RECORD = re.compile(rb"(\d{1,7}) ([^=]+)=")


class TarMember(NamedTuple):
    """A regular file of a tar, or a link, which has no bytes; offset: of its first header."""

    name: str
    offset: int
    size: int
    link: bool = False


class TarSample(NamedTuple):
    """A sample. members: the bytes of the wanted ones, by extension in lower case.

    others: the extensions of skipped ones; remarks: keys of REMARKS.
    """

    key: str
    offset: int
    members: dict[str, bytes]
    others: tuple[str, ...] = ()
    remarks: frozenset[str] = frozenset()

    @property
    def has_more(self) -> bool:
        """Whether it has members that may be its image."""
        return any(extension.rpartition(".")[2] not in OTHERS for extension in self.others)

    def without(self, extension: str, *remarks: str) -> "TarSample":
        """The sample after a skipped member."""
        return self._replace(others=(*self.others, extension), remarks=self.remarks | {*remarks})


def samples(shard: ShardBytes, wanted: Callable[[str], bool], dotted: bool = False) -> Iterator[TarSample]:
    """The samples from the shard's position on. wanted: which extensions to read; others are skipped.

    dotted: keys end at the last dot of a name. Of two members with one name the later one counts.
    Raises BrokenShard if the tar is garbled or breaks off, after the samples that are certainly complete.
    """
    current: TarSample | None = None
    seen = set[int]()
    for member in members(shard):
        named = split_name(member.name, dotted)
        if named is None:
            continue
        key, extension = named
        if current is None or key != current.key:
            if current is not None:
                yield current
            apart = frozenset({"apart"}) if hash(key) in seen else frozenset[str]()
            current = TarSample(key, member.offset, {}, remarks=apart)
            seen.add(hash(key))
        if member.link:
            current = current.without(extension, "links")
        elif extension.rpartition(".")[2] in PICKLES:
            current = current.without(extension, "pickles")
        elif member.size > LARGEST_MEMBER:
            current = current.without(extension)
        else:
            found, data = _read(shard, member, extension, wanted)
            if data is None:
                current = current.without(extension)
            else:
                current.members[found] = data
    if current is not None:
        yield current


def split_name(name: str, dotted: bool = False) -> tuple[str, str] | None:
    """The key and the extension, in lower case, of a member; None without an extension. dotted: see `samples`."""
    match = NAME.fullmatch(name)
    if match is None:
        return None
    stem, dot, last = match[2].rpartition(".")
    return (f"{match[1]}.{stem}", last.lower()) if dotted and dot else (match[1], match[2].lower())


def _read(
    shard: ShardBytes, member: TarMember, extension: str, wanted: Callable[[str], bool]
) -> tuple[str, bytes | None]:
    """The type of a member and its bytes, if wanted. The first bytes identify an image with an unknown name."""
    head = b""
    if extension.rpartition(".")[2] not in KNOWN and not wanted(extension):
        head = shard.read(min(HEAD, member.size))
        extension = extension_of(head) or extension
    if not wanted(extension):
        return extension, None
    data = head + shard.read(member.size - len(head))
    if len(data) < member.size:
        raise BrokenShard(f"it breaks off at byte {shard.position}, within {member.name}")
    return extension, data


def members(shard: ShardBytes) -> Iterator[TarMember]:
    """The regular files and links of a tar; after each `yield` the shard is at their bytes, which the caller may read.

    GNU and pax long names are understood. Raises BrokenShard unless the tar ends with its end marker.
    """
    offset, name, size = shard.position, None, None
    while True:
        try:
            header = tarfile.TarInfo.frombuf(shard.read(BLOCK), "utf-8", "surrogateescape")
        except tarfile.TarError as error:
            if type(error).__name__ == "EOFHeaderError":
                return
            cut = type(error).__name__ in ("EmptyHeaderError", "TruncatedHeaderError")
            what = "it breaks off" if cut and offset else "it is empty" if not shard.position else "it is no tar"
            raise BrokenShard(f"{what} at byte {offset}") from error
        if header.type in LONG_HEADERS:
            if not 0 <= header.size <= LARGEST_HEADER:
                raise BrokenShard(f"it is no tar at byte {offset}")
            body = shard.read(_padded(header.size))[: header.size]
            if header.type == tarfile.GNUTYPE_LONGNAME:
                name = body.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                records = pax_records(body)
                name, size = records.get("path", name), records.get("size")
            continue
        length = _length(header, size)
        if not 0 <= length <= LARGEST_SIZE:
            raise BrokenShard(f"it is no tar at byte {offset}: a member of {length} bytes")
        start = shard.position
        if header.isreg():
            yield TarMember(name or header.name, offset, length)
        elif header.islnk() or header.issym():
            yield TarMember(name or header.name, offset, 0, link=True)
        shard.skip(start + _padded(length) - shard.position)
        offset, name, size = shard.position, None, None


def _length(header: tarfile.TarInfo, pax_size: str | None) -> int:
    """The number of bytes after a header: none after a link or a folder. pax_size: the size in a pax record."""
    if not header.isreg() and header.type in tarfile.SUPPORTED_TYPES:
        return 0
    if pax_size is None:
        return header.size
    return int(pax_size) if re.fullmatch(r"[0-9]{1,18}", pax_size) else -1


def pax_records(body: bytes) -> dict[str, str]:
    """The `LENGTH KEY=VALUE` lines of a pax header."""
    records, at = {}, 0
    while (match := PAX_RECORD.match(body, at)) is not None and int(match[1]) > 0:
        end = at + int(match[1])
        records[match[2].decode("utf-8", "replace")] = body[match.end() : end - 1].decode("utf-8", "surrogateescape")
        at = end
    return records


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
