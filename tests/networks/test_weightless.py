"""Networks without memory have the names and shapes of others, and nothing is computed to make them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from diffcli.networks.conditioning import CondShape
from diffcli.networks.dit import DiTConfig
from diffcli.networks.network import NetworkConfig
from diffcli.networks.unet import UNetConfig
from diffcli.networks.weightless import weightless


class Operations(TorchDispatchMode):
    """The names of all operations on tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class Initialised(nn.Module):
    """A weight for each way of filling it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 4)
        self.layer = nn.Conv2d(3, 4, 3)
        self.own = nn.Parameter(torch.empty(4, 4).normal_())
        nn.init.xavier_uniform_(self.layer.weight)
        nn.init.kaiming_normal_(self.layer.weight)


@pytest.mark.parametrize("config", [UNetConfig(width=32, attend_at=(8,)), DiTConfig(width=16, depth=1, heads=2)])
def test_a_network_has_its_names_and_shapes(config: NetworkConfig):
    def built() -> dict[str, Tensor]:
        return config.build((3, 16, 16), 3, CondShape(vector=8)).state_dict()

    with weightless():
        bare = built()
    assert {name: x.shape for name, x in bare.items()} == {name: x.shape for name, x in built().items()}


def test_nothing_is_drawn_for_tensors_without_memory():
    with Operations() as operations, weightless():
        module = Initialised()
    assert all(x.is_meta for x in module.parameters())
    assert not [name for name in operations.seen if "normal" in name or "uniform" in name]


def test_a_tensor_with_memory_is_filled():
    with weightless():
        x = torch.zeros(1000, device="cpu")
        nn.init.normal_(x)
        y = torch.zeros(1000, device="cpu").uniform_()
    assert 0.8 < float(x.std()) < 1.2
    assert 0.4 < float(y.mean()) < 0.6
