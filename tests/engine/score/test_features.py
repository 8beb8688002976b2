"""`--features`: classifiers and runs as extractors, and samples of a checkpoint as a side."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffcli.config import ImageShape, UserError
from diffcli.engine.score.features import ClassifierFeatures, extractor_for
from diffcli.engine.score.sides import resolve
from tests.engine.score.making import (
    ALONE,
    DIFFUSION,
    read,
    save_run,
    score,
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DIFFCLI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class ToyTask:
    """The two methods of a classifier task; features are a grey 4x4 image's pixels."""

    def features(self, x: Tensor) -> Tensor:
        assert x.shape[1:] == (1, 4, 4)
        return x.flatten(1)

    def logits(self, features: Tensor) -> Tensor:
        return features[:, :3]


def test_a_classifier_gets_images_in_its_own_range_shape_and_channels():
    extractor = ClassifierFeatures(ToyTask(), "toy", ImageShape(1, 4, 4), None)
    assert (extractor.gives, extractor.classes) == ({"features": (16,), "logits": (3,)}, ("0", "1", "2"))
    ramp = torch.tensor([0, 255, 51, 204] * 4, dtype=torch.uint8).reshape(1, 1, 4, 4)

    def features(images: Tensor) -> Tensor:
        return extractor({"image": images}, range(len(images)))["features"]

    torch.testing.assert_close(features(ramp)[0, :4], torch.tensor([-1.0, 1.0, -0.6, 0.6]))
    assert extractor.notes == []
    torch.testing.assert_close(features(ramp.repeat(1, 3, 1, 1)), features(ramp))
    stripes = torch.tensor([0, 255], dtype=torch.uint8).repeat(1, 1, 16, 8)
    resized = features(stripes).reshape(4, 4)
    torch.testing.assert_close(resized[:, 1:3], torch.zeros(4, 2), rtol=0, atol=1e-5)  # antialiased: grey, no stripes
    features(stripes)
    assert extractor.notes == [
        "images of 4x4x3 were converted to the 4x4x1 of toy",
        "images of 16x16x1 were converted to the 4x4x1 of toy",
    ]


def test_features_that_are_neither_extractor_nor_run_are_refused(tmp_path):
    with pytest.raises(UserError, match="did you mean 'inception'"):
        extractor_for("incepton")
    with pytest.raises(UserError, match="brings its own"):
        extractor_for(str(tmp_path), weights=tmp_path / "w.pth")


def test_a_classifier_run_scores_images(tmp_path):
    run = save_run(tmp_path / "run", "{kind: classifier, num_classes: 10, network: {width: 4}}")
    extractor = extractor_for(str(run))
    assert extractor.name.startswith("tiny-step7-")
    assert (extractor.layer, extractor.gives) == ("penultimate", {"features": (16,), "logits": (10,)})
    assert extractor.classes == tuple("0123456789")
    side = dataclasses.replace(resolve("digits:test"), size=200)
    report = score(side, side, ["fid", "accuracy", "precision"], extractor, batch_size=100)
    assert report.scores["precision"] == 1
    assert 0 < report.scores["accuracy"] < 0.5  # untrained, but labels and logits do meet
    assert report.as_dict()["features"] == extractor.name


def test_a_run_that_is_no_classifier_is_refused_as_features(tmp_path):
    run = save_run(tmp_path / "run", DIFFUSION)
    with pytest.raises(UserError, match="is a run of a diffusion task") as error:
        extractor_for(str(run))
    assert "digits-classifier" in error.value.hint
    with pytest.raises(UserError, match="is a run or a checkpoint"):
        resolve(str(run))


def test_images_drawn_from_a_checkpoint_are_a_side(tmp_path):
    from diffcli.engine.draw.sample import SampleOptions, draw, load_model, request
    from diffcli.engine.score.generated import samples

    model = load_model(save_run(tmp_path / "run", DIFFUSION), torch.device("cpu"))
    req = request(model, SampleOptions(n=10, batch_size=4, steps=1))
    side = samples(req)
    drawn = torch.cat([batch.images for batch in draw(req, ALONE)])
    assert torch.equal(read(side, 4), drawn)
    assert torch.equal(next(side.read([range(7, 9)], ["image"]))["image"], drawn[7:9])
    run = save_run(tmp_path / "judge", "{kind: classifier, num_classes: 10, network: {width: 4}}")
    report = score(resolve("digits:test"), side, ["fid", "accuracy"], extractor_for(str(run)))
    assert str(report.samples) == f"samples of {model.path}, 10 images of 28x28x1"
    assert report.scores["fid"] > 0
    assert report.scores["accuracy"] in {k / 10 for k in range(11)}
