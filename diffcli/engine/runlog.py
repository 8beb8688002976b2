"""A run directory and what is written into it: preset, log lines, TensorBoard, preview grids, checkpoints.

    RUN/ preset.yaml  log.jsonl  tensorboard/  previews/step-00001000.png  checkpoints/step-00001000/

A log line is a function of the step alone, but for `images_per_s` and `time`; a resumed run drops the lines past its start, so
its log reads as if nothing had happened.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
from torch import Tensor

from diffcli.checkpoint import checkpoints
from diffcli.config import RunFailed, UserError
from diffcli.engine.images import grid, to_uint8

CLOCKED = ("images_per_s", "time")  # the fields of a log line that differ from run to run


class RunDir:
    """The paths of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.preset = path / "preset.yaml"
        self.log = path / "log.jsonl"
        self.checkpoints = path / "checkpoints"

    def claim(self) -> None:
        """Makes the directory for a new run. Raises UserError where it holds a run or cannot be written."""
        found = checkpoints(self.checkpoints)
        if found:
            raise UserError(
                f"--run-dir {self.path}: already holds checkpoints up to {found[-1].name}",
                f"go on with `diffcli resume {self.path}`, or give another --run-dir",
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
            self.log.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"--run-dir {self.path}: cannot be written ({error.strerror})", "give a folder of yours with --run-dir"
            ) from error


class RunLog:
    """Writes the log, TensorBoard and the previews of a run from step `start` on."""

    def __init__(self, run: RunDir, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.run = run
        self._started = time.time() - _rewind(run.log, start)
        self._file = run.log.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run.path / "tensorboard"), purge_step=start + 1 if start else None)

    def line(self, step: int, values: Mapping[str, float]) -> dict[str, Any]:
        """Appends one JSON object; returns it."""
        record = {"step": step, **values, "time": round(time.time() - self._started, 3)}
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        except OSError as error:
            raise self._full(error) from error
        return record

    def preview(self, step: int, images: Tensor) -> Path:
        """Writes a grid of images (B, C, H, W) in [-1, 1]."""
        path = self.run.path / "previews" / f"step-{step:08d}.png"
        picture = grid(to_uint8(images))
        try:
            path.parent.mkdir(exist_ok=True)
            imageio.imwrite(path, picture.squeeze(-1) if picture.shape[-1] == 1 else picture)
            self._board.add_image("preview", picture, step, dataformats="HWC")
        except OSError as error:
            raise self._full(error) from error
        return path

    def close(self) -> None:
        """Flushes and closes what is open; a disk that is full has been told of by whoever wrote."""
        for file in (self._file, self._board):
            with suppress(OSError):
                file.close()

    def _full(self, error: OSError) -> RunFailed:
        kept = checkpoints(self.run.checkpoints)
        usable = f"; {kept[-1]} stays usable" if kept else ""
        return RunFailed(
            f"{self.run.path}: cannot write the log ({error.strerror}){usable}",
            f"free some disk space, then `diffcli resume {self.run.path}`",
        )


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a log; a last line cut short by a crash is left out."""
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                return


def _rewind(path: Path, start: int) -> float:
    """Drops the lines past step `start`; returns the seconds that the run had taken by then."""
    kept = [line for line in read_log(path) if line["step"] <= start]
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    partial.replace(path)
    return kept[-1]["time"] if kept else 0.0
