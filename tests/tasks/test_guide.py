"""What is said of guidance beside its scale: one denoiser of it all, in the right order, at the cost that it must have."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from diffcli.diffusion.samplers import Ddim, Ddpm, Ode
from diffcli.fields import FieldSpec
from diffcli.noise import Noise
from diffcli.tasks.classifier import ClassifierConfig, ClassifierTask
from diffcli.tasks.conditioners.text import TextConditionerConfig
from diffcli.tasks.guide import Drawing, Guide, Guiding
from diffcli.tasks.prior import DiffusionPriorConfig, PriorConfig
from tests.tasks.test_diffusion_task import CLASSES, SHAPE, Calls, build, config

T = torch.tensor(0.6, dtype=torch.float64)  # sigma / alpha is 1.38 on the cosine path
FIELDS = {"label": torch.tensor([0, 1, 3])}


def noise(*seeds: int) -> Tensor:
    return Noise(seeds, torch.device("cpu"))(torch.empty(len(seeds), *SHAPE))


def judge() -> ClassifierTask:
    """An untrained classifier that knows noise, its logits sharp enough to pull."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        tree: dict[str, Any] = {"num_classes": CLASSES, "network": {"width": 4}, "schedule": {"kind": "linear"}}
        task = ClassifierConfig.model_validate(tree).build({"image": FieldSpec("image", SHAPE)})
    with torch.no_grad():
        task.network.head.weight.mul_(20)
    return task.eval().requires_grad_(False)


@torch.no_grad()
def test_a_weaker_model_takes_the_place_of_the_null_branch_on_any_model():
    for conditioners in ([{"kind": "class", "num_classes": CLASSES, "dim": 8}], []):
        task, weaker = (build(conditioners=conditioners, codec={"clip": False}) for _ in range(2))
        for p in weaker.parameters():
            p.mul_(0.7)
        x, plain = noise(1, 2, 3), task.denoise(FIELDS, 1, 3)
        good, bad = plain(x, T).x0, weaker.denoise(FIELDS, 1, 3)(x, T).x0
        assert not torch.allclose(good, bad, atol=1e-3)
        guiding = Guiding(weaker=weaker)
        for scale in (0, 0.5, 1, 3):
            led = task.denoise(FIELDS, scale, 3, guiding)(x, T).x0
            torch.testing.assert_close(led, bad + scale * (good - bad), rtol=0, atol=2e-5)


@torch.no_grad()
def test_a_model_is_not_led_by_itself():
    task = build()
    x = noise(1, 2, 3)
    led = task.denoise(FIELDS, 4, 3, Guiding(weaker=task))(x, T).x0
    assert torch.equal(led, task.denoise(FIELDS, 1, 3)(x, T).x0)


@torch.no_grad()
@pytest.mark.parametrize(
    ("guide", "scale", "sizes"),
    [
        (Guide(interval=(1, 2)), 4, [6]),
        (Guide(interval=(2, 3)), 4, [3]),
        (Guide(rescale=0.7), 4, [6]),
        (Guide(rescale=0.7), 0, [6]),
        (Guide(threshold=0.9), 1, [3]),
    ],
)
def test_an_evaluation_costs_what_it_must(guide, scale, sizes):
    task = build()
    calls = Calls(task.denoiser.network)
    task.denoise(FIELDS, scale, 3, Guiding(guide))(noise(1, 2, 3), T)
    assert calls.batch_sizes == sizes


@torch.no_grad()
def test_outside_the_interval_stands_the_conditional_branch_and_inside_plain_guidance():
    task, x = build(), noise(1, 2, 3)
    for interval, scale in (((1, 2), 4), ((2, 3), 1), ((0, 1.3), 1)):
        found = task.denoise(FIELDS, 4, 3, Guiding(Guide(interval=interval)))(x, T).x0
        assert torch.equal(found, task.denoise(FIELDS, scale, 3)(x, T).x0)


