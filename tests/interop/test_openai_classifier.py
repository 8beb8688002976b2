"""Classifiers of guided-diffusion: imported the same logits and gradients, and a model is guided by one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.interop import importing
from diffcli.interop.imported import Imported
from diffcli.interop.unets.openai_classifier import POOL
from diffcli.tasks.classifier import ClassifierTask
from tests.conftest import Cli
from tests.interop.making import close, noise, wake, write_preset
from tests.interop.openai_reference import Flags, OpenAIClassifier

FLAGS = Flags(num_head_channels=16, resblock_updown=True)
CLASSES = 6
INDEX = torch.tensor([0.0, 41.0, 500.0, 999.0])


def described(flags: Flags = FLAGS, **changes: Any) -> presets.Preset:
    network = {
        "kind": "trunk",
        "width": flags.num_channels,
        "mult": list(flags.channel_mult),
        "blocks": ["res", "attention"] * flags.num_res_blocks,
        "attend_at": list(flags.attention_resolutions),
        "head_dim": flags.num_head_channels,
    }
    task = {"kind": "classifier", "num_classes": CLASSES, "schedule": {"kind": "linear"}, "network": network}
    data = {"kind": "none", "size": flags.image_size}
    return presets.build({"name": "judge", "data": data, "task": task | changes, "train": {"steps": 1}}, "test")


def saved(folder: Path, flags: Flags = FLAGS) -> tuple[OpenAIClassifier, Path]:
    theirs, path = wake(OpenAIClassifier(flags, CLASSES)), folder / "classifier.pt"
    torch.save(theirs.state_dict(), path)
    return theirs, path


@pytest.mark.parametrize("flags", [FLAGS, FLAGS._replace(num_channels=64, channel_mult=(0.5, 1), num_res_blocks=1)])
def test_an_imported_classifier_gives_the_same_logits_and_gradients(flags: Flags, tmp_path: Path):
    theirs, path = saved(tmp_path, flags)
    preset = described(flags)
    imported = importing.load(path, preset)
    task = preset.task.build(preset.specs)
    task.load_state_dict(imported.tensors)
    assert isinstance(task, ClassifierTask)
    task.eval()
    x = noise(4, 3, 16, 16).requires_grad_()
    t, label = (INDEX + 1).double() / 1000, torch.tensor([0, 5, 2, 1])
    logits = theirs(x, INDEX)
    close(task.logits(task.features(x, t)), logits)
    expected = logits.log_softmax(1).gather(1, label[:, None]).sum()
    (gradient,) = torch.autograd.grad(expected, x)
    (found,) = torch.autograd.grad(task.log_prob(label, task.schedule, 1.0)(x, t).sum(), x)
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-5)


def test_without_its_preset_or_with_another_it_is_refused(tmp_path: Path):
    _, path = saved(tmp_path)
    with pytest.raises(UserError, match=r"flags.*\n.*imagenet64-adm-classifier"):
        importing.load(path, None)
    with pytest.raises(UserError, match=r"--as judge describes another model\n.*task\.schedule"):
        importing.load(path, described(schedule=None))
    with pytest.raises(UserError, match=r"--as digits-classifier.*\n.*trunk"):
        importing.load(path, presets.load("digits-classifier"))
    with pytest.raises(UserError, match=r"do not fit the model.*out\.2\.c_proj"):
        importing.load(path, described(num_classes=9))


def test_a_model_is_guided_by_an_imported_classifier(tmp_path: Path, cli: Cli):
    _, path = saved(tmp_path)
    importing.save(importing.load(path, described()), tmp_path / "judge", path)
    unet = {"kind": "unet", "width": 16, "mult": [1], "blocks": ["res"], "attend_at": [], "head_dim": 16}
    preset = write_preset(
        tmp_path,
        {"kind": "none", "size": 16},
        network=unet,
        conditioners=[{"kind": "class", "num_classes": CLASSES, "dim": 8}],
    )
    task = wake(preset.task.build(preset.specs))
    model = importing.save(Imported(preset, task.state_dict(), None, ()), tmp_path / "model", path)
    drawn = {}
    for pull in (0, 50):
        guide = ["--set", f"guide.classifier={tmp_path / 'judge'}", "--set", f"guide.classifier_scale={pull}"]
        out = tmp_path / f"{pull}.png"
        done = cli(
            "sample", "--ckpt", model, "--class", 2, "--n", 1, "--steps", 3, "--sampler", "ddpm", *guide, "--out", out
        )
        assert done.code == 0, done.err
        drawn[pull] = out.read_bytes()
    assert drawn[0] != drawn[50]


def test_the_shipped_preset_has_the_tensors_of_the_published_file():
    """Its shapes by the arithmetic of the paper's table: 128 channels, four levels, an 8x8 pool to 1000 classes."""
    preset = presets.load("imagenet64-adm-classifier")
    with torch.device("meta"):
        task = preset.task.build(preset.specs)
        theirs = OpenAIClassifier(
            Flags(64, 128, (1, 2, 3, 4), 4, (32, 16, 8), num_head_channels=64, resblock_updown=True), 1000
        )
    assert sum(p.numel() for p in task.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert set(POOL) <= set(task.state_dict())
