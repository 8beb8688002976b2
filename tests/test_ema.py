"""Moving averages: their formulas, and the reconstruction of power averages of any width from snapshots."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from diffcli.ema import (
    AnyEma,
    Ema,
    PowerEma,
    Profile,
    averages,
    coefficients,
    exponential,
    gamma_of,
    inner_products,
    power,
    snapshot_every,
    std_of,
)
from diffcli.noise import Noise
from diffcli.optim import AdamW
from tests.test_optim import FORMATS, network, update, weights


def test_ema_is_the_weighted_mean_of_its_formula():
    module = network()
    ema, expected = Ema(module, exponential(0.8)), weights(module).double()
    for step in range(1, 60):
        with torch.no_grad():
            for p in module.parameters():
                p.add_(0.01 * step)
        ema.update(step)
        decay = min(0.8, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weights(module).double()
        torch.testing.assert_close(weights(ema.module).double(), expected, rtol=1e-5, atol=1e-5)
    assert (1 + 1) / (10 + 1) < 0.2  # the first update takes in 82% of the new weights
    assert (1 + 59) / (10 + 59) > 0.8  # and the last ones follow the decay asked for


def test_early_averages_are_not_the_initialisation():
    """With a decay of 0.9999 and no warm-up, 100 updates would leave 99% of the first weights."""
    module = network()
    ema = Ema(module, exponential(0.9999))
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(1.0)
    before = weights(ema.module)
    for step in range(1, 101):
        ema.update(step)
    assert (weights(ema.module) - 1).abs().max() < 1e-4 * (before - 1).abs().max()


def test_buffers_are_copied_and_integers_stay_integers():
    module = network()
    ema = Ema(module, exponential(0.999))
    update(module, AdamW().build(list(module.parameters())), 0)
    ema.update(1)
    assert module[1].num_batches_tracked == 1
    for own, source in zip(ema.module.buffers(), module.buffers(), strict=True):
        assert torch.equal(own, source)
        assert own.dtype == source.dtype


def test_the_average_is_its_own_module_in_evaluation_mode_without_gradients():
    module = network().train()
    ema = Ema(module, exponential(0.5))
    assert not any(sub.training for sub in ema.module.modules())
    assert not any(p.requires_grad for p in ema.module.parameters())
    assert module.training
    assert all(p.requires_grad for p in module.parameters())
    before = weights(module)
    ema.update(1)
    assert torch.equal(weights(module), before)
    assert all(a is not b for a, b in zip(ema.module.parameters(), module.parameters(), strict=True))


@pytest.mark.parametrize("memory_format", FORMATS, ids=["contiguous", "channels_last"])
def test_the_average_goes_on_from_its_state_bit_for_bit(memory_format):
    module = network(memory_format)
    optimizer = AdamW(lr=0.01).build(list(module.parameters()))
    ema = Ema(module, exponential(0.9))
    for step in range(1, 4):
        update(module, optimizer, step)
        ema.update(step)
    resumed = Ema(module, exponential(0.9))
    resumed.module.load_state_dict({name: value.contiguous() for name, value in ema.module.state_dict().items()})
    for step in range(4, 7):
        update(module, optimizer, step)
        ema.update(step)
        resumed.update(step)
    assert torch.equal(weights(ema.module), weights(resumed.module))


@pytest.mark.parametrize("std", [0.001, 0.01, 0.05, 0.1, 0.2, 0.25, 0.28])
def test_exponent_and_relative_width_are_inverse(std: float) -> None:
    assert std_of(gamma_of(std)) == pytest.approx(std, rel=1e-9)


def test_known_widths() -> None:
    """A uniform mean has 12^-0.5; the exponents of the paper's 5%, 10% and 15%, section 3.1."""
    assert std_of(0) == pytest.approx(12**-0.5)
    assert [gamma_of(std) for std in (0.05, 0.10, 0.15)] == pytest.approx([16.97, 6.94, 3.56], abs=0.01)


@pytest.mark.parametrize("std", [0.02, 0.05, 0.1, 0.28])
def test_the_weights_of_a_power_average_are_the_integrals_of_its_profile_and_as_wide(std: float) -> None:
    gamma, steps = gamma_of(std), 2000
    share = np.zeros(steps + 1)
    for step in range(1, steps + 1):
        decay = power(std).decay(step)
        share *= decay
        share[step] = 1 - decay
    edges = np.linspace(0, 1, steps + 1) ** (gamma + 1)
    assert np.allclose(share[1:], np.diff(edges), atol=1e-12)
    at = (np.arange(steps) + 0.5) / steps
    mean = (share[1:] * at).sum()
    assert math.sqrt((share[1:] * (at - mean) ** 2).sum()) == pytest.approx(std, rel=1e-3)


def test_nothing_of_the_initialisation_is_in_a_power_average() -> None:
    assert all(power(std).decay(1) == 0 for std in (0.01, 0.1, 0.28))


