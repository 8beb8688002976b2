"""`--features` for clips: the run of a classifier of clips, TorchScript by path, the image tower of a CLIP."""

from pathlib import Path

import pytest
import torch
import yaml

from diffcli import preset
from diffcli.config import UserError
from diffcli.engine.score.features import extractor_for
from diffcli.engine.score.sight.clip_classifier import ClipClassifier
from diffcli.metrics.motion.clip_networks import TorchScriptI3d
from tests.encoders.making import POOLED, tiny_clip
from tests.metrics.motion.test_clip_networks import Plain, saved

CLASSIFIER = "{kind: classifier, field: clip, num_classes: 10, network: {kind: clip_convnet, width: 4}}"


def test_a_run_of_a_classifier_of_clips_gives_features_of_whole_clips(tmp_path: Path):
    data = {"kind": "moving_digits", "size": 16, "digit": 10, "frames": 5}
    tree = {"name": "tiny", "data": data, "task": yaml.safe_load(CLASSIFIER), "train": {"steps": 1}}
    built = preset.build(tree, "test")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        task = built.task.build(built.specs)
    clips = torch.randint(256, (3, 3, 7, 20, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    extractor = ClipClassifier(task.eval(), "tiny", None)
    assert extractor.gives == {"features": (16,), "logits": (10,)}
    found = extractor({"clip": clips}, range(3))
    assert found["features"].shape == (3, 16)
    assert extractor.notes == ["frames of 24x20x3 were converted to the 16x16x1 of tiny"]
    backwards = extractor({"clip": clips.flip(2)}, range(3))["features"]
    assert (found["features"] - backwards).abs().max() > 1e-4, "order matters"


def test_a_file_is_torchscript_and_a_folder_of_transformers_a_clip(tmp_path: Path):
    assert isinstance(extractor_for(str(saved(Plain(), tmp_path / "net.pt"))), TorchScriptI3d)
    tower = extractor_for(str(tiny_clip(tmp_path / "clip")))
    assert tower.gives == {"features": (POOLED,)}
    images = torch.randint(256, (2, 1, 20, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = tower({"image": images}, range(2))["features"]
    assert found.isfinite().all()
    assert tower.describe()["name"].startswith("clip-clip-")


def test_a_classifier_of_the_wrong_field_is_refused_with_the_right_network():
    specs = preset.build(
        {"name": "x", "data": {"kind": "moving_digits"}, "task": yaml.safe_load(CLASSIFIER), "train": {"steps": 1}},
        "test",
    ).specs
    for field, kind in (("image", "clip_convnet"), ("clip", "convnet")):
        config = {"kind": "classifier", "field": field, "num_classes": 3, "network": {"kind": kind}}
        task = preset.build(
            {"name": "x", "data": {"kind": "digits"}, "task": config, "train": {"steps": 1}}, "test"
        ).task
        with pytest.raises(UserError, match=f"task.network.kind is '{kind}'") as error:
            task.build(specs)
        assert "task.network.kind=" in error.value.hint
