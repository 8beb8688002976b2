"""What one update does to the weights: the rate of its own step, and a gradient no longer than it may be."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from diffcli import preset as presets
from diffcli.engine.run.runlog import read_log
from diffcli.engine.run.state import build_state
from tests.conftest import Cli, changed
from tests.engine.one_level import SMALL

# plain descent moves the weights by rate * gradient, so that a step's length tells the rate and how the gradient was scaled
DESCENT = {
    "train__optimizer": {"kind": "sgd", "lr": 0.5, "momentum": 0},
    "train__every": {"log": 1, "preview": 0, "save": 1},
    "train__keep_last": 4,
}


def moves(run: Path, **keys: object) -> list[float]:
    """How far each step of a run of the tiny preset moved the weights."""
    first = build_state(presets.build(changed(SMALL, **keys), "tiny"), torch.device("cpu")).task.state_dict()
    saved = sorted((run / "checkpoints").iterdir())
    states = [first, *(load_file(folder / "task.safetensors") for folder in saved)]
    return [distance(one, other) for one, other in pairwise(states)]


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return float(sum((other[name].double() - value.double()).square().sum() for name, value in one.items()) ** 0.5)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_takes_the_rate_of_its_own_number_and_a_gradient_of_the_length_allowed(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path, precision: str
) -> None:
    """In fp16 gradients are scaled until they are shortened, and a step whose gradient overflows is left out."""
    keys = {
        **DESCENT,
        "train__precision": precision,
        "train__clip": 0.01,
        "train__curve": {"kind": "linear", "warmup": 2},
    }
    assert cli("train", "--preset", tiny(**keys), "--run-dir", tmp_path / "run").code == 0
    kept = list(read_log(tmp_path / "run" / "log.jsonl"))
    assert all(line["grad_norm"] > 0.1 for line in kept)  # each had to be shortened
    rates = [0.25, 0.5, 0.25, 0.0]  # the warm-up ends at step 2, the run at step 4
    assert [line["lr"] for line in kept] == rates
    finite = [line["grad_norm"] < float("inf") for line in kept]
    assert all(finite) or (precision == "fp16" and sum(finite) >= 2)
    expected = [rate * 0.01 * taken for rate, taken in zip(rates, finite, strict=True)]
    assert moves(tmp_path / "run", **keys) == pytest.approx(expected, rel=1e-4)


def test_a_gradient_shorter_than_the_limit_or_without_one_is_taken_as_it_is(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    for name, limit in (("none", None), ("far", 1e6)):
        path = tiny(name, **DESCENT)
        given = "null" if limit is None else limit
        done = cli("train", "--preset", path, "--run-dir", tmp_path / name, "--set", f"train.clip={given}")
        assert done.code == 0, done.err
        norms = [line["grad_norm"] for line in read_log(tmp_path / name / "log.jsonl")]
        assert moves(tmp_path / name, **DESCENT) == pytest.approx([0.5 * norm for norm in norms], rel=1e-4)


def test_averages_take_in_a_step_under_its_own_number(tiny: Callable[..., Path], cli: Cli, tmp_path: Path) -> None:
    """A power average forgets the initialisation in step 1, and no step after it is forgotten whole."""
    path = tiny(
        train__ema={"kind": "power", "stds": [0.1], "every": 4}, train__every={"log": 1, "preview": 0, "save": 1}
    )
    assert cli("train", "--preset", path, "--run-dir", tmp_path / "run", "--steps", 2).code == 0
    apart = []
    for folder in sorted((tmp_path / "run" / "checkpoints").iterdir()):
        apart.append(distance(load_file(folder / "ema.safetensors"), load_file(folder / "task.safetensors")))
    assert apart[0] < 1e-6 < 1e-4 < apart[1]
