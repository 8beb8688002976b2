"""The adversarial part: when it begins, what it costs until then, and that all of it is of the whole batch."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diffcli.config import UserError
from diffcli.tasks.autoencoder.adversary import LEARNED_NOTHING, OVERRUN, WINDOW, Adversarial, Adversary, at_last_layer
from diffcli.tasks.autoencoder.autoencoder_config import AutoencoderTaskConfig
from diffcli.tasks.autoencoder.autoencoder_task import AutoencoderTask
from tests.ranks import Alone
from tests.tasks.autoencoder.stages import ADVERSARIAL, NETWORK, batch, first_stage, part

START, COUNTS = ADVERSARIAL["start"], ADVERSARIAL["start"] + ADVERSARIAL["warm"]


class Recording:
    """The processes of a run of which this is one: adds what the others have left."""

    def __init__(self, others: list[Tensor] | None = None) -> None:
        self.others, self.left = list(others or []), []

    def gather(self, rows: Tensor) -> Tensor:
        return rows

    def sum(self, values: Tensor) -> Tensor:
        self.left.append(values)
        return values + (self.others.pop(0) if self.others else 0)


def adversarial(**keys: Any) -> AutoencoderTask:
    return first_stage(bottleneck={"kind": "none"}, adversarial=ADVERSARIAL | keys)


def test_a_discriminator_too_deep_for_the_images_is_refused_when_the_task_is_built() -> None:
    key = "task.adversarial.discriminator.depth"
    for size, depth, least, hint in ((16, 3, 24, "=2"), (32, 9, 1536, "=3"), (4, 1, 6, "task.adversarial=null")):
        with pytest.raises(UserError) as refused:
            first_stage(size=size, adversarial=ADVERSARIAL | {"discriminator": {"depth": depth}})
        assert refused.value.problem.startswith(f"{key} is {depth}, for images of {least} pixels")
        assert f"{size}x{size}" in refused.value.problem
        assert hint in refused.value.hint
    config = AutoencoderTaskConfig.model_validate({"network": NETWORK, "adversarial": {}})
    config.check_buckets([(24, 32)])
    with pytest.raises(ValueError, match=rf"{key} is 3.* 20x40 .*; use --set {key}=2,.*data.buckets"):
        config.check_buckets([(24, 32), (20, 40)])


def flops(task: AutoencoderTask, step: int) -> int:
    """Of a step forward and backward, in the phases that are due."""
    total = 0
    for phase in task.phases:
        if phase.due(step):
            with task.only(phase.networks), FlopCounterMode(display=False) as counter:
                task(batch(), phase.name, step)["loss"].backward()
            total += counter.get_total_flops()
    return total


def test_a_hinge_loss_of_logits_of_0_is_1():
    adversary = Adversarial(**ADVERSARIAL).build(1)
    for parameter in adversary.discriminator.head.parameters():
        torch.nn.init.zeros_(parameter)
    rows = batch()["image"]
    assert adversary.judging(rows, rows)["loss"] == 1


def test_a_discriminator_costs_nothing_before_it_starts_and_the_autoencoder_nothing_more_while_it_warms_up():
    plain, task = first_stage(bottleneck={"kind": "none"}), adversarial()
    alone = flops(plain, 1)
    assert [flops(task, step) for step in (1, START - 1)] == [alone, alone]
    warming, counting = flops(task, START), flops(task, COUNTS)
    with FlopCounterMode(display=False) as counter:
        task(batch(), "main", START)["loss"].backward()
    assert counter.get_total_flops() == alone
    assert alone < warming < counting


@pytest.mark.parametrize("balance", ["adaptive", "constant"])
def test_the_discriminator_is_constant_in_the_autoencoders_pass_also_over_micro_batches(balance: str):
    task = adversarial(balance=balance)
    task.adversary.ratio.fill_(1.0)
    theirs = list(task.adversary.discriminator.parameters())
    with task.only(["autoencoder"]):
        for rows in (slice(0, 2), slice(2, 6)):
            task(part(batch(), rows), "main", COUNTS)["loss"].backward()
        assert all(p.grad is None for p in theirs)
        assert all(p.grad is not None for p in task.autoencoder.parameters())
        task.zero_grad(set_to_none=True)
    with task.only(["discriminator"]):
        task(batch(), "discriminator", COUNTS)["loss"].backward()
    assert all(p.grad is not None for p in theirs)
    assert all(p.grad is None for p in task.autoencoder.parameters())


def test_only_after_the_warm_up_does_the_discriminator_move_the_autoencoder():
    plain, task, rows = first_stage(bottleneck={"kind": "none"}), adversarial(balance="constant"), batch()
    plain.autoencoder.load_state_dict(task.autoencoder.state_dict())
    assert task(rows, "main", COUNTS - 1)["loss"] == plain(rows)["loss"]
    terms = task(rows, "main", COUNTS)
    logits = task.adversary.discriminator(task.autoencoder(rows["image"])[0])
    torch.testing.assert_close(terms["loss"], plain(rows)["loss"] - 0.8 * logits.mean())
    with task.comparable():  # as it is validated
        assert task(rows, "main", COUNTS)["loss"] == plain(rows)["loss"]


def expected_ratio(task: AutoencoderTask, rows: dict[str, Tensor]) -> Tensor:
    made = task.autoencoder(rows["image"])[0]
    rest, fooled = (made - rows["image"]).square().mean(), -task.adversary.discriminator(made).mean()
    norms = [
        torch.autograd.grad(loss, task.autoencoder.last_layer, retain_graph=True)[0].norm() for loss in (rest, fooled)
    ]
    return norms[0] / (norms[1] + 1e-4)


def test_the_adaptive_weight_is_that_of_the_whole_batch_a_step_late_however_it_was_split():
    rows = batch()
    task = adversarial()
    expected = expected_ratio(task, rows)
    terms = task(rows, "main", COUNTS)
    assert terms["gan_weight"] == 0
    task.after_update(Alone())
    torch.testing.assert_close(task.adversary.ratio, expected)
    torch.testing.assert_close(task(rows, "main", COUNTS + 1)["gan_weight"], 0.8 * expected)
    parted = adversarial()
    for cut in (slice(0, 1), slice(1, 6)):
        parted(part(rows, cut), "main", COUNTS)
    parted.after_update(Alone())
    torch.testing.assert_close(parted.adversary.ratio, expected)
    one, other, recorded = adversarial(), adversarial(), Recording()
    one(part(rows, slice(0, 4)), "main", COUNTS)
    one.after_update(recorded)
    other(part(rows, slice(4, 6)), "main", COUNTS)
    other.after_update(Recording(recorded.left))
    torch.testing.assert_close(other.adversary.ratio, expected)
    assert not one.adversary.ratio.allclose(expected)


class Halved(torch.autograd.Function):
    """The identity whose gradient fp16 holds, as where a network runs in it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.half().float()


