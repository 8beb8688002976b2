"""U-Nets of OpenAI's improved-diffusion and guided-diffusion, and CompVis' on top of them, as a table of renamings.

Their state dict contains no flags (image size, heads, schedule). A preset has them, and every shape is checked against it.
Source: Nichol & Dhariwal 2021 (arXiv 2102.09672), Dhariwal & Nichol 2021 (arXiv 2105.05233); the layout of their code.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count

from diffcli.interop.unets.places import NETWORK, BlockNames, Side, WeightPlace, block_rules, places
from diffcli.interop.weight_files import ForeignTensors, Rule, layers
from diffcli.networks.layers import Attention
from diffcli.networks.unet import UNet

MARK = "input_blocks.0.0.weight"  # a name by which their files are known
LABELS = "label_emb.weight"

ENDS = {
    "embedding.time.0": "time_embed.0",
    "embedding.time.2": "time_embed.2",
    "stem": "input_blocks.0.0",
    "norm": "out.0",
    "head": "out.2",
}
RES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "modulate": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "skip": "skip_connection",
}
ATTENTION = {"norm": "norm", "qkv": "qkv", "out": "proj_out"}
RESAMPLE: dict[Side, str] = {"down": "op", "up": "conv"}


def openai_rules(
    network: UNet,
    ours: ForeignTensors,
    classes: Sequence[Rule] = (),
    linear: bool = False,
    ends: Mapping[str, str] = ENDS,
) -> list[Rule]:
    """ours: the tensors of the task. classes: how its table of classes is read. linear: see `transformer_rules`."""
    rules = [*layers(NETWORK, "", ends), *classes]
    for place, theirs in named(network):
        rules += block_rules(place, theirs, ours, BlockNames(RES, attention_rules, RESAMPLE), linear)
    return rules


def attention_rules(mine: str, theirs: str, attention: Attention) -> list[Rule]:
    """Ours is written as theirs, in either order of heads."""
    return layers(mine, theirs, ATTENTION)


def named(network: UNet) -> Iterator[tuple[WeightPlace, str]]:
    """Their blocks are numbered through: a new number wherever the encoder keeps an output or the decoder takes one in."""
    sides = {"down": ("input_blocks", count(1)), "middle": ("middle_block", count()), "up": ("output_blocks", count())}
    before: tuple[str, int, int] | None = None
    number, inner = 0, 0
    for place in places(network):
        here = (place.side, place.level, place.stage)
        side, numbers = sides[place.side]
        enlarges = place.side == "up" and place.stage == -1  # follows in the sequence of the stage before it
        if place.side == "middle" or (here != before and not enlarges):
            number, inner = next(numbers), 0
        else:
            inner += 1
        before = here
        yield place, f"{side}.{number}" if place.side == "middle" else f"{side}.{number}.{inner}"
