"""The classifier as a task: cross-entropy, and the features and labels that scoring reads."""

import math

import pytest
import torch

from diffcli.config import ImageShape, UserError
from diffcli.diffusion.samplers import Ddim
from diffcli.noise import Noise
from diffcli.tasks.classifier import ClassifierConfig, ClassifierTask


def build(**changes) -> ClassifierTask:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ClassifierConfig(num_classes=3, **changes).build(ImageShape(1, 8, 8)).eval()


def fields(n: int = 12) -> dict[str, torch.Tensor]:
    image = Noise(range(n), torch.device("cpu"))(torch.empty(n, 1, 8, 8)).clamp(-1, 1)
    return {"image": image, "label": torch.arange(n) % 3, "stream": torch.arange(n)}


def test_loss_and_accuracy_are_those_of_the_logits():
    task, batch = build(), fields()
    logits = task.logits(task.features(batch["image"]))
    terms = task(batch)
    expected = -logits.log_softmax(1).gather(1, batch["label"][:, None]).mean()
    torch.testing.assert_close(terms["loss"], expected)
    assert float(terms["accuracy"]) == pytest.approx(float((logits.argmax(1) == batch["label"]).float().mean()))


def test_label_smoothing_mixes_in_the_uniform_distribution():
    task, batch = build(label_smoothing=0.3), fields()
    log_p = task.logits(task.features(batch["image"])).log_softmax(1)
    hit = -log_p.gather(1, batch["label"][:, None]).mean()
    torch.testing.assert_close(task(batch)["loss"], 0.7 * hit + 0.3 * -log_p.mean())


def test_features_and_head_are_the_network():
    task, batch = build(), fields()
    torch.testing.assert_close(task.logits(task.features(batch["image"])), task.network(batch["image"]).float())
    assert task.features(batch["image"]).dtype == torch.float32


def test_micro_batches_are_one_batch():
    task, batch = build(), fields()
    whole = task(batch)
    for sizes in ([6, 6], [1, 11]):
        parts = zip(*(value.split(sizes) for value in batch.values()), strict=True)
        terms = [task(dict(zip(batch, part, strict=True))) for part in parts]
        for name in whole:
            total = sum(float(t[name].detach()) * n / 12 for t, n in zip(terms, sizes, strict=True))
            assert total == pytest.approx(float(whole[name].detach()), rel=1e-5)


def test_it_learns_to_tell_bright_from_dark():
    task, batch = build().train(), fields(30)
    batch["image"] = batch["image"] / 4 + (batch["label"].float() - 1)[:, None, None, None] * 0.5
    optimizer = torch.optim.Adam(task.parameters(), 3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        task(batch)["loss"].backward()
        optimizer.step()
    terms = task.eval()(batch)
    assert float(terms["accuracy"]) > 0.9
    assert float(terms["loss"].detach()) < math.log(3) / 2


def test_the_preview_shows_the_least_sure_images_first():
    task, batch = build(), fields()
    shown = task.preview(batch, Ddim(), 1.0)
    with torch.no_grad():
        scores = task.network(batch["image"]).gather(1, batch["label"][:, None])[:, 0]
    assert torch.equal(shown[0], batch["image"][scores.argmin()])
    assert shown.shape == batch["image"].shape


def test_data_that_it_cannot_learn_from_is_refused():
    with pytest.raises(UserError, match="no class labels"):
        build().check({"image": torch.zeros(1)})
    with pytest.raises(UserError, match=r"num_classes is 3.*class label 7"):
        build().check({"label": torch.tensor([1, 7])})
