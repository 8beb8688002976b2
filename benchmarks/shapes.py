"""A web of coloured shapes to try the way from a table of URLs to prompts on: a server on loopback, a table, a tiny CLIP.

    python benchmarks/shapes.py FOLDER [--port 8765] [--count 3000]

writes FOLDER/cc3m.tsv (caption, tab, URL: "a red circle on grey paper"), FOLDER/clip, a CLIP of random weights whose tokens are
letters, and then serves the pictures until Ctrl-C. Of every 50, one is missing, one is HTML, one is cut short, one is an error of
the server, one is at a host that does not answer, and two take half a second. docs/results.md says what was made of it.
"""

import argparse
import io
import random
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 220), "yellow": (230, 210, 40)}
SHAPES = ("circle", "square", "triangle")
EVERY = 50  # pictures; what number of them is broken, and how:
MISSING, HTML, CUT, ERROR, DEAD, SLOW = 7, 13, 21, 33, 40, (3, 4)


def chosen(number: int) -> tuple[str, str, random.Random]:
    """Colour and shape of a picture, and what else is random about it."""
    rng = random.Random(number)
    return rng.choice(list(COLOURS)), rng.choice(SHAPES), rng


def picture(number: int) -> bytes:
    """A JPEG of about 320 x 256 pixels: one shape on paper that is nearly white."""
    colour, shape, rng = chosen(number)
    width, height = rng.choice([(320, 256), (256, 320), (400, 300)])
    image = Image.new("RGB", (width, height), (rng.randint(200, 255),) * 3)
    draw, x, y = ImageDraw.Draw(image), width // 2 + rng.randint(-20, 20), height // 2 + rng.randint(-20, 20)
    size = rng.randint(60, 100)
    box, fill = [x - size, y - size, x + size, y + size], COLOURS[colour]
    if shape == "circle":
        draw.ellipse(box, fill=fill)
    elif shape == "square":
        draw.rectangle(box, fill=fill)
    else:
        draw.polygon([(x, y - size), (x - size, y + size), (x + size, y + size)], fill=fill)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


class Web(BaseHTTPRequestHandler):
    """Answers /NUMBER.jpg."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        number = int(Path(self.path).stem)
        kind = number % EVERY
        time.sleep(0.5 * (kind in SLOW))
        code = {MISSING: 404, ERROR: 500}.get(kind, 200)
        body = b"<html>moved</html>" if kind in (MISSING, ERROR, HTML) else picture(number)
        body = body[:900] if kind == CUT else body
        self.send_response(code)
        self.send_header("Content-Type", "text/html" if kind == HTML else "image/jpeg")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Writes the table and the encoder, then serves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--count", type=int, default=3000, help="pictures")
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.encoders.making import tiny_clip

    tiny_clip(args.folder / "clip")
    with (args.folder / "cc3m.tsv").open("w") as table:
        for number in range(args.count):
            colour, shape, _ = chosen(number)
            port = 9 if number % EVERY == DEAD else args.port  # nobody listens at 9
            table.write(f"a {colour} {shape} on grey paper\thttp://127.0.0.1:{port}/{number}.jpg\n")
    print(f"{args.folder}/cc3m.tsv and {args.folder}/clip are there; serving until Ctrl-C")
    ThreadingHTTPServer.request_queue_size = 256
    ThreadingHTTPServer(("127.0.0.1", args.port), Web).serve_forever()


if __name__ == "__main__":
    main()
