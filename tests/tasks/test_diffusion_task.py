"""Diffusion as a task: guidance in one batch, randomness that follows from the batch alone, and what is refused."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from diffcli.config import UserError
from diffcli.diffusion.samplers import Ddim, Ddpm
from diffcli.fields import FieldSpec
from diffcli.noise import Domain, Noise, derive
from diffcli.tasks.diffusion import DiffusionTask
from diffcli.tasks.diffusion_config import DiffusionConfig

SHAPE = (1, 8, 8)
SPECS = {"image": FieldSpec("image", SHAPE)}
CLASSES = 4


def config(**changes: Any) -> DiffusionConfig:
    tree: dict[str, Any] = {
        "target": "v",
        "network": {"kind": "unet", "width": 8, "mult": [1, 2], "blocks": ["res"], "attend_at": [], "head_dim": 8},
        "conditioners": [{"kind": "class", "num_classes": CLASSES, "dim": 8}],
    }
    return DiffusionConfig.model_validate(tree | changes)


def build(**changes: Any) -> DiffusionTask:
    """A small task whose layers, zero when built, are given weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        task = config(**changes).build(SPECS)
    noise = Noise([5], torch.device("cpu"))
    with torch.no_grad():
        for p in task.parameters():
            p.add_(noise(p[None])[0], alpha=0.05)
    return task.eval()


def batch(n: int, first: int = 0) -> dict[str, Tensor]:
    """Positions first..first+n-1 of a run, as the loader gives them."""
    position = torch.arange(first, first + n)
    stream = derive(7, Domain.TRAIN, position)
    image = Noise(position, torch.device("cpu"))(torch.empty(n, *SHAPE)).clamp(-1, 1)
    return {"image": image, "label": position % CLASSES, "index": position, "position": position, "stream": stream}


def part(whole: dict[str, Tensor], index: Any) -> dict[str, Tensor]:
    return {name: value[index] for name, value in whole.items()}


class Calls:
    """Counts what a module is called with."""

    def __init__(self, module: nn.Module) -> None:
        self.batch_sizes: list[int] = []
        module.register_forward_hook(lambda module, inputs, output: self.batch_sizes.append(len(inputs[0])))


@pytest.mark.parametrize(("scale", "size"), [(1, 3), (1.0, 3), (0, 3), (0.5, 6), (4, 6)])
def test_guidance_costs_one_evaluation_and_both_branches_are_one_batch(scale, size):
    task = build()
    calls = Calls(task.denoiser.network)
    *_, _ = task.trajectory({"label": torch.tensor([0, 1, 2])}, [1, 2, 3], Ddim(steps=5), scale)
    assert calls.batch_sizes == [size] * 5


def test_a_model_without_conditions_is_never_evaluated_twice():
    task = build(conditioners=[])
    calls = Calls(task.denoiser.network)
    *_, _ = task.trajectory({}, [1, 2], Ddim(steps=3), 5.0)
    assert calls.batch_sizes == [2] * 3


@torch.no_grad()
def test_scale_one_is_the_conditional_zero_the_unconditional_and_others_lie_on_their_line():
    task = build(codec={"kind": "pixels", "clip": False})
    x, t = Noise([1, 2, 3], torch.device("cpu"))(torch.empty(3, *SHAPE)), torch.tensor(0.6, dtype=torch.float64)
    fields = {"label": torch.tensor([0, 1, 3])}
    embedding = task.conditioners[0].embedding.weight

    def with_rows(rows: list[int]) -> Tensor:
        from diffcli.networks.conditioning import Conditioning

        return task.denoiser(x, t, Conditioning(vector=embedding[rows])).x0

    cond, null = with_rows([0, 1, 3]), with_rows([CLASSES] * 3)
    assert torch.equal(task.denoise(fields, 1, 3)(x, t).x0, cond)
    assert torch.equal(task.denoise(fields, 0, 3)(x, t).x0, null)
    assert not torch.allclose(cond, null, atol=1e-3)
    for scale in (0.5, 2, 6):
        guided = task.denoise(fields, scale, 3)(x, t).x0
        torch.testing.assert_close(guided, null + scale * (cond - null), rtol=0, atol=2e-5)


