"""A task of two phases for tests, and the calls that train or resume it.

A generator makes an image of noise and a label, and a critic tells images of the data from its own. Beside them stand a frozen
network that the loss alone needs (as a perceptual one), a frozen one that sampling needs (as a first stage), and one that is
trained and sampled from, but not averaged. A buffer outside of them all counts the updates.
"""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffcli import checkpoint
from diffcli.diffusion.samplers import Sampler
from diffcli.engine.distributed import join
from diffcli.engine.run.loop import Progress
from diffcli.engine.run.runlog import RunDir
from diffcli.engine.run.train import train
from diffcli.fields import Batch, FieldSpec, Specs
from diffcli.noise import Noise
from diffcli.optim import AdamW, LinearDecay
from diffcli.preset import Preset
from diffcli.tasks.task import Network, Phase, Ranks, Task
from diffcli.tasks.task_config import TaskConfig
from tests.conftest import changed
from tests.engine.one_level import SMALL

WIDTH, CLASSES, LATENT = 12, 10, 4
KILLED = "KILLED"  # where this variable is set, a preview ends its process as kill -9 does


class PairTask(Task):
    """See the module."""

    updates: Tensor

    def __init__(self, image: FieldSpec) -> None:
        super().__init__()
        self.image, pixels = image, math.prod(image.shape)
        self.generator = nn.Sequential(nn.Linear(LATENT + CLASSES, WIDTH), nn.Tanh(), nn.Linear(WIDTH, pixels))
        self.colour = nn.Linear(1, 1)
        self.stage = nn.Linear(pixels, pixels)
        self.critic = nn.Sequential(nn.Linear(pixels, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
        self.eye = nn.Sequential(nn.Linear(pixels, WIDTH), nn.BatchNorm1d(WIDTH))  # would move in training mode
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @property
    def networks(self) -> tuple[Network, ...]:
        return (
            Network("generator", self.generator),
            Network("colour", self.colour, averaged=False),
            Network("stage", self.stage, frozen=True),
            Network("critic", self.critic, samples=False),
            Network("eye", self.eye, frozen=True, samples=False),
        )

    @property
    def phases(self) -> tuple[Phase, ...]:
        optimizer = AdamW(lr=0.5, eps=100)
        return (
            Phase("critic", ("critic",), optimizer, LinearDecay(floor=0.5)),
            Phase("generator", ("generator", "colour"), first=2, every=2),
        )

    @property
    def network_to_compile(self) -> nn.Module:
        return self.generator

    @property
    def reads(self) -> Specs:
        return {"image": self.image, "label": FieldSpec("classes", (), CLASSES)}

    def made(self, batch: Batch) -> Tensor:
        """Images (B, pixels) of the generator."""
        x = batch["image"]
        noise = Noise(batch["stream"], x.device)(x.new_empty(len(x), LATENT))
        drawn = self.generator(torch.cat([noise, F.one_hot(batch["label"], CLASSES).float()], dim=1))
        return self.stage(self.colour(drawn[..., None])[..., 0])

    def forward(self, batch: Batch, phase: str, step: int) -> dict[str, Tensor]:
        assert torch.is_grad_enabled() or not any(part.training for part in self.modules())  # where it is validated
        real, made = batch["image"].flatten(1), self.made(batch)
        if phase == "critic":
            right = F.softplus(-self.critic(real)).mean()
            return {"loss": right + F.softplus(self.critic(made.detach())).mean(), "right": right}
        near = (self.eye(made) - self.eye(real)).square().mean()
        return {"loss": near + min(1.0, step / 4) * F.softplus(-self.critic(made)).mean(), "near": near}

    def after_update(self, ranks: Ranks) -> None:
        self.updates += 1

    def preview(self, batch: Batch, sampler: Sampler, guidance: float) -> None:
        assert not any(part.training for part in self.modules())
        if KILLED in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)


class PairConfig(TaskConfig):
    """Builds it."""

    kind: Literal["pair"] = "pair"

    def build(self, specs: Specs) -> PairTask:
        return PairTask(specs["image"])


class PairPreset(Preset):
    """A preset of this task alone."""

    task: PairConfig = PairConfig()  # type: ignore[assignment]


EIGHT = {
    "task": {"kind": "pair"},
    "guidance": 1,
    "train__steps": 8,
    "train__batch_size": 5,
    "train__clip": 0.1,
    "train__optimizer": {"kind": "adamw", "lr": 1.0, "eps": 100},
    "train__every": {"log": 1, "preview": 0, "save": 4},
    "train__previews": 1,
}


def pair(**keys: Any) -> PairPreset:
    """The preset: 8 steps, saved at 4 and 8; keys as for `changed`."""
    tree = changed({**SMALL, "task": {}}, **(EIGHT | keys))
    return PairPreset.model_validate(tree)


def trained(path: Path, **keys: Any) -> list[Progress]:
    """Trains, or resumes where there is a checkpoint; in this process, alone or as torchrun says."""
    run = RunDir(path)
    kept = checkpoint.checkpoints(run.checkpoints)
    with join("cpu") as group:
        return list(train(pair(**keys), run, group, kept[-1] if kept else None))


def in_this_process(path: str, keys: str) -> None:
    """As `trained`, with keys as JSON: the call of a process of its own."""
    trained(Path(path), **json.loads(keys))