@pytest.mark.parametrize("size", [1e-3, 1.0, 100.0])
def test_in_fp16_the_adaptive_weight_is_that_of_float32(size: float):
    """Of 4 images of 256 x 256: the gradient of a mean over so many numbers is 0 in fp16, and of their sum infinite."""
    adversary = Adversarial(**ADVERSARIAL).build(1)
    h, x = (batch(4, size=256)["image"] + shift for shift in (1, 1 + size))
    found = []
    for half in (Halved.apply, lambda x: x):
        weight = torch.full((1, 1, 3, 3), 0.1, requires_grad=True)
        made = half(torch.nn.functional.conv2d(h, half(weight), padding=1))
        adversary.gradients.clear()
        adversary.fooling(made, (made - x).square().mean(), weight)
        found.append(adversary.gradients[0])
    torch.testing.assert_close(*found, rtol=2e-3, atol=1e-6)


def test_the_gradient_at_the_last_layer_is_to_the_bit_what_it_is_unscaled():
    task, rows = adversarial(), batch()
    made, last = task.autoencoder(rows["image"])[0], task.autoencoder.last_layer
    for loss in ((made - rows["image"]).square().mean(), -task.adversary.discriminator(made).mean()):
        (expected,) = torch.autograd.grad(loss, last, retain_graph=True)
        assert at_last_layer(loss, made, last).equal(expected.flatten())