@torch.no_grad()
def test_guidance_keeps_the_variance_of_the_conditional_branch():
    task = build(learn_variance=True, target="eps")
    x, t = Noise([1, 2], torch.device("cpu"))(torch.empty(2, *SHAPE)), torch.tensor(0.6, dtype=torch.float64)
    cond, null, guided = (task.denoise({"label": torch.tensor([2, 1])}, s, 2)(x, t).var_frac for s in (1, 0, 3))
    torch.testing.assert_close(guided, cond, rtol=0, atol=1e-5)
    assert not torch.allclose(cond, null, atol=1e-4)


@torch.no_grad()
def test_pixels_are_clipped_and_unbounded_codes_are_not():
    fields = {"label": torch.tensor([0, 1])}
    bounded, free = build(), build(codec={"kind": "pixels", "clip": False})
    x, t = Noise([1, 2], torch.device("cpu"))(torch.empty(2, *SHAPE)) * 3, torch.tensor(0.5, dtype=torch.float64)
    p, q = bounded.denoise(fields, 3, 2)(x, t), free.denoise(fields, 3, 2)(x, t)
    assert q.x0.abs().max() > 1
    assert torch.equal(p.x0, q.x0.clamp(-1, 1))
    alpha, sigma = (float(c) for c in bounded.denoiser.schedule.alpha_sigma(t))
    torch.testing.assert_close(alpha * p.x0 + sigma * p.eps, x, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("sampler", "guidance"), [(Ddim(steps=4), 3.0), (Ddpm(steps=4), 1.0)], ids=["ddim", "ddpm"])
def test_an_image_depends_on_its_seed_and_label_alone(sampler, guidance):
    task = build()
    seeds, labels = [4, 2**40, -3], torch.tensor([3, 0, 1])
    *_, together = task.trajectory({"label": labels}, seeds, sampler, guidance)
    for i, seed in enumerate(seeds):
        *_, alone = task.trajectory({"label": labels[i : i + 1]}, [seed], sampler, guidance)
        torch.testing.assert_close(alone.x[0], together.x[i], rtol=0, atol=2e-5)  # convolutions round by batch size
    *_, again = task.trajectory({"label": labels}, seeds, sampler, guidance)
    assert torch.equal(again.x, together.x)


@pytest.mark.parametrize(("sizes", "learn_variance"), [([4, 4, 4], False), ([12], False), ([1, 7, 4], True)])
def test_micro_batches_are_one_batch(sizes, learn_variance):
    """Weighted by their share, whatever their sizes: loss, terms and gradients."""
    task, whole = build(drop_condition=0.3, learn_variance=learn_variance, target="eps"), batch(12)
    expected = task(whole)
    gradients = torch.autograd.grad(expected["loss"], list(task.parameters()))
    totals, sums, first = dict.fromkeys(expected, 0.0), [torch.zeros_like(g) for g in gradients], 0
    for size in sizes:
        terms = task(part(whole, slice(first, first + size)))
        for name, value in terms.items():
            totals[name] += float(value.detach()) * size / 12
        for total, g in zip(sums, torch.autograd.grad(terms["loss"], list(task.parameters())), strict=True):
            total += g * size / 12
        first += size
    for name, value in expected.items():
        assert totals[name] == pytest.approx(float(value.detach()), rel=1e-5)
    for total, g in zip(sums, gradients, strict=True):
        torch.testing.assert_close(total, g, rtol=1e-3, atol=1e-5 * float(g.abs().max() + 1))


