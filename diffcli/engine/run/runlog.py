"""A run directory and what is written into it: preset, log lines, TensorBoard, preview grids, checkpoints.

    RUN/ preset.yaml  log.jsonl  tensorboard/  previews/step-00001000.png  checkpoints/step-00001000/
         snapshots/step-00001000-std-0.050.safetensors ... where train.ema is of the kind power

A log line is a function of the step alone, but for `images_per_s`, `data_wait` (the share of time that went by waiting for
data since the line before) and `time`; a resumed run drops the lines past its start, so its log reads as if nothing had happened.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
from torch import Tensor

from diffcli.checkpoint import checkpoints
from diffcli.config import UserError, quoted
from diffcli.data.lock import LOCK, only_writer
from diffcli.engine.draw.pictures import grid
from diffcli.fields import to_levels

LEFT = ("preset.yaml", "log.jsonl", "tensorboard", "previews", "snapshots")  # what a run writes beside its checkpoints
SUPERSEDED = "superseded"  # where what a run leaves behind goes
CLOCKED = ("images_per_s", "data_wait", "time")  # the fields of a log line that differ from run to run


class RunDir:
    """The paths of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.preset = path / "preset.yaml"
        self.log = path / "log.jsonl"
        self.checkpoints = path / "checkpoints"
        self.snapshots = path / "snapshots"
        self._begun = False

    def claim(self) -> None:
        """Makes the directory for a new run. Raises UserError where it holds a run, is in use or cannot be written."""
        self.check_new()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
            with only_writer(self.path):
                pass
        except OSError as error:
            raise UserError(
                f"--run-dir {self.path}: cannot be written ({error.strerror})", "give a folder of yours with --run-dir"
            ) from error

    def check_new(self) -> None:
        """Raises UserError where the directory holds a run that can be resumed."""
        found = checkpoints(self.checkpoints)
        if found:
            raise UserError(
                f"--run-dir {self.path}: already holds checkpoints up to {found[-1].name}",
                f"go on with `diffcli resume {quoted(self.path)}`, or give another --run-dir",
            )

    def leftovers(self) -> list[Path]:
        """What a run that ended before its first checkpoint has left here, or whoever else uses these names."""
        return [path for name in LEFT if (path := self.path / name).exists()]

    def kept_leftovers(self) -> Path:
        """Where `begin` moves the leftovers: RUN/superseded/N."""
        number = 1
        while (self.path / SUPERSEDED / str(number)).exists():
            number += 1
        return self.path / SUPERSEDED / str(number)

    def notes(self) -> list[str]:
        """What becomes of the leftovers, for the person."""
        names = ", ".join(path.name for path in self.leftovers())
        return [f"{self.path} holds {names} without a checkpoint: moved to {self.kept_leftovers()}"] if names else []

    def begin(self) -> None:
        """Moves leftovers away, so that no curve and no picture of another run stands among those of this one."""
        left, kept = self.leftovers(), self.kept_leftovers()
        for path in left:
            kept.mkdir(parents=True, exist_ok=True)
            path.rename(kept / path.name)
        self._begun = True

    def abandon(self) -> None:
        """Removes what this run has written since `begin`, if that tells of no step at all: a failed start leaves nothing."""
        told = next(read_log(self.log), None) or (self.path / "previews").exists() or self.snapshots.exists()
        if not self._begun or told or self.checkpoints.exists():
            return
        for path in (self.preset, self.log):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.path / "tensorboard", ignore_errors=True)

    @property
    def held(self) -> bool:
        """Whether a writer has been in it and has not left it in order."""
        return (self.path / LOCK).is_file()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other writers out. Raises UserError where one is in, or the directory cannot be written."""
        with ExitStack() as stack:
            with self.writing():
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(only_writer(self.path))
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """What the file system refuses within it becomes a UserError that names what and the checkpoint that is left."""
        try:
            yield
        except OSError as error:
            kept = checkpoints(self.checkpoints)
            usable = f"; {kept[-1]} stays usable" if kept else ""
            again = f", then `diffcli resume {quoted(self.path)}`" if kept else ""
            raise UserError(
                f"{error.filename or self.path}: cannot be written ({error.strerror or error}){usable}",
                f"free some disk space, or mend what stands there and its permissions{again}",
            ) from error


class RunLog:
    """Writes the log, TensorBoard and the previews of a run from step `start` on."""

    def __init__(self, run: RunDir, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.run = run
        with run.writing():
            self._board = SummaryWriter(str(run.path / "tensorboard"), purge_step=start + 1 if start else None)
            self._started = time.time() - _rewind(run.log, start)
            self._file = run.log.open("a", encoding="utf-8")

    def line(self, step: int, values: Mapping[str, float], remarks: Sequence[str] = ()) -> dict[str, Any]:
        """Appends one JSON object; returns it. remarks: what is to be said of the values, as its `remarks`, if anything."""
        record: dict[str, Any] = {"step": step, **values, "time": round(time.time() - self._started, 3)}
        if remarks:
            record["remarks"] = list(remarks)
        with self.run.writing():
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        return record

    def preview(self, step: int, images: Tensor) -> Path:
        """Writes a grid of images (B, C, H, W) in [-1, 1]."""
        path = self.run.path / "previews" / f"step-{step:08d}.png"
        picture = grid(to_levels(images).cpu())
        with self.run.writing():
            path.parent.mkdir(exist_ok=True)
            imageio.imwrite(path, picture.squeeze(-1) if picture.shape[-1] == 1 else picture)
            self._board.add_image("preview", picture, step, dataformats="HWC")
        return path

    def close(self) -> None:
        """Flushes and closes what is open; a disk that is full has been told of by whoever wrote."""
        for file in (self._file, self._board):
            with suppress(OSError):
                file.close()


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log that are whole; one cut short by a crash, or that tells no step, is left out."""
    if path.is_file():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                yield line


def _rewind(path: Path, start: int) -> float:
    """Drops the lines past step `start`; returns the seconds that the run had taken by then."""
    kept = [line for line in read_log(path) if line["step"] <= start]
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    partial.replace(path)
    taken = kept[-1].get("time") if kept else None
    return float(taken) if isinstance(taken, int | float) else 0.0
