"""Shards made on the spot, and a server on loopback that serves them well or badly."""

import io
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import torch

from diffcli.data.stream.opening import Patience
from diffcli.data.stream.stream_data import Stream
from tests.data.making import png

QUICK = Patience(retries=3, pause=0.001, timeout=5)


def tar(members: Mapping[str, bytes], **options: object) -> bytes:
    """A tar of these files, in this order."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def picture(value: int, size: int = 2) -> bytes:
    """A grey PNG whose pixels all are value % 256."""
    return png(np.full((1, size, size), value % 256, dtype=np.uint8))


def shard(first: int, count: int, **more: bytes) -> bytes:
    """`count` samples from number `first` on: image of that grey value, label number % 10, caption 'number N'."""
    members: dict[str, bytes] = {}
    for number in range(first, first + count):
        key = f"{number:06d}"
        members |= {f"{key}.png": picture(number), f"{key}.cls": str(number % 10).encode()}
        members |= {f"{key}.txt": f"number {number}".encode(), f"{key}.emb.npy": vector(number)}
    return tar(members | {name.replace("__", "."): data for name, data in more.items()})


def vector(number: int) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([number, -number], dtype=np.float16))
    return file.getvalue()


def write_shards(folder: Path, sizes: list[int]) -> str:
    """Writes shards of so many samples, numbered through; returns their names with braces."""
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    for number, size in enumerate(sizes):
        (folder / f"train-{number:06d}.tar").write_bytes(shard(first, size))
        first += size
    return f"{folder}/train-{{000000..{len(sizes) - 1:06d}}}.tar"


def stream(shards: object, **more: object) -> Stream:
    options = {"size": 2, "channels": 1, "pause": 0.001, "retries": 3, "timeout": 5}
    return Stream(shards=shards, **{**options, **more})


def numbers(config: Stream, steps: int, batch_size: int, *, rank: int = 0, world: int = 1, first: int = 0, **more):
    """The numbers of the samples of each step of a rank, and the feed: (steps, rows) and StreamFeed."""
    data = config.build("train").select({"text"})
    feed = data.feed(batch_size, more.pop("seed", 0), rank, world, more.pop("marks", None))
    options = {"flip": False, "device": torch.device("cpu"), "workers": 0} | more
    seen = [
        [int(text.split()[-1]) for text in batch["text"]] for _, batch in feed.batches(first, first + steps, **options)
    ]
    return seen, feed


class Server(ThreadingHTTPServer):
    """Serves files by name. ranges: whether it honours Range. drop: bytes after which a body ends. slow: seconds before it."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = dict(files)
        self.ranges, self.drop, self.slow, self.busy = True, 0, 0.0, 0
        self.tag, self.heeds_tags, self.shift = (
            "",
            True,
            0,
        )  # ETag; whether it heeds If-Range; bytes by which a range is wrong
        self.next: dict[str, bytes] | None = None  # the files after the next answer, whose tag is another
        self.released = threading.Event()  # ends what is slow
        self.asked: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name, wanted = self.path.lstrip("/").partition("?")[0], self.headers.get("Range")
        self.server.asked.append((name, wanted))
        self.server.released.wait(self.server.slow)
        if self.server.busy:
            self.server.busy -= 1
            self.send_error(503)
            return
        if name not in self.server.files:
            self.send_error(404)
            return
        data, start = self.server.files[name], 0
        held = self.headers.get("If-Range", self.server.tag)
        if wanted and self.server.ranges and (held == self.server.tag or not self.server.heeds_tags):
            start = int(wanted.removeprefix("bytes=").rstrip("-")) + self.server.shift
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if self.server.tag:
            self.send_header("ETag", self.server.tag)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.server.next is not None:
            self.server.files, self.server.next = self.server.next, None
            self.server.tag = self.server.tag and f"{self.server.tag}-2"
        body = data[start:]
        with suppress(BrokenPipeError, ConnectionResetError):  # a reader that has seen enough
            self.wfile.write(body[: self.server.drop] if self.server.drop else body)

    def log_message(self, *told: object) -> None:
        """Says nothing."""


@contextmanager
def serving(files: Mapping[str, bytes]) -> Iterator[Server]:
    server = Server(files)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
