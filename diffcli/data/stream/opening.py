"""The bytes of a shard at any place: http(s), fsspec (s3, gs, memory, ...), the output of a command, a file.

A dropped connection is resumed at the byte where it broke: by a Range request, by seeking, or by reading from the start and
discarding known bytes. The server must show that it still has the same file (ETag, date and length), because the halves of two
files are no shard. The wait time doubles between attempts, up to a limit; each shard has a total number of retries.
"""

import gzip
import http.client
import io
import re
import subprocess
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import unquote, urlsplit

from diffcli import __version__
from diffcli.config import UserError
from diffcli.data.addresses import encoded

PIPE = "pipe:"  # before a command whose output is the shard
CHUNK = 1 << 20  # bytes read at once
LONGEST_PAUSE = 30.0  # seconds
AGAIN = frozenset({408, 425, 429})  # temporary ones among the 4xx answers
FAULTS = (OSError, EOFError, http.client.HTTPException)  # errors of a failed connection
HOPELESS = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


GZIP = b"\x1f\x8b"  # how gzip begins; a tar begins with a name


class BrokenShard(Exception):
    """A shard that cannot be opened or read further; its text is the reason. final: a later attempt would fail as well."""

    def __init__(self, reason: str, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


class Edition(NamedTuple):
    """Properties by which a server identifies a version of a file; None and empty are unknown."""

    length: int | None = None  # bytes of the whole file
    tag: str = ""  # ETag
    date: str = ""  # Last-Modified

    @property
    def proof(self) -> str:
        """For If-Range, which takes no weak tag."""
        return self.tag if self.tag and not self.tag.startswith("W/") else self.date

    def differs(self, other: "Edition") -> bool:
        """Whether a property that both have differs."""
        return any(mine and theirs and mine != theirs for mine, theirs in zip(self, other, strict=True))


class Patience(NamedTuple):
    """retries: of one shard. pause: seconds before the first, twice as long before each further. timeout: seconds of silence."""

    retries: int = 5
    pause: float = 0.5
    timeout: float = 60.0


class ShardBytes:
    """The bytes of one shard from `position` on; position is always that of the next byte to be read."""

    def __init__(self, url: str, patience: Patience, position: int = 0) -> None:
        self.url, self.patience, self.position = url, patience, position
        self._file: IO[bytes] | None = None
        self._edition = Edition()  # properties of the file from the server so far
        self._failures = 0

    def read(self, count: int) -> bytes:
        """The next `count` bytes, fewer only at the end of the shard. Raises BrokenShard."""
        parts = []
        while count:
            part = self._attempt(min(count, CHUNK))
            if not part:
                break
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def skip(self, count: int) -> None:
        """Skips `count` bytes, by seeking if possible."""
        if self._file is not None and self._file.seekable():
            self.position += count
            self._file.seek(self.position)
            return
        while count:
            part = self.read(min(count, CHUNK))
            if not part:
                return
            count -= len(part)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _attempt(self, count: int) -> bytes:
        """At least one byte, or none at the end, with as many retries as patience allows."""
        while True:
            try:
                if self._file is None:
                    self._open()
                assert self._file is not None
                part = self._file.read(count)
                end = self._edition.length
                if not part and end is not None and self.position < end:
                    raise ConnectionError(f"the connection broke at byte {self.position} of {end}")
            except (UserError, BrokenShard):
                raise
            except zlib.error as error:
                raise BrokenShard(f"it cannot be unpacked ({error})") from error
            except Exception as error:
                foreign = is_foreign(self.url) and not isinstance(
                    error, UserError
                )  # fsspec's back ends raise any exception
                if not foreign and not isinstance(error, FAULTS):
                    raise
                self._failed(error)
            else:
                self.position += len(part)
                return part

    def _open(self) -> None:
        """Raises BrokenShard if the server has another file now."""
        self._file, now = open_at(self.url, self.position, self.patience.timeout, self._edition)
        if self._edition.differs(now):
            self.close()
            raise BrokenShard("the file on the server has changed since it was opened")
        before = self._edition
        self._edition = Edition(now.length or before.length, now.tag or before.tag, now.date or before.date)

    def _failed(self, error: Exception) -> None:
        self.close()
        reason = _reason(error)
        if _is_final(error):
            raise BrokenShard(reason, final=True) from error
        self._failures += 1
        if self._failures > self.patience.retries:
            raise BrokenShard(f"{reason} (after {self.patience.retries} retries)") from error
        time.sleep(min(self.patience.pause * 2 ** (self._failures - 1), LONGEST_PAUSE))


def is_remote(url: str) -> bool:
    """Whether a text names no plain path: a URL or the output of a command."""
    return "://" in url or url.startswith((PIPE, "file:"))


def is_foreign(url: str) -> bool:
    """Whether it takes fsspec to open it."""
    return "://" in url and not url.startswith((PIPE, "file:", "http://", "https://"))


def local_path(url: str) -> Path:
    """The path of a file: URL or of a plain path."""
    return Path(unquote(urlsplit(url).path) if url.startswith("file:") else url).expanduser()


def open_at(url: str, position: int, timeout: float, known: Edition = Edition()) -> tuple[IO[bytes], Edition]:
    """The open shard with its next byte at `position`, and its Edition. Gzip is unpacked: by the name of a shard, or by the first
    bytes of a command's output.

    known: the Edition so far; the server sends a part of the same file, or the whole of another one.
    """
    piped = url.startswith(PIPE)
    if not piped and not urlsplit(url).path.endswith((".gz", ".tgz")):
        return _open(url, position, timeout, known)
    found, now = _open(url, 0, timeout, Edition())
    file: IO[bytes] = found
    if not piped or found.peek(len(GZIP)).startswith(GZIP):  # type: ignore[attr-defined]  # of a command it is buffered
        file, now = io.BufferedReader(gzip.GzipFile(fileobj=found)), now._replace(length=None)  # type: ignore[arg-type]
    _pass(file, position)
    return file, now


def _open(url: str, position: int, timeout: float, known: Edition) -> tuple[IO[bytes], Edition]:
    if url.startswith(("http://", "https://")):
        return _open_http(url, position, timeout, known)
    file: IO[bytes]
    if url.startswith(PIPE):
        file = io.BufferedReader(_Command(url.removeprefix(PIPE)))
    elif is_foreign(url):
        file = _open_foreign(url)
    else:
        file = local_path(url).open("rb")
    _pass(file, position)
    return file, Edition()


def _open_http(url: str, position: int, timeout: float, known: Edition) -> tuple[IO[bytes], Edition]:
    headers = {"User-Agent": f"diffcli/{__version__}"}
    if position:
        headers |= {"Range": f"bytes={position}-"} | ({"If-Range": known.proof} if known.proof else {})
    answer: http.client.HTTPResponse = urllib.request.urlopen(
        urllib.request.Request(encoded(url), headers=headers), timeout=timeout
    )
    start, length = 0, answer.length
    if answer.status == http.HTTPStatus.PARTIAL_CONTENT:
        start, length = _content_range(answer.headers.get("Content-Range", ""), position, answer.length)
    now = Edition(length, answer.headers.get("ETag", ""), answer.headers.get("Last-Modified", ""))
    if start > position:
        answer.close()
        raise ConnectionError(f"the server sent the bytes from {start} on, not those from {position} on")
    if not known.differs(now):
        _pass(answer, position - start)  # a server without Range begins at the beginning
    return answer, now


def _content_range(text: str, position: int, rest: int | None) -> tuple[int, int | None]:
    """First byte and length of the whole file from `bytes FIRST-LAST/LENGTH`; the requested ones if it is missing."""
    found = re.fullmatch(r"\s*bytes\s+(\d+)-\d+/(\d+|\*)\s*", text)
    start = int(found[1]) if found else position
    if found and found[2] != "*":
        return start, int(found[2])
    return start, None if rest is None else start + rest


def _open_foreign(url: str) -> IO[bytes]:
    scheme = url.partition("://")[0]
    try:
        import fsspec

        return fsspec.open(url, "rb").open()  # type: ignore[no-any-return]
    except ImportError as error:
        raise UserError(
            f"data.shards: {scheme}:// needs a package that is missing ({error})", "pip install 'diffcli[remote]'"
        ) from error
    except ValueError as error:
        if "Protocol not known" not in str(error):
            raise
        raise UserError(
            f"data.shards: '{url}' cannot be opened ({error})", "use http://, https://, s3://, pipe: or a path"
        ) from error


class _Command(io.RawIOBase):
    """The output of a shell command; an exit code other than 0 is an error at its end."""

    def __init__(self, command: str) -> None:
        self._process = subprocess.Popen(
            command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
        )

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        assert self._process.stdout is not None
        part = self._process.stdout.read1(len(buffer))  # type: ignore[attr-defined]
        buffer[: len(part)] = part
        if not part and self._process.wait():
            raise OSError(f"the command left with exit code {self._process.returncode}")
        return len(part)

    def close(self) -> None:
        if not self.closed:
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process.kill()
            self._process.wait()
        super().close()


def _pass(file: IO[bytes], count: int) -> None:
    """Skips bytes from the start of a file."""
    if count and file.seekable():
        file.seek(count)
        return
    while count:
        part = file.read(min(count, CHUNK))
        if not part:
            raise ConnectionError(f"it ends {count} bytes before the place to resume at")
        count -= len(part)


def _is_final(error: Exception) -> bool:
    """Whether another attempt is useless."""
    if isinstance(error, urllib.error.HTTPError):
        return 400 <= error.code < 500 and error.code not in AGAIN
    return isinstance(error, HOPELESS)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        error = error.reason if isinstance(error.reason, Exception) else error
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")
