"""Class labels that the source knows and ours does not: ours begins as the source does where no class is asked for.

What the source's network is then told, the null row of its table, is the same for every image, so it becomes part of a bias.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from diffcli.networks.dit import DiT
from diffcli.networks.lora import of_change
from diffcli.networks.unet import UNet
from diffcli.tasks.conditioners.classes import ClassConditioner
from diffcli.tasks.diffusion import DiffusionTask
from diffcli.tasks.task import Task

NETWORK = "denoiser.network"


class Reader(NamedTuple):
    """Where a network reads time and vectors. time: its last layer. layer: of the vectors; None: they are added as they are."""

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


def unasked(ours: Task, theirs: Task, kept: Collection[nn.Module]) -> list[Unasked]:
    """The classes that are gone. kept: the source's modules that have one of ours.

    None where ours would not begin as the source all the same: if training left no class out, if another vector is gone too, or
    if those that stay are read in another way; and none for low-rank changes, which leave every bias as it is.
    """
    if not isinstance(ours, DiffusionTask) or not isinstance(theirs, DiffusionTask) or not theirs.drop_condition:
        return []
    mine, other = reader(ours.denoiser.network), reader(theirs.denoiser.network)
    if mine is None or other is None or any(of_change(name) for name, _ in ours.named_parameters()):
        return []
    told = [(name, c) for name, c in theirs.named_conditioners.items() if c.shape.vector]
    gone = [name for name, c in told if not any(c is each for each in kept)]
    direct = mine.layer is None and any(c.shape.vector for c in ours.named_conditioners.values())
    if direct or any(name in gone and not isinstance(c, ClassConditioner) for name, c in told):
        return []
    if other.layer is None and len(told) > 1:  # each is added to a part of the width alone
        return []
    found: list[Unasked] = []
    end = 0
    for name, conditioner in told:
        begin, end = end, end + conditioner.shape.vector
        if name in gone:
            layer = other.layer and f"{NETWORK}.{other.layer}.weight"
            alone = mine.layer is None and other.layer is not None and not found
            offset = f"{NETWORK}.{other.layer}.bias" if alone else None
            table = f"{name.removeprefix('task.')}.embedding.weight"
            found.append(Unasked(name, f"{NETWORK}.{mine.time}.bias", table, layer, (begin, end), offset))
    return found


def reader(network: nn.Module) -> Reader | None:
    """None of a network of another kind."""
    match network:
        case UNet():
            return Reader("embedding.time.2", "embedding.vector" if network.embedding.vector is not None else None)
        case DiT():
            return Reader("t_embedder.mlp.2", "y_embedder" if isinstance(network.y_embedder, nn.Linear) else None)
        case _:
            return None