def test_a_gradient_that_overflows_leaves_the_adaptive_weight_as_it_was():
    adversary = Adversarial(**ADVERSARIAL).build(1)
    adversary.ratio.fill_(0.5)
    adversary.gradients.append(torch.tensor([torch.inf, torch.nan, 1.0]))
    adversary.update(Alone())
    assert adversary.ratio == 0.5


def test_the_adaptive_weight_is_capped():
    task = adversarial(cap=0.01)
    task(batch(), "main", COUNTS)
    task.after_update(Alone())
    assert float(task.adversary.ratio) == pytest.approx(0.01)


def test_running_means_are_of_all_processes_and_begin_with_the_first_update():
    real, made, one, other = batch()["image"], batch(6)["image"].flip(0), adversarial(), adversarial()
    whole = Adversarial(**ADVERSARIAL).build(1)
    whole.load_state_dict(one.adversary.state_dict())
    recorded = Recording()
    one.adversary.judging(real[:4], made[:4])
    one.adversary.update(recorded)
    other.adversary.judging(real[4:], made[4:])
    other.adversary.update(Recording(recorded.left))
    terms = whole.judging(real, made)
    whole.update(Alone())
    torch.testing.assert_close(whole.means, torch.stack([terms["real"], terms["fake"], terms["loss"]]).detach())
    torch.testing.assert_close(other.adversary.means, whole.means)
    before = whole.means.clone()
    terms = whole.judging(made, real)
    whole.update(Alone())
    now = torch.stack([terms["real"], terms["fake"], terms["loss"]]).detach()
    torch.testing.assert_close(whole.means, before + (now - before) / WINDOW)


def test_lecam_keeps_logits_near_the_running_means_of_the_other_side():
    """Source: Tseng et al. 2021, eq. 5; as in their code only those that are too far apart count."""
    adversary = Adversarial(**ADVERSARIAL, lecam=0.5).build(1)
    real, made = batch()["image"], batch()["image"].flip(0)
    first = adversary.judging(real, made)
    assert first["loss"] == first["hinge"]  # nothing is known yet
    adversary.update(Alone())
    adversary.means.copy_(torch.tensor([0.3, -0.2, 1.0]))
    logits, others = adversary.discriminator(real), adversary.discriminator(made)
    far = (logits + 0.2).clamp(min=0).square().mean() + (0.3 - others).clamp(min=0).square().mean()
    terms = adversary.judging(real, made)
    torch.testing.assert_close(terms["loss"], terms["hinge"] + 0.5 * far)


def test_the_discriminator_judges_the_reconstructions_of_its_own_step():
    """Those that the autoencoder's pass made, before its update; without such a pass it makes them anew."""
    task, rows = adversarial(), batch()
    task(rows, "main", START)
    before = task(rows, "discriminator", START)["fake"]
    with torch.no_grad():
        task.autoencoder.last_layer.mul_(3)
    task(rows, "main", START)
    again = task(rows, "discriminator", START)["fake"]
    assert before != again
    torch.testing.assert_close(task(rows, "discriminator", START)["fake"], again)
    task(rows, "main", START)
    task.after_update(Alone())
    assert task.made == []


@pytest.mark.parametrize(("hinge", "said"), [(1.0, [LEARNED_NOTHING]), (0.7, []), (0.05, [OVERRUN])])
def test_what_is_amiss_is_said_once_there_is_a_window_to_tell_it_from(hinge: float, said: list[str]):
    task = adversarial()
    values = {"discriminator/recent_hinge": hinge}
    assert task.remarks(START + 2 * WINDOW - 1, values) == []
    assert task.remarks(START + 2 * WINDOW, values) == said
    assert task.remarks(START + 2 * WINDOW, {}) == first_stage().remarks(1000, values) == []


def test_a_file_to_sample_from_has_no_discriminator_but_the_state_of_training():
    task = adversarial()
    kept = {name for name in task.sampled_state() if not name.startswith("autoencoder.")}
    assert kept == {f"adversary.{name}" for name in ("ratio", "means", "updates")}
    task.forget_unsampled()
    assert isinstance(task.adversary, Adversary)
    assert list(task.adversary.parameters()) == []
    assert task.reconstruct(batch()["image"]).shape == (6, 1, 8, 8)
