"""What a picture is worth, and the step at which it took hold."""

import torch

from diffcli.tasks.control.gain import LOOKS, ControlGain


def since(*looks: tuple[float, float]) -> int:
    """`since` after looks (mean, deviation) at the steps 10, 20, ..., 100 samples each."""
    gain, spread = ControlGain(), torch.linspace(-1, 1, 100)
    spread /= spread.std(correction=0)
    for i, (mean, deviation) in enumerate(looks):
        gain.take(mean + deviation * spread, 10 * (i + 1))
    return int(gain.since)


def test_control_takes_hold_at_the_first_of_several_looks_above_twice_the_standard_error() -> None:
    noise, above = (0.19, 1.0), (0.21, 1.0)  # the standard error of 100 samples is 0.1
    assert since(*[noise] * 5) == 0
    assert since(noise, *[above] * LOOKS) == 20
    assert since(above, noise, *[above] * (LOOKS - 1)) == 0
    assert since(above, noise, *[above] * LOOKS, noise, *[above] * LOOKS) == 30


def test_a_gain_below_zero_or_of_nothing_never_takes_hold() -> None:
    assert since(*[(-1.0, 0.1)] * 5) == 0
    assert since(*[(0.0, 0.0)] * 5) == 0