@torch.no_grad()
def test_the_loss_does_not_depend_on_how_samples_are_dealt():
    task, whole = build(drop_condition=0.3), batch(12)
    shuffled = torch.tensor([7, 2, 11, 0, 5, 9, 1, 3, 10, 4, 8, 6])
    assert float(task(part(whole, shuffled))["loss"]) == pytest.approx(float(task(whole)["loss"]), rel=1e-5)
    halves = [float(task(part(whole, slice(rank, None, 2)))["loss"]) for rank in (0, 1)]
    assert sum(halves) / 2 == pytest.approx(float(task(whole)["loss"]), rel=1e-5)


@torch.no_grad()
def test_the_loss_draws_nothing_from_the_global_generator():
    task, before = build(drop_condition=0.3).train(), torch.random.get_rng_state()
    losses = [float(task(batch(6))["loss"]) for _ in range(2)]
    assert torch.equal(before, torch.random.get_rng_state())
    assert losses[0] == losses[1]
    assert losses[0] != float(task(batch(6, first=6))["loss"])


class SeenLabels:
    """Records the rows that a class conditioner looked up."""

    def __init__(self, task: DiffusionTask) -> None:
        self.rows: list[Tensor] = []
        task.conditioners[0].embedding.register_forward_hook(lambda module, i, o: self.rows.append(i[0].clone()))


@torch.no_grad()
def test_conditions_are_dropped_for_each_sample_with_the_share_asked_for():
    task, n = build(drop_condition=0.3), 1200
    seen, whole = SeenLabels(task), batch(1200)
    task.denoiser.network = Constant()
    task(whole)
    dropped = seen.rows[-1] == CLASSES
    assert float(dropped.float().mean()) == pytest.approx(0.3, abs=4 * (0.21 / n) ** 0.5)
    assert torch.equal(seen.rows[-1][~dropped], whole["label"][~dropped])
    shares = dropped.view(-1, 8).float().mean(1)  # in batches of 8: neither all nor none, as a draw a batch would give
    assert 0.1 < float(shares.std()) < 0.25
    for cut in (1, 500):
        task(part(whole, slice(0, cut)))
        task(part(whole, slice(cut, None)))
        assert torch.equal(torch.cat(seen.rows[-2:]) == CLASSES, dropped)  # however the batch is split


