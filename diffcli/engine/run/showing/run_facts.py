"""The lines of a run before its first step and after its last one: its plan, its outcome, and what to type next."""

from collections.abc import Mapping
from pathlib import Path

import torch

from diffcli.config import quoted
from diffcli.data.images import ImageData
from diffcli.data.order import epoch_size
from diffcli.data.stream.stream_data import StreamData
from diffcli.engine.distributed import Group
from diffcli.engine.run.loop import Loop, Progress
from diffcli.engine.run.plan import roles
from diffcli.engine.run.runlog import PICTURES, read_log
from diffcli.preset import Preset
from diffcli.tasks.conditioners.classes import ClassConditionerConfig
from diffcli.tasks.conditioners.frame_rate import FpsConditionerConfig
from diffcli.tasks.conditioners.given_frames import FramesConditionerConfig
from diffcli.tasks.conditioners.spatial import SpatialConditionerConfig
from diffcli.tasks.diffusion_config import DiffusionConfig

UNWORDED = (ClassConditionerConfig, FpsConditionerConfig, FramesConditionerConfig)  # conditions that no prompt gives
LATELY = 10  # log lines, each of one batch, that an accuracy is the mean of


def machine(preset: Preset, group: Group) -> str:
    """Device, precision and processes of a run: `cuda (NVIDIA H200), bf16, 2 processes`."""
    device = group.device
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    count = torch.get_num_threads()
    threads = f", {count} thread{'s' * (count > 1)}" if device.type == "cpu" else ""
    processes = f", {group.world} processes" if group.world > 1 else ""
    compiled = ", compiled" if preset.train.compile else ""
    return f"{device.type}{name}, {preset.train.precision}{threads}{processes}{compiled}"


def beginning(loop: Loop, first: int, holds: Mapping[str, str]) -> dict[str, str]:
    """The plan of a run, by topic. first: the step that it starts after. holds: the description of its data, by topic."""
    preset, cfg, state = loop.preset, loop.cfg, loop.state
    parameters = sum(p.numel() for p in state.task.parameters())
    networks = list(roles(state.task, state.phases))
    facts = {
        "device": machine(preset, loop.group),
        "model": f"{preset.task.noun}, {parameters:,} parameters" + (f": {'; '.join(networks)}" if networks else ""),
        **holds,
        "steps": f"{first + 1:,} to {cfg.steps:,} of batches of {cfg.batch_size:,}{_epochs(loop.data, cfg.batch_size, cfg.steps)}"
        + (f", from the checkpoint of step {first:,}" if first else ""),
    }
    every = {"log": cfg.every.log, "preview": cfg.every.preview, "checkpoint": cfg.every.save}
    often = ", ".join(f"a {name} every {steps:,} steps" for name, steps in every.items() if 0 < steps <= cfg.steps)
    return facts | {"run": f"{loop.run.path}{f': {often}' if often else ''}"}


def ending(loop: Loop, last: Progress, first: int) -> dict[str, str]:
    """The outcome of a run and what to type next, by topic. last: its last step. first: the step that it started after."""
    preset, run, steps = loop.preset, loop.run, last.step - first
    rate = steps * preset.train.batch_size / max(last.trained, 1e-9)
    facts = {
        "done": f"{steps:,} steps in {_spoken(last.trained)}, {rate:.3g} {last.unit}/s, "
        f"{last.data_wait:.0%} of the time spent waiting for data"
    }
    logged = _logged(run.log, "loss")
    if logged and "loss" in last.losses:
        facts["loss"] = f"{last.losses['loss']:.4f} at step {last.step:,}; the first in the log is {logged[0]:.4f}"
    if right := _logged(run.log, "accuracy")[-LATELY:]:
        lines = f"{len(right)} log line{'s' * (len(right) > 1)}"
        facts["accuracy"] = f"{sum(right) / len(right):.0%}, of the training {last.unit} in the last {lines}"
    shown = [str(run.path / name) for name in PICTURES if (run.path / name).is_file()]
    if shown:
        facts["look at"] = ", ".join(shown)
    facts["next"] = f"diffcli {next_command(preset, run.path)}"
    return facts | {"go on": f"diffcli resume {quoted(run.path)} --steps {2 * last.steps}"}


def next_command(preset: Preset, run: Path) -> str:
    """The next command for a trained model, as arguments of `diffcli`."""
    place, task = quoted(run), preset.task
    match task.kind:
        case "classifier":
            return f"fid A B --features {place}"
        case "prior":
            return f"sample DECODER --prior {place} --prompt TEXT"
        case "diffusion":
            assert isinstance(task, DiffusionConfig)
            if task.led_by or any(isinstance(each, SpatialConditionerConfig) for each in task.conditioners):
                return f"sample {place} --image FILE"
            framed = [each for each in task.conditioners if isinstance(each, FramesConditionerConfig)]
            if framed and not any(each.alone for each in framed):
                return f"sample {place} --image FILE"
            worded = any(not isinstance(each, UNWORDED) for each in task.conditioners)
            return f"sample {place}" + (" --prompt TEXT" if worded else "")
        case _:
            return f"sample {place} --image FILE"


def _logged(log: Path, name: str) -> list[float]:
    """The values of a term in the lines of a log."""
    return [line[name] for line in read_log(log) if isinstance(line.get(name), float)]


def _epochs(data: ImageData, batch_size: int, steps: int) -> str:
    images = data.count if isinstance(data, StreamData) else epoch_size(data, batch_size)
    return f", {steps * batch_size / images:.3g} epochs in all" if images else ""


def _spoken(seconds: float) -> str:
    """A length of time: 12.3 s, 5 min 3 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
