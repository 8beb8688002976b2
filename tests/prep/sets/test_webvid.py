"""prep-data webvid: clips from a folder or from a server that answers like the web; every frame is decoded."""

import io
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
from PIL import Image

from diffcli.config import RunFailed, UserError
from diffcli.data.pixels import BrokenImage
from diffcli.data.shards import ShardFiles, open_shards
from diffcli.prep.items import Download, SourceOptions
from diffcli.prep.prepare import prepare
from diffcli.prep.sets import clips
from diffcli.prep.sets.clips import Manners, decoded_clip, fetch
from tests.conftest import Cli
from tests.data.making import contents, read, run
from tests.prep.reading import skipped, texts

QUICK = Manners(timeout=0.5, retries=2, obey_opt_out=True, pause=0.01)


def clip(number: int, frames: int = 10) -> bytes:
    """An MP4 of 32x16 pixels: grey grows from frame to frame, each clip at its own pace."""
    greys = [np.full((16, 32, 3), 20 + (number + 1) * 2 * t, np.uint8) for t in range(frames)]
    return imageio.imwrite("<bytes>", np.stack(greys), extension=".mp4", fps=10, codec="libx264", macro_block_size=16)


CLIPS = [clip(number) for number in range(4)]


def table(path: Path, rows: list[str]) -> Path:
    path.write_text("\n".join(["videoid,contentUrl,duration,page_dir,name", *rows]))
    return path


def videos(root: Path, split: str = "train") -> list[bytes]:
    files = ShardFiles(root, open_shards(root, "root"), split).field("video")
    return [files.read(number) for number in range(len(files))]


