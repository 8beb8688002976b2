"""The classifier: logits of features, each image for itself, and that it learns."""

import torch
import torch.nn.functional as F

from diffcli.config import ImageShape
from diffcli.networks.convnet import ConvNetConfig
from tests.networks.waking import normal


def test_the_head_reads_features_that_are_not_negative() -> None:
    network = ConvNetConfig(width=8).build(ImageShape(1, 28, 28), 10).eval()
    x = normal(3, 1, 28, 28)
    features = network(x)
    assert features.shape == (3, network.feature_dim)
    assert network.head(features).shape == (3, 10)
    assert (features >= 0).all()


def test_features_of_an_image_do_not_depend_on_its_batch() -> None:
    network = ConvNetConfig(width=8).build(ImageShape(3, 32, 32), 10).eval()
    x = normal(4, 3, 32, 32)
    torch.testing.assert_close(network(x)[2:3], network(x[2:3]))


def test_it_learns_to_tell_bars_apart() -> None:
    network = ConvNetConfig(width=8).build(ImageShape(1, 16, 16), 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    label = torch.arange(32) % 2
    image = torch.full((32, 1, 16, 16), -1.0)
    for i in range(32):
        line = 2 + i % 12
        if label[i]:
            image[i, 0, line] = 1
        else:
            image[i, 0, :, line] = 1
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(network.head(network(image)), label).backward()
        optimizer.step()
    assert (network.head(network.eval()(image)).argmax(1) == label).float().mean() == 1
