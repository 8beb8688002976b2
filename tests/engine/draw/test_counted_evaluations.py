"""Samplers that count their evaluations as they go: the number reaches the sidecar and the score, whatever the batches."""

import json
from pathlib import Path

import pytest
import torch

from diffcli.diffusion.samplers import Ode, Step
from diffcli.engine.distributed import join
from diffcli.engine.draw.request import Tally
from diffcli.engine.draw.sample import SampleOptions, draw, load_model, request
from tests.conftest import Cli

SAMPLER = ("--sampler", "ode", "--set", "sampler.rtol=0.01", "--set", "sampler.atol=0.01")


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_sidecar_tells_the_most_evaluations_of_any_image(
    cli: Cli, trained: Path, tmp_path: Path, batch_size: int
) -> None:
    out = tmp_path / "images.npz"
    done = cli("sample", "--ckpt", trained, "--n", 3, "--batch-size", batch_size, *SAMPLER, "--out", out)
    assert done.code == 0, done.err
    model = load_model(trained, torch.device("cpu"))
    options = SampleOptions(n=3, sampler="ode", overrides=("sampler.rtol=0.01", "sampler.atol=0.01"))
    req = request(model, options)
    assert isinstance(req.sampler, Ode)
    with torch.no_grad():
        *_, last = req.task.trajectory(req.batch(range(3)), req.seeds(range(3)), req.sampler, req.guidance)
    counted = int(last.evaluations.max())
    assert counted > req.sampler.steps
    assert json.loads(Path(f"{out}.json").read_text())["nfe"] == counted


def test_an_animation_tells_them_too(cli: Cli, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "walk.gif"
    done = cli("gif", "--ckpt", trained, "--n", 2, *SAMPLER, "--out", out)
    assert done.code == 0, done.err
    assert json.loads(Path(f"{out}.json").read_text())["nfe"] > 6


def test_a_sampler_of_known_cost_leaves_the_tally_alone(trained: Path) -> None:
    with join("cpu") as group:
        req = request(load_model(trained, group.device), SampleOptions(n=2, sampler="unipc", steps=4))
        list(draw(req, group))
    assert (req.describe()["nfe"], int(req.tally)) == (4, 0)


def test_the_most_is_taken_over_all_images_but_those_that_only_fill_a_batch() -> None:
    tally, x = Tally(), torch.zeros(3, 1)
    steps = [Step(torch.tensor(t), x, x, torch.tensor(counts)) for t, counts in ((0.5, [2, 4, 9]), (0.0, [6, 7, 12]))]
    assert list(tally.watch(iter(steps), 2)) == steps
    assert int(tally) == 7


def test_rows_past_the_end_of_a_request_only_fill_a_batch(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    monkeypatch.setattr(Tally, "watch", lambda self, steps, count: counts.append(count) or steps)
    request(load_model(trained, torch.device("cpu")), SampleOptions(n=3)).walk(range(2, 5))
    assert counts == [1]