@torch.no_grad()
@pytest.mark.parametrize(
    ("guide", "judged"),
    [
        (Guide(interval=(0.5, 2)), True),
        (Guide(rescale=0.7), False),
        (Guide(threshold=0.9), True),
        (Guide(rescale=1, threshold=0.5), False),
    ],
)
def test_an_image_depends_on_its_seed_and_label_alone_however_it_is_guided(guide, judged):
    task, guiding = build(), Guiding(guide, classifier=judge() if judged else None)
    whole = task.denoise(FIELDS, 3, 3, guiding)(noise(1, 2, 3), T)
    for i in range(3):
        alone = task.denoise({"label": FIELDS["label"][i : i + 1]}, 3, 1, guiding)(noise(i + 1), T)
        torch.testing.assert_close(alone.x0[0], whole.x0[i], rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_prediction_and_bounds_hold_with_all_of_it_at_once(scale):
    guide = Guide(interval=(0.5, 2), rescale=0.5, threshold=0.9, classifier_scale=3, classifier="x")
    task, x = build(codec={"kind": "pixels", "scale": 2.0}), noise(1, 2, 3)
    p = task.denoise(FIELDS, scale, 3, Guiding(guide, classifier=judge()))(x, T)
    alpha, sigma = (float(c) for c in task.denoiser.schedule.alpha_sigma(T))
    torch.testing.assert_close(alpha * p.x0 + sigma * p.eps, x, rtol=0, atol=1e-5)
    assert p.pull.x0.abs().max() <= 2  # before the classifier: published code clips first
    assert not torch.equal(p.pull.x0, p.x0)
    assert p.x0.dtype == p.eps.dtype == torch.float32
    assert not p.x0.requires_grad


@torch.no_grad()
def test_a_classifier_pulls_towards_its_class_from_another_path_and_scale():
    task, classifier = build(conditioners=[], codec={"kind": "pixels", "scale": 2.0, "clip": False}), judge()
    x = noise(1, 2, 3)
    log_prob = classifier.log_prob(FIELDS["label"], task.denoiser.schedule, 2.0)
    at = {}
    for scale in (0, 1):
        guide = Guide(classifier="x", classifier_scale=scale)
        at[scale] = task.denoise(FIELDS, 1, 3, Guiding(guide, classifier=classifier))(x, T)
    assert torch.equal(at[0].x0, task.denoise({}, 1, 3)(x, T).x0)
    pulled = at[0].eps - at[1].eps  # sigma times the gradient
    step = 1e-3 * pulled / pulled.flatten(1).norm(dim=1).view(3, 1, 1, 1)
    assert (log_prob(x + step, T) > log_prob(x, T)).all()


@torch.no_grad()
def test_images_of_a_batch_may_be_at_different_times():
    """As those of the adaptive sampler are."""
    task, x, times = build(), noise(1, 2, 3), torch.tensor([0.3, 0.6, 0.95], dtype=torch.float64)
    guiding = Guiding(Guide(interval=(0.6, 3), rescale=0.5), classifier=judge())
    together = task.denoise(FIELDS, 3, 3, guiding)(x, times)
    for i, t in enumerate(times):
        alone = task.denoise({"label": FIELDS["label"][i : i + 1]}, 3, 1, guiding)(x[i : i + 1], t)
        torch.testing.assert_close(alone.x0[0], together.x0[i], rtol=0, atol=1e-4)
    *_, end = Ode(steps=2).trajectory(task.denoise(FIELDS, 3, 3), task.denoiser.schedule, x, Noise([1], x.device))
    assert end.x.isfinite().all()


def test_what_a_scale_of_one_leaves_is_threshold_and_classifier():
    guide = Guide(interval=(1, 2), rescale=0.5, threshold=0.9, weaker="w", classifier="c", classifier_scale=2)
    assert guide.unscaled() == Guide(interval=(1, 2), threshold=0.9, classifier="c", classifier_scale=2)
    assert Guide(interval=(1, 2), rescale=0.5).unscaled() == Guide()
    assert (guide.pull, Guide(classifier="c").pull, Guide(classifier="c", classifier_scale=0).pull) == (2, 1, 0)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"interval": [3, 1]}, r"\[3.0, 1.0\].*write for example"),
        ({"interval": [-1, 1]}, "from 0"),
        ({"classifier_scale": 2}, "classifier_scale is 2.0 but there is no classifier"),
        ({"rescale": 1.1}, "less than or equal to 1"),
        ({"threshold": 0}, "greater than 0"),
        ({"treshold": 0.9}, "Extra inputs"),
    ],
)
def test_a_guide_that_contradicts_itself_is_refused(keys, words):
    with pytest.raises(ValidationError, match=words):
        Guide.model_validate(keys)


@pytest.mark.parametrize(
    ("scale", "guide", "changes", "words"),
    [
        (2, Guide(), {"conditioners": []}, "unconditional; leave guidance at 1, or name a guide.weaker"),
        (2, Guide(), {}, "drop_condition is 0"),
        (1, Guide(rescale=0.7), {}, "guide.rescale is 0.7 but guidance is 1"),
        (1, Guide(interval=(1, 2)), {"conditioners": []}, "guide.interval"),
        (1, Guide(weaker="w"), {}, "guide.weaker is w but guidance is 1"),
        (1, Guide(threshold=0.9), {"codec": {"clip": False}}, "task.codec.clip is false"),
    ],
)
def test_a_guide_that_does_not_fit_the_model_is_refused(scale, guide, changes, words):
    (found,) = config(**changes).check_drawing(Drawing(Ddim(), scale, guide))
    assert words in found


def test_a_guide_that_fits_is_not_refused():
    assert not list(config(conditioners=[]).check_drawing(Drawing(Ddim(), 3, Guide(weaker="w", rescale=0.5))))
    assert not list(config(conditioners=[]).check_drawing(Drawing(Ddim(), 1, Guide(classifier="c", interval=(1, 2)))))
    assert not list(config(drop_condition=0.1).check_drawing(Drawing(Ddim(), 3, Guide(interval=(1, 2)))))


