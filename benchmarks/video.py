"""What layers over time cost: a step on a clip of T frames beside one on T images, and what checkpointing saves.

    python benchmarks/video.py [--frames 16] [--edge 32] [--rounds 7] [--threads 1] [--only unet]

Random clips and weights, float32: forward, backward and AdamW. The time is that of the processor, since other work may share the
machine; rounds alternate between the two networks. Memory is what a forward keeps for the way back, weights left out.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffcli.engine.run.roles.needed_memory import kept_bytes
from diffcli.networks.conditioning import CondShape
from diffcli.networks.dit import DiTConfig
from diffcli.networks.temporal import ConvTemporalConfig, TemporalConfig
from diffcli.networks.unet import UNetConfig

UNET = UNetConfig(width=64, mult=(1, 2, 2), blocks=("res", "attention", "res", "attention"), attend_at=(16, 8))
DIT = DiTConfig(patch=2, width=256, depth=6, heads=4)


class Case(NamedTuple):
    """A network of images and its layers over time."""

    name: str
    config: UNetConfig | DiTConfig
    over: TemporalConfig


def cases() -> Iterator[Case]:
    yield Case("unet", UNET, ConvTemporalConfig())
    yield Case("unet, rotary", UNET, ConvTemporalConfig(positions="rotary"))
    yield Case("unet, convolutions alone", UNET, ConvTemporalConfig(attention=False))
    yield Case("unet, attention alone", UNET, ConvTemporalConfig(convolution=None))
    yield Case("unet, full convolutions", UNET, ConvTemporalConfig(convolution="full"))
    yield Case("dit", DIT, TemporalConfig())
    yield Case("dit, all heads", DIT, TemporalConfig(heads=DIT.heads))


class Trainer:
    """A network that trains on x."""

    def __init__(self, network: nn.Module, x: Tensor) -> None:
        self.network, self.x, self.time = network.train(), x, torch.full((len(x),), 500.0)
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def seconds(self) -> float:
        """Of the processor, for one step."""
        begun = time.process_time()
        self.network(self.x, self.time).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.process_time() - begun

    def kept(self) -> int:
        """Bytes that a forward keeps for the way back, weights left out."""
        with kept_bytes(self.network.parameters()) as kept:
            self.network(self.x, self.time)
            return sum(kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--edge", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="what the names of the cases begin with")
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    clip = torch.randn(1, 3, flags.frames, flags.edge, flags.edge)
    frames = clip[0].transpose(0, 1).contiguous()
    for case in (case for case in cases() if case.name.startswith(flags.only)):
        over = case.config.model_copy(update={"temporal": case.over})
        images = Trainer(case.config.build(frames.shape[1:], 3, CondShape()), frames)
        clips = Trainer(over.build(clip.shape[1:], 3, CondShape()), clip)
        for trainer in (images, clips):
            trainer.seconds()
        pairs = [(images.seconds(), clips.seconds()) for _ in range(flags.rounds)]
        ratios = sorted(longer / shorter for shorter, longer in pairs)
        saving = over.model_copy(update={"save_memory": True}).build(clip.shape[1:], 3, CondShape())
        plain, saved = (trainer.kept() / 2**20 for trainer in (clips, Trainer(saving, clip)))
        print(
            f"{case.name}: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) times "
            f"{statistics.median(shorter for shorter, _ in pairs):.2f} s; {images.kept() / 2**20:.0f} MiB kept of images, "
            f"{plain:.0f} of the clip, {saved:.0f} with save_memory",
            flush=True,
        )


if __name__ == "__main__":
    main()