def test_inner_products_are_those_of_the_profiles() -> None:
    """Against a sum over a fine grid."""
    a, b = [Profile(100, 0.05), Profile(300, 0.1)], [Profile(100, 0.1), Profile(200, 0.2), Profile(400, 0.1)]
    t = (np.arange(400_000) + 0.5) / 1000

    def density(p: Profile) -> np.ndarray:
        gamma = gamma_of(p.std)
        return np.where(t < p.step, (gamma + 1) / p.step * np.minimum(t / p.step, 1) ** gamma, 0)

    expected = [[(density(p) * density(q)).sum() / 1000 for q in b] for p in a]
    assert np.allclose(inner_products(a, b), expected, rtol=1e-4)


def stored(steps: int, every: int) -> list[Profile]:
    return [Profile(step, std) for step in range(every, steps + 1, every) for std in (0.05, 0.1)]


@pytest.mark.parametrize("every", [500, 100, 10])
@pytest.mark.parametrize("wanted", [Profile(1000, 0.05), Profile(1000, 0.1), Profile(500, 0.1)])
def test_what_is_stored_is_reconstructed_exactly(every: int, wanted: Profile) -> None:
    profiles = stored(1000, every)
    expected = np.array([p == wanted for p in profiles], dtype=float)
    assert np.abs(coefficients(profiles, wanted) - expected).max() < 1e-6


def walk(steps: int) -> Iterator[np.ndarray]:
    """Weights of a made-up training run: a drift towards 1 and a wandering about it, 50 of them."""
    draws, at = Noise(range(50), torch.device("cpu"))(torch.empty(50, steps)).double().numpy(), np.zeros(50)
    for step in range(1, steps + 1):
        at = at + 0.01 * (1 - at) + 0.05 * draws[:, step - 1]
        yield at + np.sin(step / 40)


def tracked(wanted: list[Profile], steps: int) -> dict[Profile, np.ndarray]:
    """The power averages as training keeps them, each at its step."""
    running = {std: np.full(50, 100.0) for std in {p.std for p in wanted}}  # 100: an initialisation to be forgotten
    found = {}
    for step, at in enumerate(walk(steps), start=1):
        for std, value in running.items():
            decay = power(std).decay(step)
            running[std] = decay * value + (1 - decay) * at
        found |= {p: running[p.std] for p in wanted if p.step == step}
    return found


@pytest.mark.parametrize("std", [0.04, 0.07, 0.13])
def test_a_reconstruction_is_near_the_average_tracked_in_training_and_nearer_with_more_snapshots(std: float) -> None:
    steps, wanted = 800, Profile(800, std)
    errors = []
    for every in (200, 50, 25):
        profiles = stored(steps, every)
        found = tracked([*profiles, wanted], steps)
        made = sum(c * found[p] for c, p in zip(coefficients(profiles, wanted), profiles, strict=True))
        errors.append(np.abs(made - found[wanted]).mean())
    assert errors[0] > errors[1] > errors[2]
    away = np.abs(found[profiles[-1]] - found[wanted]).mean()  # what taking the nearest kept average would cost
    assert errors[2] < 0.02 * away


READ = TypeAdapter(AnyEma)


def test_one_rate_several_and_power_are_told_apart_and_written_back_as_they_were() -> None:
    for given in (0.9999, [0.999, 0.9999], {"kind": "power", "stds": [0.05, 0.2], "every": 7}):
        assert READ.dump_python(READ.validate_python(given), mode="json") == given
    assert [a.name for a in averages(READ.validate_python([0.999, 0.5]))] == ["rate-0.999", "rate-0.5"]
    assert [a.name for a in averages(READ.validate_python({"stds": [0.05, 0.2]}))] == ["std-0.050", "std-0.200"]
    assert snapshot_every(READ.validate_python({"every": 7})) == 7
    assert snapshot_every(0.9) == 0


@pytest.mark.parametrize(
    "value",
    [1, -0.1, "x", [], [0.5, 0.5], [0.5, 1], None, {"stds": []}, {"stds": [0.29]}, {"stds": [0]},
     {"stds": [0.05, 0.0501]}, {"every": 0}, {"kind": "exponential"}, {"rates": [0.5]}],
)  # fmt: skip
def test_what_is_no_average_is_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        READ.validate_python(value)


def test_power_averages_default_to_the_two_of_the_paper() -> None:
    assert PowerEma().stds == (0.05, 0.1)


def test_a_tracked_module_follows_the_formula() -> None:
    module = network()
    ema, expected = Ema(module, power(0.1)), weights(module).double()
    for step in range(1, 30):
        with torch.no_grad():
            for p in module.parameters():
                p.add_(0.01 * step)
        ema.update(step)
        decay = (1 - 1 / step) ** (gamma_of(0.1) + 1)
        expected: Tensor = decay * expected + (1 - decay) * weights(module).double()
    torch.testing.assert_close(weights(ema.module).double(), expected, rtol=1e-5, atol=1e-5)