class Server(BaseHTTPRequestHandler):
    """/KIND/NUMBER.mp4. seen: how often each path was asked for; ranges: what was asked for in parts."""

    seen: Counter[str]
    ranges: list[str]

    def do_GET(self) -> None:
        kind, data = self.path.split("/")[1], CLIPS[int(self.path.split("/")[2][0])]
        self.seen[self.path] += 1
        first = self.seen[self.path] == 1
        start = int((self.headers["Range"] or "bytes=0-")[6:-1])
        self.ranges += [self.headers["Range"]] if start else []
        match kind:
            case "gone":
                self.answer(404, b"")
            case "busy" if first:
                self.answer(503, b"", {"Retry-After": "0"})
            case "html":
                self.answer(200, b"<!DOCTYPE html><html>")
            case "noai":
                self.answer(200, data, {"X-Robots-Tag": "noindex, noai"})
            case "silent":
                time.sleep(1)
            case "cut" if first:
                self.answer(200, data[: len(data) // 2], {"Content-Length": str(len(data))})
            case "cut":
                self.answer(206, data[start:], {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})
            case "large":
                self.answer(200, b"", {"Content-Length": str(1 << 40)})
            case _:
                self.answer(200, data)

    def answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """In silence."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(clips, "_unreached", 0)
    Server.seen, Server.ranges = Counter(), []
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def test_local_clips_end_to_end(tmp_path: Path, cli: Cli):
    root = tmp_path / "in"
    (root / "videos/page1").mkdir(parents=True)
    for number in range(3):
        (root / f"videos/page1/10{number}.mp4").write_bytes(CLIPS[number])
    table(root / "results_2M_train.csv", ['100,u,PT1S,page1,"A cat, slowly"', "102,u,PT1S,page1,猫"])
    table(root / "results_2M_val.csv", ["101,u,PT1S,page1,held out"])
    done = cli("prep-data", "webvid", root, "--out", tmp_path / "out", "--workers", 1)
    assert done.code == 0, done.err
    assert "3 clips" in done.out
    assert videos(tmp_path / "out") == [CLIPS[0], CLIPS[2]]
    assert videos(tmp_path / "out", "test") == [CLIPS[1]]
    assert texts(tmp_path / "out") == [["A cat, slowly"], ["猫"]]
    prepared = open_shards(tmp_path / "out", "x")
    assert {name: note.kind for name, note in prepared.fields.items()} == {"text": "text", "video": "video"}
    assert prepared.size == (16, 32)
    fields = read(tmp_path / "out", 16, 3)
    assert fields.keys() == {"image", "text"}
    for number, image in zip((0, 2), fields["image"].float(), strict=True):
        assert abs(image.mean() - (20 + (number + 1) * 2 * 4)) < 3, "frame 5 of 10"


def test_the_middle_frame_is_a_jpeg_and_a_cut_clip_is_told():
    frame = Image.open(io.BytesIO(decoded_clip(clip(1, frames=21), "x").middle))
    assert (frame.format, frame.size) == ("JPEG", (32, 16))
    assert abs(np.asarray(frame).mean() - (20 + 4 * 10)) < 3
    for data, reason in (
        (b"", "not an MP4"),
        (b"<html>", "HTML"),
        (CLIPS[0][: len(CLIPS[0]) // 2], "not an MP4"),  # its table of contents is at the end
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/passwd\n", "not an MP4"),
    ):
        with pytest.raises(BrokenImage, match=reason):
            decoded_clip(data, "x")
    with pytest.raises(BrokenImage, match=r"it ends after \d+ of about 60 frames"):
        decoded_clip(without_its_last_frames(clip(0, frames=60)), "x")


def without_its_last_frames(data: bytes) -> bytes:
    """The same file with zeros in the last two thirds of its frames."""
    start = data.index(b"mdat") + 4
    end = data.index(b"moov") - 4
    keep = start + (end - start) // 3
    return data[:keep] + bytes(end - keep) + data[end:]


def test_clips_are_fetched_and_failures_are_listed(tmp_path: Path, server: str, cli: Cli):
    kinds = ["ok", "gone", "busy", "html", "noai", "silent", "cut", "large"]
    rows = [f"{n},{server}/{kind}/{n % 4}.mp4,x,p,clip {n}" for n, kind in enumerate(kinds)]
    rows += ["8,file:///etc/passwd,x,p,no", "9,,x,p,no", "10,a,b,c,d,e,f"]
    source = table(tmp_path / "results_2M_train.csv", rows)
    arguments = ["--workers", 1, "--timeout", 1, "--retries", 1]
    done = cli("prep-data", "webvid", source, "--out", tmp_path / "out", *arguments)
    assert done.code == 0, done.err
    assert texts(tmp_path / "out") == [["clip 0"], ["clip 2"], ["clip 6"]]
    assert videos(tmp_path / "out") == [CLIPS[0], CLIPS[2], CLIPS[2]]
    assert len(Server.ranges) == 1, "a transfer that broke off went on where it stopped"
    reasons = {int(name.split(": ")[1]): reason for name, reason in skipped(tmp_path / "out").items()}
    assert reasons == {
        1: "HTTP 404",
        3: "it is HTML, not a video",
        4: "its owner opted out (X-Robots-Tag)",
        5: "its host cannot be reached",
        7: "it is larger than 256 MiB",
        8: "its address is not http or https",
        9: "its address is not http or https",
        10: "it has 7 fields, not 5",
    }
    assert Server.seen["/gone/1.mp4"] == 1, "what is gone is not asked for again"


def test_a_stopped_run_goes_on_to_the_same_bytes_and_fetches_the_rest_alone(tmp_path: Path, server: str):
    source = table(tmp_path / "t.csv", [f"{n},{server}/ok/{n}.mp4,x,p,clip {n}" for n in range(4)])
    options = SourceOptions(download=Download(timeout=2, retries=0))
    run("webvid", source, tmp_path / "whole", images_per_shard=1, options=options, size=8)
    Server.seen.clear()
    stopped = prepare("webvid", source, tmp_path / "out", images_per_shard=1, options=options, size=8)
    next(stopped), next(stopped), next(stopped)
    stopped.close()
    run("webvid", source, tmp_path / "out", images_per_shard=1, options=options, size=8)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert set(Server.seen.values()) == {1}
    assert open_shards(tmp_path / "out", "x").size == (8, 8)


def test_a_network_that_is_down_stops_the_run_instead_of_listing_everything(server: str):
    assert fetch(f"{server}/ok/1.mp4", "x", QUICK) == CLIPS[1]
    dead = "http://127.0.0.1:9/1.mp4"
    for _ in range(clips.MANY - 1):
        with pytest.raises(BrokenImage, match="cannot be reached"):
            fetch(dead, "x", QUICK._replace(retries=0))
    assert fetch(f"{server}/ok/1.mp4", "x", QUICK) == CLIPS[1]
    for _ in range(clips.MANY - 1):
        with pytest.raises(BrokenImage, match="cannot be reached"):
            fetch(dead, "x", QUICK._replace(retries=0))
    with pytest.raises(RunFailed, match="20 clips in a row"):
        fetch(dead, "x", QUICK._replace(retries=0))


def test_opting_out_can_be_overruled_by_who_may(server: str):
    with pytest.raises(BrokenImage, match="opted out"):
        fetch(f"{server}/noai/1.mp4", "x", QUICK)
    assert fetch(f"{server}/noai/1.mp4", "x", QUICK._replace(obey_opt_out=False)) == CLIPS[1]


def test_mistakes_are_told_before_anything_is_fetched(tmp_path: Path, cli: Cli):
    done = cli("prep-data", "webvid", "--out", tmp_path / "out")
    assert done.code == 2
    assert "results_2M_train.csv" in done.err
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match=r"holds no \.mp4"):
        run("webvid", tmp_path / "in", tmp_path / "out")
    (tmp_path / "in/1.mp4").write_bytes(CLIPS[1])
    with pytest.raises(UserError, match=r"no \.csv that captions them"):
        run("webvid", tmp_path / "in", tmp_path / "out")
    bad = tmp_path / "bad.csv"
    bad.write_text("id,words\n1,x\n")
    with pytest.raises(UserError, match="it has id, words"):
        run("webvid", bad, tmp_path / "out")
    report = run("webvid", tmp_path / "in", tmp_path / "out", options=SourceOptions(table=bad, caption_col="words"))
    assert report.written == 1
    bad.write_text("id,words\n1,x\n../1,y\n2,z\n")
    run("webvid", tmp_path / "in", tmp_path / "two", options=SourceOptions(table=bad, caption_col="words"))
    assert skipped(tmp_path / "two") == {
        "bad.csv, line 3: ../1": "SOURCE has no '../1.mp4'",
        "bad.csv, line 4: 2": "SOURCE has no '2.mp4'",
    }
