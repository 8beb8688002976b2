"""Large images predicted in tiles by a model under a picture: seeds, conditions and batches stay those of the whole image."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diffcli.engine.draw.sample import Request, SampleOptions, request
from diffcli.engine.model import Model
from diffcli.tasks.diffusion import DiffusionTask
from tests.conftest import Cli, changed
from tests.engine.draw.making import made
from tests.engine.draw.pictured.small import LOW, opened, picture, saved, upscaler


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return opened(tmp_path_factory.mktemp("up"), upscaler())


def asked(model: Model, file: Path, **options: object) -> Request:
    return request(model, SampleOptions(images=(file,), **options))  # type: ignore[arg-type]


def one_step(req: Request) -> torch.Tensor:
    """x0 as the guided denoiser predicts it of the noise that image 0 begins with."""
    task = req.task
    x, _ = task.start(req.seeds(range(1)))
    return req.denoise(range(1))(x, torch.tensor(0.7, dtype=torch.float64)).x0


def test_larger_images_are_tiled_by_the_trained_size_unless_told_otherwise(model: Model, tmp_path: Path) -> None:
    large, small = picture(tmp_path / "a.png", 20, 12), picture(tmp_path / "b.png", 8, 5)
    req = asked(model, large)
    assert req.describe()["tiles"] == {"size": [16, 16], "overlap": 4, "count": 6}
    assert asked(model, large, tile=24, overlap=6).describe()["tiles"] == {"size": [24, 24], "overlap": 6, "count": 2}
    for options in ({"whole": True}, {"tile": 64}):
        assert "tiles" not in asked(model, large, **options).describe()
    assert "tiles" not in asked(model, small).describe(), "it is smaller than a tile"


def test_tiles_of_one_picture_share_noise_and_condition(model: Model, tmp_path: Path) -> None:
    """With a network that looks at its own position alone, tiled is whole: each tile is told its part of the enlarged picture."""
    task = model.task
    assert isinstance(task, DiffusionTask)
    network = task.denoiser.network

    def pointwise(x: torch.Tensor, time: torch.Tensor, cond: object) -> torch.Tensor:
        return (0.3 * x + 0.6 * cond.spatial).tanh()  # type: ignore[attr-defined]

    file = picture(tmp_path / "a.png", 20, 30)
    wrapped = torch.nn.Linear(1, 1)
    wrapped.forward = pointwise  # type: ignore[assignment, method-assign]
    try:
        task.denoiser.network = wrapped
        tiled, whole = (one_step(asked(model, file, **o)) for o in ({}, {"whole": True}))
    finally:
        task.denoiser.network = network
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)
    assert not torch.allclose(one_step(asked(model, file)), one_step(asked(model, file, whole=True)), atol=1e-3)


def test_the_batch_size_bounds_the_tiles_and_changes_no_image(model: Model, tmp_path: Path) -> None:
    file = picture(tmp_path / "a.png", 20, 12)
    one, many = (asked(model, file, n=3, batch_size=size) for size in (1, 64))
    assert (one.batch_size, many.batch_size) == (1, 10)
    assert one.frame.tiles is not None
    assert one.frame.tiles.at_once == 1
    alike = torch.cat([one.images(range(i, i + 1)) for i in range(3)]).int()
    assert (alike - many.images(range(3)).int()).abs().max() <= 1


def test_guidance_acts_on_tiled_predictions_as_on_whole_ones(tmp_path: Path) -> None:
    kept = {**LOW, "drop": True}
    tree = upscaler(task__conditioners=[kept], task__drop_condition=0.1, guidance=3)
    guided = opened(tmp_path / "m", changed(tree, task__codec={"kind": "pixels", "clip": False}))
    file = picture(tmp_path / "a.png", 16)
    scales = [one_step(asked(guided, file, guidance=scale)) for scale in (0.0, 1.0, 1.5)]
    torch.testing.assert_close(scales[2], scales[0].lerp(scales[1], 1.5), rtol=0, atol=1e-4)


def test_any_model_is_tiled_where_it_is_asked_for_and_no_other(cli: Cli, tmp_path: Path) -> None:
    plain = request(made(), SampleOptions(n=1, size=(16, 24)))
    assert "tiles" not in plain.describe()
    tiled = request(made(), SampleOptions(n=1, size=(16, 24), tile=8))
    assert tiled.describe()["tiles"]["count"] == 12
    assert tiled.images(range(1)).shape == (1, 1, 16, 24)


def test_sides_that_the_tiles_cannot_share_are_drawn_larger_and_cut(cli: Cli, tmp_path: Path) -> None:
    deep = saved(tmp_path / "deep", upscaler(task__network__mult=[1, 1, 2]))
    file, out = picture(tmp_path / "a.png", 11, 13), tmp_path / "x.npz"
    assert cli("sample", "--ckpt", deep, "--image", file, "--out", out).code == 0
    assert np.load(out)["arr_0"].shape == (1, 22, 26, 1)
    assert json.loads(Path(f"{out}.json").read_text())["tiles"]["size"] == [16, 16]
    cli("sample", "--ckpt", deep, "--overlap", 4, "--no-tile", "--image", file, "--out", out).refused("--overlap 4")
