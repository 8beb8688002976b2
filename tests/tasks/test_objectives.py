"""Objectives in a task: what a preset may combine, importance sampling's memory, and coupling within a micro-batch."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from diffcli import preset as presets
from diffcli.diffusion.coupling import paired
from diffcli.diffusion.likelihood import variational_term
from diffcli.diffusion.samplers import Ddim
from diffcli.fields import FieldSpec
from diffcli.noise import Noise
from diffcli.tasks.diffusion import DiffusionTask
from tests.conftest import TINY, changed
from tests.diffusion.grey import to_levels
from tests.ranks import Alone
from tests.tasks.test_diffusion_task import SHAPE, Constant, batch, build, config, part

AWARE = {"times": {"kind": "loss_aware", "window": 2}, "schedule": {"kind": "cosine", "steps": 5}}


ENDLESS = {"kind": "linear", "zero_terminal_snr": True}


def aware(**changes: Any) -> DiffusionTask:
    return build(**(AWARE | changes)).train()


def test_a_task_that_remembers_nothing_has_the_weights_of_before():
    """Checkpoints written without these mechanisms load."""
    assert not [name for name in build().state_dict() if "history" in name]
    assert {"history.losses", "history.count"} <= aware().state_dict().keys()


def test_every_time_drawn_is_recorded_with_its_loss():
    task, whole = aware(drop_condition=0.3), batch(40)
    with torch.no_grad():
        mean = task(whole)["loss"]
    (where, losses) = task.drawn[0]
    assert where[:, 0].tolist() == list(range(40))
    torch.testing.assert_close(mean, losses.mean())  # the weight is 1 while the times are uniform
    task.after_update(Alone())
    assert int(task.history.count.sum()) == 40
    assert torch.equal(task.history.count, torch.bincount(where[:, 1], minlength=5))
    assert not task.drawn


def test_what_is_remembered_does_not_depend_on_micro_batches_or_processes():
    whole, histories = batch(40), []
    splits = [[slice(0, 40)]], [[slice(0, 7), slice(7, 40)]], [[slice(0, 13)], [slice(13, 20), slice(20, 40)]]
    for ranks in splits:
        told: list[tuple[Tensor, Tensor]] = []
        for parts in ranks:  # each rank's own task, then the rows of all ranks for all
            task = aware()
            with torch.no_grad():
                for rows in parts:
                    task(part(whole, rows))
            told.append(tuple(torch.cat(each) for each in zip(*task.drawn, strict=True)))
        everything = [
            torch.cat(each) for each in zip(*reversed(told), strict=True)
        ]  # in any order: positions sort them
        ranks = Alone()
        ranks.gather = lambda rows, rest=iter(everything): next(rest)  # type: ignore[method-assign]
        task.after_update(ranks)
        histories.append(task.history)
    for history in histories[1:]:
        assert torch.equal(history.count, histories[0].count)
        torch.testing.assert_close(history.losses, histories[0].losses, rtol=1e-4, atol=1e-5)


def test_looking_at_the_loss_leaves_no_trace_where_nothing_is_trained():
    task = aware().eval()
    with torch.no_grad():
        task(batch(4))
    assert not task.drawn


@torch.no_grad()
def test_the_weighted_loss_of_a_warm_history_estimates_the_uniform_one():
    task = aware(schedule={"kind": "cosine", "steps": 5}, conditioners=[])
    task.denoiser.network = Constant()
    task.history.losses.copy_(torch.tensor([0.1, 0.3, 1.0, 2.0, 4.0])[:, None].expand(5, 2))
    task.history.count.fill_(2)
    uniform = build(schedule=AWARE["schedule"], conditioners=[]).train()
    uniform.denoiser.network = Constant()
    n = 4000
    assert float(task(batch(n))["loss"]) == pytest.approx(float(uniform(batch(n))["loss"]), rel=0.03)
    drawn = torch.bincount(task.drawn[0][0][:, 1], minlength=5)
    assert drawn[4] > 10 * drawn[0]
    assert drawn.min() > 0


@torch.no_grad()
def test_coupling_pairs_the_noises_of_a_micro_batch(monkeypatch: pytest.MonkeyPatch):
    seen: list[Tensor] = []

    def spy(eps: Tensor, x0: Tensor) -> Tensor:
        seen.append(eps)
        return paired(eps, x0)

    monkeypatch.setattr("diffcli.tasks.diffusion.paired", spy)
    task, plain = build(coupling="optimal_transport"), build()
    coupled, apart = float(task(batch(8))["loss"]), float(plain(batch(8))["loss"])
    assert torch.equal(seen[0], Noise(batch(8)["stream"], torch.device("cpu"))(torch.empty(8, *SHAPE)))
    assert coupled != apart
    assert float(task(batch(8))["loss"]) == coupled
    alone_each = [float(task(part(batch(8), slice(i, i + 1)))["loss"]) for i in range(8)]
    assert sum(alone_each) / 8 == pytest.approx(apart, rel=1e-5)  # a micro-batch of one has nothing to pair


@torch.no_grad()
def test_scaled_pixels_are_encoded_clipped_and_decoded_in_their_own_units():
    task = build(codec={"kind": "pixels", "scale": 2.0})
    fields, image = {"label": torch.tensor([0, 1])}, batch(2)["image"]
    assert torch.equal(task.codec.encode(image), 2 * image)
    torch.testing.assert_close(task.decode(task.codec.encode(image)), image)
    x, t = Noise([1, 2], torch.device("cpu"))(torch.empty(2, *SHAPE)) * 6, torch.tensor(0.5, dtype=torch.float64)
    free = build(codec={"kind": "pixels", "scale": 2.0, "clip": False}).denoise(fields, 3, 2)(x, t)
    assert free.x0.abs().max() > 2
    assert torch.equal(task.denoise(fields, 3, 2)(x, t).x0, free.x0.clamp(-2, 2))


@torch.no_grad()
def test_a_learned_variance_prices_the_grey_levels_of_scaled_pixels():
    """A schedule of one step has the last term alone, which must know the codec's units."""
    schedule, whole = {"kind": "cosine", "steps": 1}, batch(4)
    whole["image"] = to_levels(whole["image"])
    task = build(learn_variance=True, target="eps", schedule=schedule, codec={"kind": "pixels", "scale": 4.0})
    x0, t = 4 * whole["image"], torch.ones(4, dtype=torch.float64)
    alpha, sigma = task.denoiser.schedule.alpha_sigma(torch.ones(()))
    x_t = (alpha * x0 + sigma * Noise(whole["stream"], torch.device("cpu"))(x0)).float()
    p = task.denoiser(x_t, t, task.condition(whole, torch.ones(4, dtype=torch.bool), x0))
    expected = variational_term(p, x0, x_t, t, task.denoiser.schedule, scale=4.0).mean()
    torch.testing.assert_close(task(whole)["vlb"], expected)
    assert float(expected) != pytest.approx(
        float(variational_term(p, x0, x_t, t, task.denoiser.schedule).mean()), rel=0.01
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"times": {"kind": "loss_aware"}, "schedule": {"kind": "flow"}},
            "the flow schedule has none; set task.times.kind",
        ),
        (
            {"weight": {"kind": "min_snr"}, "distance": {"kind": "huber"}},
            "stated for squared errors, but distance is huber",
        ),
        ({"weight": {"kind": "min_snr", "gamma": 0}}, "gamma"),
        ({"weight": {"kind": "min_snr"}, "schedule": ENDLESS}, "is 0 at t = 1 where no signal is left"),
        ({"target": "eps", "schedule": ENDLESS}, "on the linear schedule, where no signal is left; set task.target to"),
        ({"learn_variance": True, "schedule": {"kind": "edm"}}, "edm has no steps"),
        ({"weight": {"kind": "snr"}}, "'none', 'min_snr'"),
        ({"distance": {"kind": "l3"}}, "'l2', 'l1', 'huber'"),
        ({"coupling": "ot"}, "'none' or 'optimal_transport'"),
        ({"times": {"kind": "shifted", "shift": -1}}, "shift"),
        ({"codec": {"kind": "pixels", "scale": 0}}, "scale"),
    ],
)
def test_contradictions_are_refused_by_name(changes: dict[str, Any], words: str):
    with pytest.raises(ValidationError, match=words):
        config(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"weight": {"kind": "min_snr"}, "learn_variance": True, "target": "eps"},
        {"distance": {"kind": "l1"}, "times": {"kind": "shifted"}},
        {
            "coupling": "optimal_transport",
            "schedule": {"kind": "flow"},
            "target": "flow",
            "times": {"kind": "logit_normal"},
        },
        {
            "times": {"kind": "log_normal_sigma"},
            "codec": {"kind": "pixels", "scale": 2.0},
            "distance": {"kind": "huber"},
        },
    ],
)
def test_what_is_allowed_trains_and_samples(changes: dict[str, Any]):
    task = build(**changes).train()
    task(batch(6))["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.parameters() if p.requires_grad)
    with torch.no_grad():
        *_, end = task.eval().trajectory({"label": torch.tensor([1])}, [3], Ddim(steps=3), 2.0)
    assert end.x.isfinite().all()


def test_a_condition_that_is_never_dropped_is_noted_unless_the_preset_says_so():
    def advice(**keys: Any) -> list[str]:
        return presets.build(changed(TINY, guidance=1, **keys), "tiny.yaml").advice()

    (note,) = advice(task__drop_condition=None)
    assert "--guidance" in note
    assert "task.drop_condition=0.1" in note
    assert advice(task__drop_condition=0) == advice(task__drop_condition=0.1) == []
    assert advice(task__drop_condition=None, task__conditioners=None) == []


def test_coupling_a_conditional_model_is_allowed_with_advice():
    def advice(**keys: Any) -> str:
        return " ".join(presets.build(changed(TINY, **keys), "tiny.yaml").advice())

    assert "task.coupling" in advice(task__coupling="optimal_transport")
    assert "task.coupling" not in advice()
    unconditional = {"task__conditioners": [], "task__drop_condition": 0, "guidance": 1}
    assert "task.coupling" not in advice(task__coupling="optimal_transport", **unconditional)


def test_the_shape_of_a_history_follows_the_schedule():
    task = config(**AWARE).build({"image": FieldSpec("image", (1, 8, 8))})
    assert task.history.losses.shape == (5, 2)
