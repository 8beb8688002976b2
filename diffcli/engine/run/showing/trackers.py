"""Trackers for the numbers and previews of a run: TensorBoard, Weights & Biases, trackio (`train.log`).

Nothing is sent anywhere unless the user asks for it: W&B is offline unless WANDB_MODE is set, and trackio stores its data on this
machine unless TRACKIO_SPACE_ID is set. A resumed run continues its run of the same name in both.
"""

import importlib.util
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from diffcli.config import UserError
from diffcli.preset import Preset

PROJECT = "diffcli"
PACKAGES = {"wandb": "wandb", "trackio": "trackio"}  # beside that of diffcli itself: the extra that brings each


class Tracker(Protocol):
    """One destination of a run's log."""

    def line(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step, by name."""

    def preview(self, step: int, picture: np.ndarray, film: bytes | None = None) -> None:
        """A picture, uint8 (H, W, C) with C 1 or 3. film: a GIF of its size that moves, for trackers that can show it."""

    def close(self) -> None:
        """Writes what is still open."""


def check_trackers(names: Sequence[str]) -> None:
    """Raises UserError if the package of a tracker is not installed."""
    for name in names:
        if name in PACKAGES and importlib.util.find_spec(name) is None:
            raise UserError(
                f"train.log names {name}, which is not installed",
                f"pip install 'diffcli[{PACKAGES[name]}]', or --set train.log=[tensorboard]",
            )


def opened(names: Sequence[str], folder: Path, preset: Preset, start: int) -> list[Tracker]:
    """The trackers of these names, for a run in `folder` that goes on after step `start`."""
    made: dict[str, Callable[[Path, Preset, int], Tracker]] = {
        "tensorboard": TensorBoard,
        "wandb": WeightsAndBiases,
        "trackio": Trackio,
    }
    return [made[name](folder, preset, start) for name in names]


class TensorBoard:
    """Event files in RUN/tensorboard; a resumed run hides what an earlier one wrote after its start."""

    def __init__(self, folder: Path, preset: Preset, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1 if start else None)

    def line(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def preview(self, step: int, picture: np.ndarray, film: bytes | None = None) -> None:
        if film is not None:
            from tensorboard.compat.proto.summary_pb2 import Summary

            height, width, channels = picture.shape
            shown = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=film)
            writer: Any = self._board.file_writer
            writer.add_summary(Summary(value=[Summary.Value(tag="preview", image=shown)]), step)
            return
        self._board.add_image("preview", picture, step, dataformats="HWC")

    def close(self) -> None:
        with suppress(OSError):
            self._board.close()


class WeightsAndBiases:
    """A run of W&B below RUN/wandb; `wandb sync` sends it later. Values are over `step`, as resuming counts steps anew."""

    def __init__(self, folder: Path, preset: Preset, start: int) -> None:
        import wandb

        self._image, mode = wandb.Image, os.environ.get("WANDB_MODE", "offline")
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            dir=str(folder),
            config=preset.model_dump(mode="json"),
            mode=mode,  # type: ignore[arg-type]
            id=kept_id(folder / "wandb"),
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(silent=True),
        )
        self._run.define_metric("*", step_metric="step")

    def line(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def preview(self, step: int, picture: np.ndarray, film: bytes | None = None) -> None:
        self._run.log(
            {"step": step, "preview": self._image(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)}
        )

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of trackio, which keeps it below its own folder (TRACKIO_DIR); `trackio show` opens it."""

    def __init__(self, folder: Path, preset: Preset, start: int) -> None:
        import trackio

        self._trackio: Any = trackio
        trackio.init(
            project=PROJECT,
            name=f"{folder.name}-{kept_id(folder / 'trackio')}",
            config=preset.model_dump(mode="json"),
            resume="allow",
        )

    def line(self, step: int, values: Mapping[str, float]) -> None:
        self._trackio.log(dict(values), step=step)

    def preview(self, step: int, picture: np.ndarray, film: bytes | None = None) -> None:
        colours = np.repeat(picture, 3, axis=2) if picture.shape[-1] == 1 else picture
        self._trackio.log({"preview": self._trackio.Image(colours)}, step=step)

    def close(self) -> None:
        self._trackio.finish()


def kept_id(folder: Path) -> str:
    """The name of a run at a tracker, the same when it is resumed: made up once and kept in `folder`."""
    file = folder / "id.txt"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(secrets.token_hex(4) + "\n")
    return file.read_text().strip()