class Constant(nn.Module):
    """A network that costs nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Tensor] = []

    def forward(self, x: Tensor, time: Tensor, cond: object) -> Tensor:
        self.told.append(time)
        return x * 0.5


@torch.no_grad()
def test_dropping_is_independent_of_times_and_noise():
    task, n = build(drop_condition=0.5), 4000
    network, seen = Constant(), SeenLabels(task)
    task.denoiser.network = network
    task(batch(n))
    dropped, time = (seen.rows[-1] == CLASSES).double(), network.told[-1].double()
    correlation = torch.corrcoef(torch.stack([dropped, time]))[0, 1]
    assert abs(float(correlation)) < 4 / n**0.5
    assert float(time.mean()) == pytest.approx(499.5, abs=4 * 289 / n**0.5)


@torch.no_grad()
def test_no_condition_is_dropped_where_none_is_asked_for():
    task = build(drop_condition=0.0)
    seen = SeenLabels(task)
    task(batch(200))
    assert (seen.rows[-1] < CLASSES).all()


@torch.no_grad()
def test_stratified_times_follow_the_position_in_the_run():
    task = build(times={"kind": "stratified"})
    task.denoiser.network = network = Constant()
    task(batch(32, first=320))
    gaps = network.told[-1].sort().values.diff()
    assert gaps.max() <= 1000 * 2.7 / 32


def test_a_model_trained_on_one_image_draws_it():
    """The whole chain learns: loss, targets, times and sampler agree with each other."""
    task, target = build(conditioners=[]), torch.full((1, *SHAPE), -0.7)
    target[..., 2:6] = 0.8
    fields = batch(8) | {"image": target.expand(8, -1, -1, -1)}
    before = (task.preview(fields, Ddim(steps=10), 1.0) - target).square().mean()
    optimizer = torch.optim.Adam(task.train().parameters(), 5e-3)
    losses = []
    for step in range(100):
        optimizer.zero_grad()
        loss = task(batch(8, first=8 * step) | {"image": fields["image"]})["loss"]
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    image = task.eval().preview(fields, Ddim(steps=10), 1.0)
    assert sum(losses[-20:]) < sum(losses[:20]) / 3
    assert image.shape == (8, *SHAPE)
    assert (image - target).square().mean() < before / 10
    assert image.abs().max() <= 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": "eps", "schedule": {"kind": "flow"}}, "set task.target to flow, v or x0"),
        ({"learn_variance": True, "schedule": {"kind": "flow"}}, "learn_variance needs a discrete schedule"),
        ({"drop_condition": 0.1, "conditioners": []}, "drop_condition is 0.1 but there are no conditioners"),
        ({"drop_condition": 1.0}, "less than 1"),
        ({"target": "noise"}, "'eps', 'x0', 'v' or 'flow'"),
    ],
)
def test_contradictions_are_refused_by_name(changes, words):
    with pytest.raises(ValidationError, match=words):
        config(**changes)


@pytest.mark.parametrize("target", ["x0", "v", "flow"])
def test_every_target_with_signal_at_the_end_builds_on_the_flow_path(target):
    task = build(target=target, schedule={"kind": "flow"})
    with torch.no_grad():
        *_, end = task.trajectory({"label": torch.tensor([1])}, [3], Ddim(steps=3), 2.0)
    assert end.x.isfinite().all()
    assert task(batch(3))["loss"].isfinite()


def test_labels_that_the_model_does_not_know_are_refused_before_training():
    with pytest.raises(UserError, match=r"\.0 \(class\) knows 4 classes of 'label', but the data has 10") as caught:
        build().check({**SPECS, "label": FieldSpec("classes", (), 10)})
    assert "--set task.conditioners.0.num_classes=10" in caught.value.hint
    with pytest.raises(UserError, match="'label', but the data has only: image"):
        build().check(SPECS)
    build().check({**SPECS, "label": FieldSpec("classes", (), CLASSES)})


def test_non_square_images_and_channels_reach_the_network():
    task = config().build({"image": FieldSpec("image", (3, 8, 12))})
    assert task.latent_shape(5) == (5, 3, 8, 12)
    with torch.no_grad():
        *_, end = task.trajectory({"label": torch.tensor([1, 2])}, [3, 4], Ddim(steps=2), 2.0)
    assert end.x.shape == (2, 3, 8, 12)


@pytest.mark.parametrize(
    "network",
    [
        {
            "kind": "unet",
            "width": 8,
            "mult": [1, 2],
            "blocks": ["res", kind],
            "middle": [],
            "attend_at": [8],
            "head_dim": 8,
        }
        for kind in ("cross_attention", "spatial_transformer")
    ]
    + [{"kind": "dit", "patch": 4, "width": 16, "depth": 1, "heads": 2}],
    ids=["cross_attention", "spatial_transformer", "dit"],
)
def test_a_preset_reaches_the_networks_that_attend_to_tokens(network):
    """Classes in tokens train every parameter, and once awake the network tells one class from another and from none."""
    classes = {"kind": "class", "num_classes": CLASSES, "dim": 8, "tokens": 3}
    task = build(network=network, conditioners=[classes])
    task(batch(4))["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in task.parameters())
    x, t = torch.full((3, *SHAPE), 0.3), torch.tensor(0.5)
    told = {"label": torch.tensor([0, 1, 1])}
    keep = torch.tensor([True, True, False])
    with torch.no_grad():
        x0 = task.denoiser(x, t, task.condition(told, keep, x)).x0
    assert not torch.allclose(x0[0], x0[1])
    assert not torch.allclose(x0[1], x0[2])
