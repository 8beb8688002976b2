"""The classifier of clips: any length, each clip for itself, and it tells directions apart that no frame shows."""

import torch
import torch.nn.functional as F

from diffcli.networks.clip_convnet import ClipConvNetConfig
from tests.networks.waking import normal


def test_features_of_a_clip_of_any_length_do_not_depend_on_its_batch() -> None:
    network = ClipConvNetConfig(width=4).build(3, 5).eval()
    for frames in (1, 2, 7):
        x = normal(4, 3, frames, 16, 12)
        features = network(x)
        assert features.shape == (4, network.feature_dim)
        assert network.head(features).shape == (4, 5)
        assert (features >= 0).all()
        torch.testing.assert_close(features[2:3], network(x[2:3]))


def test_it_learns_which_way_a_bar_moves() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ClipConvNetConfig(width=4).build(1, 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    label = torch.arange(24) % 2
    clip = torch.full((24, 1, 4, 8, 8), -1.0)
    for i in range(24):
        for frame in range(4):
            clip[i, 0, frame, :, (i // 2 + (frame if label[i] else -frame)) % 8] = 1
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(network.head(network(clip)), label).backward()
        optimizer.step()
    read = network.head(network(clip)).argmax(1)
    assert (read == label).float().mean() == 1
    backwards = network.head(network(clip.flip(2))).argmax(1)
    assert (backwards != label).float().mean() > 0.9, "the same frames in the other order are the other class"
