"""What `network.save_memory` of a first stage costs: activations kept for the way back, and time of a step without the optimizer.

    python benchmarks/save_memory.py [--width 64] [--rounds 5] [--threads 1]

Random images and weights; encoder and decoder as those of kl-f8-256, but of another width. Rounds alternate between the two.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor

from diffcli.engine.run.roles.needed_memory import kept_bytes
from diffcli.networks.autoencoder import Autoencoder, AutoencoderConfig
from diffcli.networks.bottlenecks import Kl

SHAPES = ((64, 4), (128, 2))  # edge of an image, images


def kept(network: Autoencoder, x: Tensor) -> int:
    """Bytes that a forward keeps for the way back, weights left out."""
    with kept_bytes(network.parameters()) as kept:
        network(x)
        return sum(kept)


def seconds(network: Autoencoder, x: Tensor) -> float:
    """Of a forward and a backward."""
    begun = time.perf_counter()
    network(x)[0].square().mean().backward()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    for edge, images in SHAPES:
        x = torch.randn(images, 3, edge, edge)
        plain, saving = (
            AutoencoderConfig(width=flags.width, mult=(1, 2, 4, 4), save_memory=save).build(3, Kl()).train()
            for save in (False, True)
        )
        for network in (plain, saving):
            seconds(network, x)
        ratios = sorted(1 / seconds(plain, x) * seconds(saving, x) for _ in range(flags.rounds))
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) times as long"
        sizes = [kept(network, x) / 2**20 for network in (plain, saving)]
        print(f"{images} images of {edge}x{edge}: {sizes[0]:.0f} -> {sizes[1]:.0f} MiB kept, {spread}", flush=True)


if __name__ == "__main__":
    main()
