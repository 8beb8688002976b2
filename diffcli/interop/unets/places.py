"""The blocks of our U-Net by the scheme of other libraries: side, level and stage, in the order of the pass.

Their U-Nets hold the same blocks under other names, and add a class embedding to the time's as it is, where ours has a linear
layer between (the identity, after an import).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from diffcli.config import UserError
from diffcli.interop.unets.transformer_rules import transformer_rules
from diffcli.interop.weight_files import ForeignTensors, Rule, layer, layers
from diffcli.networks.attention_blocks import SpatialTransformer
from diffcli.networks.layers import Attention, ConvResample, ResBlock
from diffcli.networks.unet import UNet

NETWORK = "denoiser.network"  # where a task keeps it
CLASSES = "conditioners.0.embedding.weight"

PlaceKind = Literal["res", "attention", "transformer", "resample"]
Side = Literal["down", "middle", "up"]
KINDS: dict[type[nn.Module], PlaceKind] = {
    ResBlock: "res",
    Attention: "attention",
    SpatialTransformer: "transformer",
    ConvResample: "resample",
}


class BlockNames(NamedTuple):
    """The names that a library uses for the layers inside its blocks."""

    res: Mapping[str, str]  # our layer -> theirs
    attention: Callable[[str, str, Attention], list[Rule]]  # (our block, theirs, ours itself) -> its rules
    resample: Mapping[Side, str]  # the convolution


class WeightPlace(NamedTuple):
    """A block of our U-Net; `level` counts as the module list of its side does, `stage` within the level."""

    name: str  # of the module, below the network
    module: nn.Module
    side: Side
    level: int
    stage: int  # -1: the resampling after the stages

    @property
    def kind(self) -> PlaceKind:
        """Raises UserError for a block that no other library has."""
        if type(self.module) not in KINDS:
            raise UserError(
                f"task.network.blocks: {type(self.module).__name__} at {self.name} has no counterpart in other libraries",
                "only networks of the blocks res, attention and spatial_transformer can be exchanged",
            )
        return KINDS[type(self.module)]


def places(network: UNet) -> Iterator[WeightPlace]:
    """Every block, in the order in which x passes them."""
    yield from on_side(network, "down")
    for stage, block in enumerate(network.middle.blocks):
        yield WeightPlace(f"middle.blocks.{stage}", block, "middle", 0, stage)
    yield from on_side(network, "up")


def on_side(network: UNet, side: Literal["down", "up"]) -> Iterator[WeightPlace]:
    for i, level in enumerate(network.get_submodule(side).children()):
        for j, stage in enumerate(level.get_submodule("stages").children()):
            for name, block in stage.get_submodule("blocks").named_children():
                yield WeightPlace(f"{side}.{i}.stages.{j}.blocks.{name}", block, side, i, j)
        resample = getattr(level, "resample", None)
        if resample is not None:
            yield WeightPlace(f"{side}.{i}.resample", resample, side, i, -1)


def block_rules(place: WeightPlace, theirs: str, ours: ForeignTensors, names: BlockNames, linear: bool) -> list[Rule]:
    """The tensors of a block, which is called `theirs` there. linear: see `transformer_rules`."""
    mine = f"{NETWORK}.{place.name}"
    match place.kind:
        case "res":
            return layers(mine, theirs, held(names.res, mine, ours))
        case "attention":
            return names.attention(mine, theirs, cast(Attention, place.module))
        case "transformer":
            return transformer_rules(mine, theirs, linear)
        case "resample":
            return layer(f"{mine}.conv", f"{theirs}.{names.resample[place.side]}")


def held(table: Mapping[str, str], block: str, ours: ForeignTensors) -> dict[str, str]:
    """The part of a table that our block has: one that keeps its width has no skip layer."""
    return {mine: theirs for mine, theirs in table.items() if f"{block}.{mine}.weight" in ours}


def class_rules(ours: ForeignTensors, theirs: str, null: bool) -> list[Rule]:
    """A table of class embeddings, where the model has classes; ours has a last row for "no class", and a layer behind.

    null: whether theirs has that row too.
    """
    if CLASSES not in ours:
        return []
    behind = f"{NETWORK}.embedding.vector"

    def take(table: Tensor) -> list[Tensor]:
        width, dim = table.shape[1], ours[CLASSES].shape[1]
        if dim != width:
            raise UserError(
                f"task.conditioners.0.dim is {dim}, but the class embeddings of the file, {theirs}, are {width} wide",
                f"set task.conditioners.0.dim to {width} in the preset",
            )
        return [torch.cat([table, torch.zeros(0 if null else 1, width)]), torch.eye(width), torch.zeros(width)]

    def give(table: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
        return [(table if null else table[:-1]) @ weight.T + bias]

    return [Rule((CLASSES, f"{behind}.weight", f"{behind}.bias"), (theirs,), take, give)]
