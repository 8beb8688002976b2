"""Perceptual distances: LPIPS is LPIPS, a classifier sees what it was trained on, weights are found or asked for."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from diffcli import checkpoint
from diffcli.config import ImageShape, UserError
from diffcli.networks.convnet import ConvNetConfig
from diffcli.networks.lpips import BACKBONE_FILE, Lpips, LpipsFiles, find_files
from diffcli.tasks.autoencoder.perceptual import FeatureLoss, Judge, LpipsLoss, judge_of
from diffcli.tasks.classifier import ClassifierConfig
from tests.conftest import Cli
from tests.tasks.autoencoder.stages import batch, first_stage


def images(channels: int = 3, size: int = 16) -> tuple[Tensor, Tensor]:
    x = batch(4, channels, size)["image"]
    return x[:2], x[2:]


def judged(channels: int, size: int) -> FeatureLoss:
    classifier = ClassifierConfig(num_classes=3, network=ConvNetConfig(width=4))
    return FeatureLoss(run=Path("gone"), judge=Judge(classifier=classifier, image=ImageShape(channels, size, size)))


@pytest.mark.slow
def test_it_is_torchmetrics_lpips_on_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from torchmetrics.functional.image.lpips import _LPIPS

    torch.manual_seed(0)
    ours = Lpips()
    state = {name: value.clone() for name, value in ours.state_dict().items() if name.startswith("features")}
    torch.save(state | {"classifier.0.weight": torch.zeros(3)}, tmp_path / BACKBONE_FILE)
    for name in ("normal_", "kaiming_normal_", "kaiming_uniform_"):  # of 138 million weights, nearly all in the head
        monkeypatch.setattr(torch.nn.init, name, lambda weight, *_, **__: weight)
    theirs = _LPIPS(net="vgg", pnet_rand=True)
    own = [layer for layer in ours.features if isinstance(layer, torch.nn.Conv2d)]
    others = [layer for layer in theirs.net.modules() if isinstance(layer, torch.nn.Conv2d)]
    for a, b in zip(own, others, strict=True):
        b.load_state_dict(a.state_dict())
    with torch.no_grad():
        for layer in own:
            layer.weight.zero_()
        ours.load(LpipsFiles(tmp_path / BACKBONE_FILE, find_files(tmp_path / BACKBONE_FILE).channels))
        x, y = images(size=32)
        torch.testing.assert_close(ours(x, y), theirs(x, y).flatten(), rtol=1e-4, atol=1e-7)
        assert ours(x, x).tolist() == [0, 0]


def test_weights_that_are_not_on_disk_are_asked_for_and_never_downloaded(tmp_path: Path):
    task = first_stage(3, 16, perceptual={"kind": "lpips", "weights": tmp_path / "vgg.pth"})
    with pytest.raises(UserError, match=r"vgg\.pth is not there") as error:
        task.begin()
    assert "https://download.pytorch.org/models/vgg16" in error.value.hint
    torch.save({"other": torch.zeros(1)}, tmp_path / "vgg.pth")
    with pytest.raises(UserError, match="does not hold the weights of LPIPS"):
        task.begin()
    (tmp_path / "vgg.pth").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="cannot be read as weights"):
        task.begin()


@pytest.mark.parametrize("damaged", [b"nonsense", b""], ids=["nonsense", "of another network"])
def test_weights_of_channels_that_are_damaged_are_mended_by_their_package(tmp_path: Path, damaged: bytes):
    file, backbone = tmp_path / "torchmetrics/functional/image/lpips_models/vgg.pth", tmp_path / "vgg.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(damaged)
    network = Lpips().requires_grad_(False)
    torch.save({f"features.{name}": value for name, value in network.features.state_dict().items()}, backbone)
    if not damaged:
        torch.save({"lin0.model.1.weight": torch.ones(1, 64, 1, 1)}, file)
    with pytest.raises(UserError, match=r"lpips_models/vgg\.pth") as error:
        network.load(LpipsFiles(backbone, file))
    assert "pip install --force-reinstall --no-deps torchmetrics" in error.value.hint


@pytest.mark.parametrize(("channels", "size"), [(1, 16), (3, 16), (3, 20)])
def test_a_classifier_is_given_images_of_its_own_channels_and_size(channels: int, size: int):
    torch.manual_seed(0)
    x, y = images(channels, size)
    x.requires_grad_()
    for own in (1, 3):
        distance = judged(own, 16).build()
        assert distance.fit(x).shape == (2, own, 16, 16)
        found = distance(x, y)
        assert found.shape == (2,)
        assert (found > 0).all()
        assert distance(y, y).tolist() == [0, 0]
        (gradient,) = torch.autograd.grad(found.sum(), x)
        assert gradient.flatten(1).any(dim=1).all()


def test_a_distance_counts_by_its_weight_and_its_network_is_in_no_file_to_sample_from():
    tree = judged(1, 8).model_dump(mode="json")
    task, rows = first_stage(bottleneck={"kind": "none"}, perceptual=tree | {"weight": 0.3}), batch()
    terms = task(rows)
    torch.testing.assert_close(terms["loss"], terms["reconstruction"] + 0.3 * terms["perceptual"])
    assert not any(name.startswith("perceptual") for name in task.sampled_state())
    assert [n.name for n in task.networks if n.frozen] == ["perceptual"]


@pytest.mark.parametrize(
    ("channels", "size", "said"), [(2, 16, "1 or 3 channels, not of 2"), (3, 8, "16 pixels and more, not of 8")]
)
def test_images_that_it_cannot_take_are_refused(channels: int, size: int, said: str):
    with pytest.raises(UserError, match=said):
        LpipsLoss().check(ImageShape(channels, size, size))


def test_a_run_that_is_none_of_a_classifier_is_refused(trained: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"task\.perceptual\.run .* was trained as a diffusion"):
        judge_of(trained)
    with pytest.raises(UserError, match="no such checkpoint"):
        FeatureLoss(run=tmp_path / "gone").resolved()
    with pytest.raises(UserError, match=r"task\.perceptual\.run is not set"):
        FeatureLoss().resolved()


def test_the_images_of_a_classifier_are_those_that_its_record_tells(cli: Cli, tmp_path: Path):
    """A preset of grey data need not name their channels, so what it leaves out is no guess to be made."""
    small = ["--set", "task.network.width=4", "--set", "train.batch_size=8", "--set", "data.size=8", "--device", "cpu"]
    run = tmp_path / "run"
    assert cli("train", "--preset", "digits-classifier", "--run-dir", run, "--steps", 1, *small).code == 0
    path = checkpoint.locate(run)
    record = checkpoint.read_record(path)
    tensors = checkpoint.read_part(path, "ema", record)
    record["preset"]["data"] = {"kind": "digits", "size": 99}
    assert judge_of(checkpoint.save_average(tmp_path / "other", tensors, record)).image == (1, 8, 8)


def test_a_run_reads_its_classifier_when_it_begins_and_goes_on_without_its_file(cli: Cli, tmp_path: Path):
    judge, run = tmp_path / "judge", tmp_path / "run"
    small = ["--set", "task.network.width=4", "--set", "train.batch_size=8", "--set", "data.size=8", "--device", "cpu"]
    assert cli("train", "--preset", "digits-classifier", "--run-dir", judge, "--steps", 1, *small).code == 0
    preset = tmp_path / "stage.yaml"
    preset.write_text(
        "# stage - for tests\n"
        "name: stage\n"
        "data: {kind: digits, size: 8}\n"
        "task:\n"
        "  kind: autoencoder\n"
        "  network: {width: 8, mult: [1, 2], depth: 1, latent: 2, groups: 4}\n"
        f"  perceptual: {{kind: features, run: {judge}}}\n"
        "train: {steps: 1, batch_size: 4, precision: fp32, every: {log: 1, preview: 0, save: 1}}\n"
    )
    done = cli("train", "--preset", preset, "--run-dir", run, "--device", "cpu")
    assert done.code == 0, done.err
    kept = load_file(run / "checkpoints/step-00000001/task.safetensors")
    given = load_file(judge / "checkpoints/step-00000001/ema.safetensors")
    for name, value in given.items():
        assert kept[f"perceptual.{name}"].equal(value)
    judge.rename(tmp_path / "elsewhere")
    done = cli("resume", run, "--steps", 2, "--device", "cpu")
    assert done.code == 0, done.err


def test_a_classifier_of_clips_is_refused(trained: Path, tmp_path: Path):
    found = checkpoint.locate(trained)
    record = checkpoint.read_record(found)
    task = {"kind": "classifier", "field": "clip", "num_classes": 3, "network": {"kind": "clip_convnet"}}
    record["preset"] = {**record["preset"], "task": task}
    with pytest.raises(UserError, match="is a classifier of clips"):
        judge_of(checkpoint.save_average(tmp_path / "clips", checkpoint.read_part(found, "ema", record), record))