@pytest.mark.parametrize(
    ("task", "drawing", "words"),
    [
        (ClassifierConfig(num_classes=3), Drawing(Ddim(), 2.0), "guidance is 2.0 but task.kind is 'classifier'"),
        (ClassifierConfig(num_classes=3), Drawing(Ddim(), 1.0, Guide(rescale=0.5)), "guide is given but task.kind"),
        (ClassifierConfig(num_classes=3), Drawing(Ddim(), prior=Path("p")), "prior is p but no conditioner reads"),
        (ClassifierConfig(num_classes=3), Drawing(Ddpm(variance="learned")), "sampler.variance is 'learned'"),
        (PriorConfig(), Drawing(Ddim(), 2.0), "a prior of task.network.kind mlp that never drops its text"),
        (PriorConfig(), Drawing(Ddim(), 1.0, Guide(rescale=0.5)), "guide is given but task.kind is 'prior'"),
        (PriorConfig(network=DiffusionPriorConfig()), Drawing(Ddim(steps=2000)), "set sampler.steps"),
        (config(), Drawing(Ddim(), prior=Path("p")), "prior is p but no conditioner reads clip_image"),
        (config(), Drawing(Ddim(steps=2000)), "set sampler.steps"),
        (config(), Drawing(Ddpm(variance="learned")), "task.learn_variance is false"),
    ],
)
def test_each_task_judges_how_a_preset_draws_from_it(task, drawing, words):
    assert not list(task.check_drawing(Drawing(Ddim())))
    found = list(task.check_drawing(drawing))
    assert len(found) == 1
    assert words in found[0]


def test_a_sampler_guided_by_everything_draws_in_range():
    task = build()
    x, streams = task.start([1, 2, 3])
    guiding = Guiding(Guide(interval=(0.2, 9), rescale=0.7, threshold=0.95, classifier="c"), classifier=judge())
    denoise = task.denoise(FIELDS, 3, 3, guiding)
    with torch.no_grad():
        *_, end = Ddpm(steps=4).trajectory(denoise, task.denoiser.schedule, x, streams)
        *_, pulled = Ddim(steps=4).trajectory(denoise, task.denoiser.schedule, x, streams)
    assert end.x.abs().max() <= 1 + 1e-6
    assert task.decode(pulled.x).abs().max() <= 1  # a classifier may pull x0 out of it, and files are clamped


@pytest.mark.parametrize(
    ("scale", "guide"),
    [(1, Guide()), (0, Guide()), (3, Guide()), (3, Guide(interval=(0.3, 3.0))), (3, Guide(rescale=0.5))],
)
@torch.no_grad()
def test_conditioners_run_once_whatever_the_guidance_and_read_each_text_once(scale: float, guide: Guide) -> None:
    text = {"kind": "text", "width": 8, "depth": 1, "heads": 1, "length": 8, "gives": "vector"}
    task = build(conditioners=[{"kind": "class", "num_classes": CLASSES, "dim": 8}, text])
    (by_class, by_text) = task.conditioners
    runs = [Calls(by_class.embedding), Calls(by_text.norm)]  # each with the rows that it sees
    denoise = task.denoise(FIELDS | {"text": ["one", "two", "one"]}, scale, 3, Guiding(guide))
    for t in (T, T / 10):
        denoise(noise(1, 2, 3), t)
    rows_of_classes = 3 if scale == 1 else 6
    assert [run.batch_sizes for run in runs] == [[rows_of_classes], [2]]


@torch.no_grad()
def test_texts_that_are_read_once_condition_as_if_read_each_time() -> None:
    conditioner = TextConditionerConfig(width=8, depth=1, heads=1, length=8).build()
    keep, like = torch.tensor([True, False, True, True]), noise(1, 2, 3, 4)
    batch = {"text": ["one", "two", "one", "four"]}
    once = conditioner(batch, keep, like)
    with torch.enable_grad():
        each = conditioner(batch, keep, like)
    torch.testing.assert_close(once.vector, each.vector)
    torch.testing.assert_close(once.tokens, each.tokens)
    assert torch.equal(once.mask, each.mask)


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.0, 4.0])
def test_a_guide_names_the_channels_that_are_guided(scale: float):
    """All of one are one: at scale 0, too, where the conditional branch is needed after all for what is left."""
    task, x = build(), noise(1, 2, 3)
    calls = Calls(task.denoiser.network)
    led = task.denoise(FIELDS, scale, 3, Guiding(Guide(channels=1)))(x, T)
    assert calls.batch_sizes == [6]
    torch.testing.assert_close(led.x0, task.denoise(FIELDS, scale, 3)(x, T).x0)


def test_guided_channels_are_switched_off_with_guidance():
    assert Guide(channels=3).unscaled() == Guide()
    drawing = Drawing(Ddim(), guide=Guide(channels=3))
    (found,) = drawing.check_guide(bounded=False, conditional=True, drop_condition=0.1)
    assert "guide.channels is 3 but guidance is 1" in found
