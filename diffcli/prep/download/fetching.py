"""The separate process in which img2dataset runs: `python -m diffcli.prep.download.fetching JOB.json`.

img2dataset downloads rows [k * n, (k + 1) * n) of a table into shard k, in the order in which they come: `k.tar`, `k.parquet`
with one row a URL (its status and error) and last `k_stats.json`, which marks the shard as complete. Shards that have one are
skipped. img2dataset prints, installs signal handlers and calls sys.exit, none of which may affect the main process.
"""

import io
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import IO, Literal

from PIL import Image

from diffcli.config import Config
from diffcli.data.pixels import BrokenImage, open_image, to_png

TOO_SMALL = "image too small"  # img2dataset's words
HTML = "HTML, not an image"
OPT_OUTS = ("noai", "noimageai", "noindex", "noimageindex")  # values of X-Robots-Tag by which an owner refuses
AGENT = "diffcli"  # by which a server may address us in X-Robots-Tag


class FetchJob(Config):
    """A download. size: the shorter side of larger images in pixels; smaller ones, down to min_size, are not resized."""

    table: Path
    folder: Path
    rows_per_shard: int
    processes: int
    threads: int
    size: int
    min_size: int
    encode: Literal["jpg", "png"]
    quality: int
    timeout: int
    retries: int
    obey_opt_out: bool
    distributor: Literal["multiprocessing", "pyspark", "ray"]


class Resizer:
    """Takes the place of img2dataset's resizer in mode keep_ratio, with resize_only_if_bigger.

    The original ignores EXIF orientation, clips 16-bit pixels, and accepts truncated JPEGs; this one decodes as the other
    kinds of prep-data do.
    """

    def __init__(
        self, image_size: int, min_image_size: int, encode_format: str, encode_quality: int, **others: object
    ) -> None:
        self.size, self.min_size, self.format, self.quality = image_size, min_image_size, encode_format, encode_quality

    def __call__(
        self, stream: IO[bytes], boxes: object = None
    ) -> tuple[bytes | None, int | None, int | None, int | None, int | None, str | None]:
        """(encoded image, width, height, width before, height before, None) or (None, ..., why not)."""
        stream.seek(0)
        data = stream.read()
        if _is_html(data):
            return None, None, None, None, None, HTML
        try:
            image = open_image(data, "")
        except BrokenImage as error:
            return None, None, None, None, None, error.reason
        before, short = image.size, min(image.size)
        if short < self.min_size:
            return None, None, None, None, None, TOO_SMALL
        if short > self.size:
            sides = tuple(max(1, round(side * self.size / short)) for side in before)
            image = image.resize((sides[0], sides[1]), Image.Resampling.LANCZOS)
        return self._encode(image), *image.size, *before, None

    def _encode(self, image: Image.Image) -> bytes:
        if self.format == "png":
            return to_png(image)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=self.quality)
        return file.getvalue()


def _is_html(data: bytes) -> bool:
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script"))


def fetch(job: FetchJob) -> None:
    """Downloads every shard that has no statistics yet."""
    img2dataset = import_module("img2dataset.main")  # the package calls a function by the same name

    from diffcli.prep.download.fetching import Resizer as Importable  # not __main__'s: workers find it by its name

    img2dataset.Resizer = Importable  # type: ignore[attr-defined]
    img2dataset.download(
        url_list=str(job.table),
        input_format="parquet",
        url_col="url",
        caption_col="caption",
        output_folder=str(job.folder),
        output_format="webdataset",
        number_sample_per_shard=job.rows_per_shard,
        processes_count=job.processes,
        thread_count=job.threads,
        image_size=job.size,
        resize_mode="keep_ratio",
        resize_only_if_bigger=True,
        min_image_size=job.min_size,
        encode_format=job.encode,
        encode_quality=job.quality,
        timeout=job.timeout,
        retries=job.retries,
        extract_exif=False,
        compute_hash="sha256",
        enable_wandb=False,
        incremental_mode="incremental",
        distributor=job.distributor,
        user_agent_token=AGENT,
        disallowed_header_directives=list(OPT_OUTS) if job.obey_opt_out else [],
    )


def _end_with_parent() -> None:
    """Ends this process and its workers when the main process ends, also by a kill: its end of our stdin then closes."""
    os.read(sys.stdin.fileno(), 1)  # not through its buffer, whose lock would be held while we end
    os.killpg(0, signal.SIGKILL)  # the group is our own: started with start_new_session


if __name__ == "__main__":
    Thread(target=_end_with_parent, daemon=True).start()
    fetch(FetchJob.model_validate_json(Path(sys.argv[1]).read_bytes()))
