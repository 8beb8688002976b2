"""One clip of a video set: fetched if it is missing, decoded from its first frame to its last; its middle frame is the image.

Addresses come from tables of strangers: only http and https are opened, a clip has a limit of bytes and of time, busy hosts
get the time that they request, and ffmpeg reads nothing but an MP4 file (a playlist could name any address).
"""

import http.client
import io
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from diffcli.config import RunFailed, UserError
from diffcli.data.clips.mp4_index import counted_frames
from diffcli.data.files import Location, read_location
from diffcli.data.pixels import BrokenImage
from diffcli.prep.download.fetching import AGENT, OPT_OUTS
from diffcli.prep.items import Item

MAX_BYTES = 256 << 20  # of one clip
MAX_SECONDS = 600  # for one clip, so that a host cannot block a worker by sending single bytes
CHUNK = 1 << 16  # bytes
BUSY = frozenset({408, 429, 500, 502, 503, 504})  # temporary answers
LONGEST_PAUSE = 60.0  # seconds
MANY = 20  # clips in a row whose hosts cannot be reached: our network is down
SHORT = 0.9  # of the frames in its header; with fewer a clip was cut
QUALITY = 95  # of the middle frame as a JPEG

_unreached = 0  # in a row, by this process


class Manners(NamedTuple):
    """The settings of downloads. timeout: seconds that a host may be silent; retries: after the first try.

    pause: seconds before the second try, doubled before each that follows.
    """

    timeout: float
    retries: int
    obey_opt_out: bool
    pause: float = 1.0


class Clip(NamedTuple):
    """A clip to read: its path, or its address."""

    name: str
    captions: tuple[str, ...]
    place: Location | str
    manners: Manners

    def __call__(self) -> Item:
        """Raises BrokenImage if it cannot be fetched or decoded, RunFailed if no host can be reached any more."""
        data = fetch(self.place, self.name, self.manners) if isinstance(self.place, str) else read_location(self.place)
        if len(data) > MAX_BYTES:
            raise BrokenImage(self.name, f"it is larger than {MAX_BYTES >> 20} MiB")
        found = decoded_clip(data, self.name)
        return Item(self.name, None, found.middle, self.captions, video=data, film=(found.frames, found.fps))


class DecodedClip(NamedTuple):
    """What is known of an MP4 once it was decoded. middle: its middle frame as a JPEG; fps: frames per second on average."""

    middle: bytes
    frames: int
    fps: float


def decoded_clip(data: bytes, name: str) -> DecodedClip:
    """Decodes all frames of an MP4, and raises BrokenImage for an incomplete one."""
    if data.lstrip()[:1] == b"<":
        raise BrokenImage(name, "it is HTML, not a video")
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        try:
            file.write(data)
            file.flush()
        except OSError as error:
            hint = "make room there, or set TMPDIR to another folder"
            raise UserError(f"the folder {tempfile.gettempdir()} does not take a clip: {error}", hint) from error
        return _decoded(Path(file.name), name, counted_frames(data))


def _decoded(path: Path, name: str, counted: int | None) -> DecodedClip:
    """counted: its frames by its index, since the length in its header may be that of its sound."""
    from imageio_ffmpeg import read_frames

    frames = read_frames(str(path), input_params=["-f", "mp4", "-protocol_whitelist", "file"])
    count, middle = 0, b""
    try:
        about = next(frames)
        timed = round(about["duration"] * about["fps"])
        expected = timed if counted is None else min(counted, timed)
        for count, frame in enumerate(frames, start=1):
            if count <= max(1, (expected + 1) // 2):
                middle = frame
        if not middle:
            raise OSError
    except (OSError, RuntimeError, StopIteration, KeyError, ValueError) as error:  # its words name a temporary file
        raise BrokenImage(name, "it is not an MP4 that can be decoded") from error
    finally:
        frames.close()
    if count < SHORT * expected - 1:
        raise BrokenImage(name, f"it ends after {count} of about {expected} frames")
    file = io.BytesIO()
    Image.frombytes("RGB", about["size"], middle).save(file, "JPEG", quality=QUALITY)
    return DecodedClip(file.getvalue(), count, about["fps"])


def fetch(url: str, name: str, manners: Manners) -> bytes:
    """The bytes at an address; a broken transfer is continued.

    Raises BrokenImage with a reason that is the same every time, RunFailed after MANY addresses without an answer.
    """
    global _unreached
    if not url.lower().startswith(("http://", "https://")):
        raise BrokenImage(name, "its address is not http or https")
    got, pause, deadline = bytearray(), manners.pause, time.monotonic() + MAX_SECONDS
    for left in range(manners.retries, -1, -1):
        try:
            with _answer(url, len(got), manners) as answer:
                _unreached = 0
                _append(got, answer, name, deadline, manners.obey_opt_out)
            return bytes(got)
        except urllib.error.HTTPError as error:
            _unreached = 0
            if error.code not in BUSY or not left:
                raise BrokenImage(name, f"HTTP {error.code}") from error
            time.sleep(min(max(pause, _asked_pause(error.headers)), LONGEST_PAUSE))
        except (OSError, http.client.HTTPException, ValueError) as error:
            if not left:
                _unreached += not got
                if _unreached >= MANY:
                    hint = "check the network, then run the same command again: it continues where it stopped"
                    raise RunFailed(f"{MANY} clips in a row cannot be reached, the last at {url}", hint) from error
                raise BrokenImage(name, "its transfer breaks off" if got else "its host cannot be reached") from error
            time.sleep(min(pause, LONGEST_PAUSE))
        pause *= 2
    raise AssertionError("the last try returns or raises")


@contextmanager
def _answer(url: str, start: int, manners: Manners) -> Iterator[Any]:
    headers = {"User-Agent": AGENT} | ({"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=manners.timeout) as answer:
        yield answer


def _append(got: bytearray, answer: Any, name: str, deadline: float, obey_opt_out: bool) -> None:
    """Reads an answer to its end. Raises BrokenImage if it must not be read or is too large, OSError if it breaks off."""
    refusals = " ".join(answer.headers.get_all("X-Robots-Tag") or ()).lower()
    if obey_opt_out and any(word.strip() in OPT_OUTS for word in refusals.replace(":", ",").split(",")):
        raise BrokenImage(name, "its owner opted out (X-Robots-Tag)")
    if answer.status != http.client.PARTIAL_CONTENT:
        got.clear()  # the host begins anew
    if len(got) + int(answer.headers.get("Content-Length") or 0) > MAX_BYTES:
        raise BrokenImage(name, f"it is larger than {MAX_BYTES >> 20} MiB")
    length = answer.length
    before = len(got)
    while chunk := answer.read1(CHUNK):
        got += chunk
        if len(got) > MAX_BYTES:
            raise BrokenImage(name, f"it is larger than {MAX_BYTES >> 20} MiB")
        if time.monotonic() > deadline:
            raise BrokenImage(name, f"its transfer takes more than {MAX_SECONDS} s")
    if length is not None and len(got) - before < length:
        raise ConnectionError("cut short")


def _asked_pause(headers: Any) -> float:
    """Seconds to wait, as a busy host requests in Retry-After."""
    with suppress(TypeError, ValueError):
        return float(headers.get("Retry-After"))
    return 0.0
