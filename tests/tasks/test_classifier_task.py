"""The classifier as a task: cross-entropy, and the features and labels that scoring reads."""

import math

import pytest
import torch

from diffcli.config import UserError
from diffcli.diffusion.samplers import Ddim
from diffcli.fields import FieldSpec, to_float
from diffcli.noise import Noise
from diffcli.tasks.classifier import ClassifierConfig, ClassifierTask

SPECS = {"image": FieldSpec("image", (1, 8, 8))}


def build(**changes) -> ClassifierTask:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ClassifierConfig(num_classes=3, **changes).build(SPECS).eval()


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


def test_logits_are_the_head_of_the_features():
    task, batch = build(), fields()
    features = task.features(batch["image"])
    expected = torch.nn.functional.linear(features, task.network.head.weight, task.network.head.bias)
    torch.testing.assert_close(task.logits(features), expected)
    assert features.dtype == torch.float32


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
        scores = task.logits(task.features(batch["image"])).gather(1, batch["label"][:, None])[:, 0]
    assert torch.equal(shown[0], batch["image"][scores.argmin()])
    assert shown.shape == batch["image"].shape


def test_data_that_it_cannot_learn_from_is_refused():
    with pytest.raises(
        UserError, match=r"task\.num_classes \(classifier\) reads the field 'label'.*only: image"
    ) as caught:
        build().check(SPECS)
    assert "choose labelled data" in caught.value.hint
    with pytest.raises(UserError, match="knows 3 classes of 'label', but the data has 8") as caught:
        build().check({**SPECS, "label": FieldSpec("classes", (), 8)})
    assert "--set task.num_classes=8" in caught.value.hint
    with pytest.raises(UserError, match=r"task\.field \(classifier\) reads 'image' of shape 1x8x8") as caught:
        build().check({"image": FieldSpec("image", (1, 8, 9)), "label": FieldSpec("classes", (), 3)})


def noisy(**changes) -> ClassifierTask:
    return build(schedule={"kind": "cosine", "steps": 1000}, **changes)


def test_a_classifier_without_a_schedule_has_the_parameters_that_it_always_had():
    plain, timed = set(build().state_dict()), set(noisy().state_dict())
    assert plain < timed
    assert {name.split(".")[-2] for name in timed - plain} <= {"0", "2", "modulate"}
    assert not any("time" in name or "modulate" in name for name in plain)


def test_a_noise_aware_classifier_sees_each_image_at_a_trained_time_of_its_own_stream():
    task, batch = noisy(), fields()
    seen: list[tuple[torch.Tensor, ...]] = []
    task.network.forward = lambda x, time: seen.append((x, time)) or torch.zeros(len(x), task.network.feature_dim)
    task(batch)
    task(batch)
    (x, time), (again, _) = seen
    assert torch.equal(x, again)
    assert len(set(time.tolist())) == 12
    t = (time.double() + 1) / 1000
    alpha, sigma = (c.view(-1, 1, 1, 1) for c in task.schedule.alpha_sigma(t))
    eps = Noise(batch["stream"], torch.device("cpu"))(batch["image"])
    torch.testing.assert_close(x, (alpha * batch["image"] + sigma * eps).float(), rtol=0, atol=1e-4)
    task({name: value[5:6] for name, value in batch.items()})
    assert torch.equal(seen[2][0], x[5:6])


def test_a_noise_aware_classifier_is_told_the_time():
    task, x = noisy(), fields()["image"]
    early, late = (task.features(x, torch.tensor(t, dtype=torch.float64)) for t in (0.1, 0.9))
    assert not torch.allclose(early, late, atol=1e-3)
    torch.testing.assert_close(task.features(x), task.features(x, torch.tensor(0.0, dtype=torch.float64)))
    each = task.features(x, torch.tensor([0.1, 0.9] * 6, dtype=torch.float64))
    torch.testing.assert_close(each[::2], early[::2], rtol=0, atol=1e-5)
    torch.testing.assert_close(each[1::2], late[1::2], rtol=0, atol=1e-5)


def test_log_probabilities_are_those_of_the_logits_and_sum_to_one():
    task, x, t = noisy(), fields()["image"], torch.tensor(0.4, dtype=torch.float64)
    labels = [torch.full((12,), k) for k in range(3)]
    each = torch.stack([task.log_prob(label, task.schedule, 1.0)(x, t) for label in labels], dim=1)
    expected = task.logits(task.features(x, t)).log_softmax(1)
    torch.testing.assert_close(each, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_preset_tells_clean_digits_apart_and_only_guesses_at_noise(tmp_path):
    from diffcli import preset as presets
    from diffcli.diffusion.editing import noised
    from diffcli.engine.distributed import join
    from diffcli.engine.model import load_model
    from diffcli.engine.run.runlog import RunDir
    from diffcli.engine.run.train import train

    run = RunDir(tmp_path / "run")
    run.claim()
    with join("cpu") as group:
        for _ in train(presets.load("digits-noisy-classifier", ["train.steps=150"]), run, group):
            pass
    task, data = load_model(run.path, torch.device("cpu")).task, presets.load("digits").data.build("test")
    batch = data.read(torch.arange(0, len(data), len(data) // 300))
    x, found = to_float(batch["image"]), {}
    for t in (0.01, 0.7, 1.0):
        time = torch.tensor(t, dtype=torch.float64)
        x_t = noised(task.schedule, x, Noise(range(len(x)), torch.device("cpu"))(x), time)
        with torch.no_grad():
            found[t] = float((task.logits(task.features(x_t, time)).argmax(1) == batch["label"]).float().mean())
    assert found[0.01] > 0.85
    assert found[0.01] > found[0.7] > found[1.0]
    assert found[1.0] < 0.25
