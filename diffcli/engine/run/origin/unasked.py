"""Class labels that the source knows and ours does not: ours begins as the source does where no class is asked for.

What the source's network is then told, the null row of its table, is the same for every image, so it becomes part of a bias.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from diffcli.networks.dit import DiT
from diffcli.networks.unet import UNet
from diffcli.tasks.conditioners.classes import ClassConditioner
from diffcli.tasks.diffusion import DiffusionTask
from diffcli.tasks.task import Task

NETWORK = "denoiser.network"


class Reader(NamedTuple):
    """Where a network reads time and conditions. time: its last layer. layer: of the vectors; None: added as they are."""

    time: str
    layer: str | None


class Unasked(NamedTuple):
    """What a bias of ours gets of the null row of a table of classes.

    condition: the source's name of it. bias: our key. table, layer: the source's keys; layer None: a row is added as it is.
    columns: those of the layer, first and end. offset: the key of the bias of that layer, where ours has no such layer.
    """

    condition: str
    bias: str
    table: str
    layer: str | None
    columns: tuple[int, int]
    offset: str | None

    @property
    def read(self) -> set[str]:
        """The keys of the source's tensors that it is made of."""
        return {key for key in (self.table, self.layer, self.offset) if key is not None}

    def made(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """(E,) float32, of the source's tensors."""
        null = tensors[self.table][-1].float()
        if self.layer is None:
            return null
        told = tensors[self.layer][:, slice(*self.columns)].float() @ null
        return told if self.offset is None else told + tensors[self.offset].float()


def unasked(ours: Task, theirs: Task, kept: Collection[nn.Module]) -> Iterator[Unasked]:
    """The classes that are gone. kept: the source's modules that have one of ours. None where training left no class out."""
    if not isinstance(ours, DiffusionTask) or not isinstance(theirs, DiffusionTask) or not theirs.drop_condition:
        return
    mine, other = reader(ours.denoiser.network), reader(theirs.denoiser.network)
    if mine is None or other is None:
        return
    end, whole = 0, sum(conditioner.shape.vector for conditioner in theirs.named_conditioners.values())
    alone = mine.layer is None and other.layer is not None
    for i, (name, conditioner) in enumerate(theirs.named_conditioners.items()):
        begin, end = end, end + conditioner.shape.vector
        if not isinstance(conditioner, ClassConditioner) or begin == end or any(conditioner is each for each in kept):
            continue
        if other.layer is None and end - begin < whole:  # it is added to a part of the width alone
            continue
        layer = other.layer and f"{NETWORK}.{other.layer}.weight"
        offset = f"{NETWORK}.{other.layer}.bias" if alone else None
        bias, alone = f"{NETWORK}.{mine.layer or mine.time}.bias", False
        yield Unasked(name, bias, f"conditioners.{i}.embedding.weight", layer, (begin, end), offset)


def reader(network: nn.Module) -> Reader | None:
    """None of a network of another kind."""
    match network:
        case UNet():
            return Reader("embedding.time.2", "embedding.vector" if network.embedding.vector is not None else None)
        case DiT():
            return Reader("t_embedder.mlp.2", "y_embedder" if isinstance(network.y_embedder, nn.Linear) else None)
        case _:
            return None
