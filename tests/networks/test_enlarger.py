"""The baseline of super-resolution: before training it is bicubic enlargement, and it takes pictures of any size."""

import pytest
import torch
import torch.nn.functional as F

from diffcli.networks.enlarger import EnlargerConfig
from tests.networks.waking import normal


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_untrained_it_enlarges_as_bicubic_does(factor: int) -> None:
    network, low = EnlargerConfig(width=4, depth=1).build(3, factor), normal(2, 3, 5, 7)
    assert torch.equal(network(low), F.interpolate(low, scale_factor=factor, mode="bicubic"))


def test_every_parameter_receives_a_gradient_once_the_head_is_awake() -> None:
    network = EnlargerConfig(width=4, depth=2).build(1, 2)
    torch.nn.init.normal_(network.head.weight)
    network(normal(1, 1, 6, 6)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())
