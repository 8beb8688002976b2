"""A web server on loopback that answers like the web: photographs, dead links, slow hosts, HTML, bombs, and refusals.

`URL/KIND/NUMBER` answers with the picture NUMBER as KIND says; the answer never depends on when or how often it is asked.
"""

import io
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

GOOD = ("jpeg", "png", "slow", "redirect", "rotated", "cmyk", "alpha", "grey", "deep", "gif")
FAILURES = {  # by kind, as the table at the end of a download calls it
    "gone": "HTTP 404",
    "error": "HTTP 500",
    "reset": "connection broken off",
    "cut": "not a whole image",
    "html": "HTML, not an image",
    "tiny": "too small",
    "bomb": "too many pixels",
    "noai": "opted out (X-Robots-Tag)",
    "never": "timeout",
}
SLOW_SECONDS = 0.3


def colour(number: int) -> tuple[int, int, int]:
    """The colour of the right half of picture `number`; the left half is black, so that a rotation shows."""
    return 55 + number * 37 % 200, 55 + number * 91 % 200, 55 + number * 53 % 200


def picture(number: int, width: int = 80, height: int = 60) -> Image.Image:
    array = np.zeros((height, width, 3), np.uint8)
    array[:, width // 2 :] = colour(number)
    return Image.fromarray(array)


@lru_cache(maxsize=4096)
def body(kind: str, number: int) -> bytes:
    """The bytes of an answer that is a picture."""
    image, exif = picture(number), Image.Exif()
    match kind:
        case "png":
            return _encoded(image, "PNG")
        case "rotated":  # stored on its side: 6 says to turn it by 90 degrees clockwise
            exif[0x0112] = 6
            return _encoded(image.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)
        case "cmyk":
            return _encoded(image.convert("CMYK"), "JPEG", quality=95)
        case "alpha":
            image = image.convert("RGBA")
            image.putalpha(0)
            return _encoded(image, "PNG")
        case "grey":
            return _encoded(image.convert("L"), "PNG")
        case "deep":
            return _encoded(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "PNG")
        case "gif":
            return _encoded(image, "GIF", save_all=True, append_images=[image.rotate(180)])
        case "tiny":
            return _encoded(picture(number, 8, 8), "PNG")
        case "bomb":
            return bomb(60_000)
        case _:
            return _encoded(image, "JPEG", quality=95)


def bomb(side: int) -> bytes:
    """A few hundred bytes that claim to be a PNG of side x side pixels."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", zlib.compress(b"\0" * 9999)) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Answers /KIND/NUMBER."""

    server: "WebServer"

    def do_GET(self) -> None:
        _, kind, number = self.path.split("/")
        self.server.asked[self.path] += 1
        self.server.agents.add(self.headers["User-Agent"])
        match kind:
            case "gone":
                self.send_error(404)
            case "error":
                self.send_error(500)
            case "redirect":
                self.send_response(302)
                self.send_header("Location", f"/jpeg/{number}")
                self.end_headers()
            case "html":
                self._answer(b"<!DOCTYPE html><html><body>Sign in</body></html>", "image/jpeg")
            case "reset":
                self._reset(body("jpeg", int(number)))
            case "cut":  # says nothing of its length, so that only the picture itself shows the cut
                self._answer(body("jpeg", int(number))[:700], "image/jpeg", length=False)
            case "never":
                self.server.closing.wait(30)
            case _:
                time.sleep(SLOW_SECONDS if kind == "slow" else 0)
                self._answer(body(kind, int(number)), "image/jpeg", robots="noai" if kind == "noai" else None)

    def _answer(self, data: bytes, content: str, robots: str | None = None, length: bool = True) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content)
        if length:
            self.send_header("Content-Length", str(len(data)))
        if robots:
            self.send_header("X-Robots-Tag", robots)
        self.end_headers()
        self.wfile.write(data)

    def _reset(self, data: bytes) -> None:
        """Half of the body, then a RST in place of the rest."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        pass


class WebServer(ThreadingHTTPServer):
    """asked: how often each path was; agents: who asked."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: Counter[str] = Counter()
        self.agents: set[str] = set()
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that went away


@contextmanager
def serving() -> Iterator[WebServer]:
    server = WebServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
