"""Networks of clips from files: TorchScript with its options, r3d_18 with the weights of torchvision's own network."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffcli.config import UserError
from diffcli.metrics.motion.clip_networks import TorchScriptI3d
from diffcli.metrics.motion.r3d import R3d18


class Options(nn.Module):
    """Tells what it is given: the size, the range, the options, and the change from frame to frame."""

    def forward(self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False) -> Tensor:
        given = [float(x.size(3)), float(x.size(4)), float(rescale), float(resize), float(return_features)]
        told = torch.tensor(given).expand(x.size(0), 5)
        change = (x[:, :, 1:] - x[:, :, :-1]).abs().mean([1, 2, 3, 4])
        return torch.cat([told, x.amin([1, 2, 3, 4])[:, None], x.amax([1, 2, 3, 4])[:, None], change[:, None]], 1)


class Plain(nn.Module):
    """Takes clips alone, of at least 4 frames."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.size(2) >= 4, "too short for four strides"
        return x.mean([3, 4]).flatten(1)[:, :12]


def saved(module: nn.Module, path: Path) -> Path:
    torch.jit.script(module).save(str(path))
    return path


def ramp(frames: int = 6) -> Tensor:
    level = torch.linspace(0, 255, frames).to(torch.uint8)
    return level.view(1, 1, frames, 1, 1).expand(2, 1, frames, 10, 14).clone()


def test_a_torchscript_network_sees_clips_of_224_in_its_range_and_does_no_preprocessing_itself(tmp_path: Path):
    network = TorchScriptI3d(saved(Options(), tmp_path / "i3d.pt"))
    found = network({"clip": ramp()}, range(2))["features"]
    assert found[0, :7].tolist() == pytest.approx([224, 224, 0, 0, 1, -1, 1], abs=1e-5)
    assert network.gives == {"features": (8,)}
    assert network.describe()["name"].startswith("i3d-")
    still = network({"clip": ramp()[:, :, :1].expand(-1, -1, 6, -1, -1)}, range(2))["features"]
    assert found[0, 7] > 0.1
    assert still[0, 7] == 0


def test_a_network_without_options_is_given_none_and_says_what_it_cannot_read(tmp_path: Path):
    network = TorchScriptI3d(saved(Plain(), tmp_path / "plain.pt"))
    assert network({"clip": ramp(4)}, range(2))["features"].shape == (2, 12)
    with pytest.raises(UserError, match="clips of 3 frames"):
        network({"clip": ramp(3)}, range(2))


def test_what_is_no_torchscript_is_refused_unrun(tmp_path: Path):
    (tmp_path / "weights.pt").write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"--features .*weights\.pt cannot be read as TorchScript"):
        TorchScriptI3d(tmp_path / "weights.pt")


def test_r3d_weights_that_are_not_there_are_named_with_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"r3d_18-b3b3357e\.pth is not there") as error:
        R3d18()
    assert str(tmp_path) in error.value.hint
    (tmp_path / "bad.pth").write_bytes(b"x")
    with pytest.raises(UserError, match=r"bad\.pth does not hold the weights of r3d_18"):
        R3d18(tmp_path / "bad.pth")


@pytest.mark.slow
def test_r3d_gives_the_features_before_the_last_layer_of_torchvisions_own_with_its_own_transform(tmp_path: Path):
    import diffcli.torchvision_compat  # noqa: F401, I001
    from torchvision.models.video import R3D_18_Weights, r3d_18

    torch.manual_seed(0)
    whole = r3d_18(weights=None).eval()
    torch.save(whole.state_dict(), tmp_path / "r3d.pth")
    network = R3d18(tmp_path / "r3d.pth")
    assert "do not compare" in network.notes[0]
    clips = torch.randint(
        0, 256, (1, 3, 4, 250, 330), dtype=torch.uint8
    )  # larger than 128x171: antialiasing would show
    found = network({"clip": clips}, range(1))
    assert found["features"].shape == (1, 512)
    prepared = R3D_18_Weights.KINETICS400_V1.transforms()(clips.movedim(2, 1).contiguous())
    with torch.no_grad():
        torch.testing.assert_close(found["logits"], whole(prepared), rtol=1e-3, atol=1e-3)
