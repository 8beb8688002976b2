"""A run directory and its files: preset, log lines, curves, trackers, preview grids, checkpoints.

    RUN/ preset.yaml  log.jsonl  tensorboard/  previews/step-00001000.png  checkpoints/step-00001000/
         loss.png, the curves of the log  preview.png, the newest of previews/
         previews/step-00001000.webp  preview.webp, where clips are modelled
         snapshots/step-00001000-std-0.050.safetensors ... where train.ema is of the kind power

A log line is a function of the step alone, but for `images_per_s`, `data_wait` (the share of time that went by waiting for
data since the line before) and `time`; a resumed run drops the lines past its start, so its log equals that of an uninterrupted
run.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from diffcli.checkpoint import checkpoints
from diffcli.config import UserError, quoted
from diffcli.data.clips.film_writing import FASTEST, encoded, write_frames
from diffcli.data.lock import LOCK, only_writer
from diffcli.engine.draw.clips.lengths import trained_fps
from diffcli.engine.draw.out_files import whole
from diffcli.engine.draw.pictures import write_png
from diffcli.engine.draw.sheets.arrangement import CLIPS, Arrangement
from diffcli.engine.run.showing import curves, trackers
from diffcli.fields import to_levels
from diffcli.lookup.checkpoint_files import SUPERSEDED
from diffcli.lookup.run_folders import check_new, unwritable
from diffcli.preset import Preset

TRACKED = ("tensorboard", "trackio", "wandb")  # where trackers write
PICTURES = ("loss.png", "preview.png", "preview.webp")
LEFT = (
    "preset.yaml",
    "log.jsonl",
    *PICTURES,
    "previews",
    "snapshots",
    *TRACKED,
)  # what a run writes beside its checkpoints
REDRAWN = 20.0  # seconds between two drawings of the curves
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
        """Makes the directory for a new run. Raises UserError if it holds a run, is in use or cannot be written."""
        check_new(self.path)
        try:
            str(self.path).encode()
        except UnicodeEncodeError:
            problem = f"--run-dir {self.path}: is no UTF-8, and weights cannot be written under such a name"
            raise UserError(problem, "give another, for example --run-dir runs/mine") from None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
            with only_writer(self.path):
                pass
        except OSError as error:
            raise unwritable(self.path, error.strerror) from error

    def check_apart(self, data: Path | None) -> None:
        """Raises UserError where the directory is the folder of the data, among which its previews would lie."""
        if data is not None and self.path.resolve() == data.expanduser().resolve():
            problem = f"--run-dir {self.path}: is the folder of the data"
            raise UserError(
                problem, f"give another, such as --run-dir {quoted(Path('runs') / self.path.resolve().name)}"
            )

    def leftovers(self) -> list[Path]:
        """Files of a run that ended before its first checkpoint, or files of other programs with the same names."""
        return [path for name in LEFT if (path := self.path / name).exists()]

    def kept_leftovers(self) -> Path:
        """The folder to which `begin` moves the leftovers: RUN/superseded/N."""
        number = 1
        while (self.path / SUPERSEDED / str(number)).exists():
            number += 1
        return self.path / SUPERSEDED / str(number)

    def notes(self) -> list[str]:
        """Notes for the user about the leftovers."""
        names = ", ".join(path.name for path in self.leftovers())
        return [f"{self.path} holds {names} without a checkpoint: moved to {self.kept_leftovers()}"] if names else []

    def begin(self) -> None:
        """Moves leftovers away, so that curves and pictures of another run do not mix with those of this one."""
        left, kept = self.leftovers(), self.kept_leftovers()
        for path in left:
            kept.mkdir(parents=True, exist_ok=True)
            path.rename(kept / path.name)
        self._begun = True

    def abandon(self) -> None:
        """Removes the files written since `begin` if no step has been logged, so that a failed start leaves no files."""
        logged = next(read_log(self.log), None) or (self.path / "previews").exists() or self.snapshots.exists()
        if not self._begun or logged or self.checkpoints.exists():
            return
        for path in (self.preset, self.log):
            path.unlink(missing_ok=True)
        for name in TRACKED:
            shutil.rmtree(self.path / name, ignore_errors=True)

    @property
    def held(self) -> bool:
        """Whether a writer has locked it and not released it properly."""
        return (self.path / LOCK).is_file()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the run for this writer. Raises UserError if another process has it, or if the directory cannot be written."""
        with ExitStack() as stack:
            with self.writing():
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(only_writer(self.path))
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Context that turns errors of the file system into a UserError with the file and the last usable checkpoint."""
        try:
            yield
        except OSError as error:
            kept = checkpoints(self.checkpoints)
            usable = f"; {kept[-1]} stays usable" if kept else ""
            again = f", then `diffcli resume {quoted(self.path)}`" if kept else ""
            raise UserError(
                f"{error.filename or self.path}: cannot be written ({error.strerror or error}){usable}",
                f"free some disk space, or check that path and its permissions{again}",
            ) from error


class RunLog:
    """Writes the log, TensorBoard and the previews of a run from step `start` on."""

    def __init__(self, run: RunDir, start: int, preset: Preset) -> None:
        self.run = run
        with run.writing():
            self._trackers = trackers.opened(preset.train.log, run.path, preset, start)
            self._lines = _rewind(run.log, start)
            taken = self._lines[-1].get("time") if self._lines else None
            self._fps = trained_fps(preset)
            self._started = time.time() - (float(taken) if isinstance(taken, int | float) else 0.0)
            self._drawn = time.monotonic()  # when the curves were
            self._file = run.log.open("a", encoding="utf-8")

    def line(
        self,
        step: int,
        values: Mapping[str, float],
        remarks: Sequence[str] = (),
        words: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Appends one JSON object; returns it.

        remarks: sentences about the values, for its field `remarks`. words: further fields that are not numbers.
        """
        record: dict[str, Any] = {
            "step": step,
            **values,
            **(words or {}),
            "time": round(time.time() - self._started, 3),
        }
        if remarks:
            record["remarks"] = list(remarks)
        with self.run.writing():
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
            for tracker in self._trackers:
                tracker.line(step, values)
        self._lines.append(record)
        if time.monotonic() - self._drawn > REDRAWN:
            self.curves()
        return record

    def preview(
        self, step: int, images: Tensor, captions: Sequence[str] | None = None, fps: float | None = None
    ) -> Path:
        """Writes a grid of images (B, C, H, W) in [-1, 1], and the same as preview.png; returns its path. captions: one an image.

        Of clips (B, C, T, H, W) the grid shows the middle frames, and an animation beside it, of `fps` frames a second, all.
        """
        path = self.run.path / "previews" / f"step-{step:08d}.png"
        levels, layout = to_levels(images).cpu(), Arrangement(captions=captions)
        moving = levels.ndim == CLIPS
        picture = layout.sheet(levels[:, :, levels.shape[2] // 2] if moving else levels)
        with self.run.writing():
            path.parent.mkdir(exist_ok=True)
            write_png(path, picture)
            with whole(self.run.path / "preview.png") as partial:
                write_png(partial, picture)
            film = None
            if moving:
                sheets, rate = layout.sheets(levels), fps or self._fps
                for place in (path.with_suffix(".webp"), self.run.path / "preview.webp"):
                    with whole(place) as partial:
                        write_frames(partial, sheets, rate, exact=True)
                film = encoded(".gif", sheets, min(rate, FASTEST[".gif"])) if self._trackers else None
            for tracker in self._trackers:
                tracker.preview(step, picture, film)
        return path

    def curves(self) -> None:
        """Draws the losses so far."""
        with self.run.writing():
            curves.write(self._lines, self.run.path / "loss.png", self.run.path.name)
        self._drawn = time.monotonic()

    def close(self) -> None:
        """Draws the curves, flushes and closes open files; the writers have already reported a full disk."""
        with suppress(OSError, UserError):
            self.curves()
        with suppress(OSError):
            self._file.close()
        for tracker in self._trackers:
            tracker.close()


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a log; lines that a crash cut short and lines without a step are left out."""
    if path.is_file():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                yield line


def _rewind(path: Path, start: int) -> list[dict[str, Any]]:
    """Drops the lines past step `start`; returns those that stay."""
    kept = [line for line in read_log(path) if line["step"] <= start]
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    partial.replace(path)
    return kept
