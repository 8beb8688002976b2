"""`--project`: an upscaler's images are the picture that it was given once they are made smaller again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from diffcli.config import UserError
from diffcli.data.lowering import lowered as by_pillow
from diffcli.diffusion.operators import lowered
from diffcli.diffusion.samplers import last
from diffcli.engine.draw.given import Value
from diffcli.engine.draw.request import Request
from diffcli.engine.draw.sample import SampleOptions, request, request_of
from diffcli.facade import LoadedModel
from diffcli.fields import to_float
from diffcli.metrics.nearness import psnr_of_bytes
from tests.conftest import Cli
from tests.engine.draw.making import FREE, encoding, made
from tests.engine.score.pairs.test_drawn_pairs import UPSCALER, model_of, save
from tests.pairing import paired

ROWS = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def asked(kernel: str = "bicubic", **options: Any) -> Request:
    derived = [{"kind": "low_res", "factor": 2, "kernel": kernel}]
    model = model_of(UPSCALER | {"data": {"kind": "digits", "size": 16, "derived": derived}})
    return request(model, SampleOptions(**{"project": True, **options}), given={"low_res": Value(ROWS, "rows")})


@pytest.mark.parametrize(
    ("sampler", "kernel"), paired(["ddim", "ddpm", "dpmpp_2m"], ["bicubic", "lanczos", "bilinear", "box"])
)
def test_the_final_image_measures_as_its_condition_by_the_kernel_of_the_preset(sampler: str, kernel: str) -> None:
    end = last(asked(kernel, sampler=sampler, steps=3).walk(range(3))[1]).x
    operator = lowered((16, 16), 2, kernel)  # type: ignore[arg-type]
    torch.testing.assert_close(operator.measure(end), to_float(ROWS), rtol=0, atol=1e-5)


def test_files_hold_it_up_to_rounding_and_without_projection_they_do_not() -> None:
    """Of grey pictures, which need no level beyond black and white."""
    flat = (ROWS // 4 + 96).clamp(0, 255)
    model = model_of(UPSCALER)
    found = {}
    for project in (True, False):
        req = request(model, SampleOptions(project=project), given={"low_res": Value(flat, "rows")})
        found[project] = psnr_of_bytes(by_pillow(req.images(range(3)), (8, 8), "bicubic"), flat).min().item()
    assert found[True] > 50
    assert found[False] < 30


def test_a_gif_projects_its_last_frame_and_the_record_says_how() -> None:
    req = asked()
    start, steps = req.walk(range(3))
    assert not torch.allclose(lowered((16, 16), 2).measure(start), to_float(ROWS), atol=0.1)
    *_, end = steps
    assert (end.x.abs().max() - 1).clamp(min=0) < 0.5
    project = {"field": "low_res", "factor": 2, "kernel": "bicubic, antialiased as Pillow's"}
    assert json.loads(json.dumps(req.describe(), default=int))["project"] == project


def test_a_score_may_be_of_projected_samples(cli: Cli, tmp_path: Path) -> None:
    run = save(tmp_path / "run", UPSCALER)
    scores = []
    for options in ([], ["--project"]):
        done = cli("fid", "--ckpt", run, "--n", 5, "--metrics", "consistency", "--device", "cpu", "--json", *options)
        assert done.code == 0, done.err
        scores.append(json.loads(done.out))
    plain, projected = scores
    assert projected["scores"]["consistency"] > plain["scores"]["consistency"] + 10
    assert projected["scores"]["consistency"] > projected["floors"][0]["consistency"]
    assert projected["project"]["factor"] == 2
    assert "project" not in plain
    cli("fid", "digits:train", "digits:test", "--project").refused("--project with two sides")


def test_python_projects() -> None:
    face = LoadedModel(model_of(UPSCALER))
    assert "project" in face.sample(given={"low_res": ROWS}, project=True).record
    with pytest.raises(UserError, match="project is 3: must be True or False"):
        face.sample(given={"low_res": ROWS}, project=3)  # type: ignore[arg-type]


def test_models_that_enlarge_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="--project: made has no low_res") as caught:
        request(made(**FREE), SampleOptions(project=True))
    assert "--restore sr2" in caught.value.hint
    with pytest.raises(UserError, match="--project: encoding is a first stage"):
        request_of(encoding(), SampleOptions(project=True))
    with pytest.raises(UserError, match="both say what was measured"):
        SampleOptions(project=True, restore="sr2", images=(Path("a.png"),)).check()


def test_pictures_of_any_size_are_projected_as_a_whole_however_many_tiles_predict_them() -> None:
    low = torch.randint(96, 160, (1, 1, 9, 13), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    req = request(model_of(UPSCALER), SampleOptions(project=True), given={"low_res": Value(low, "rows")})
    made = req.images(range(1))
    assert req.frame.tiling is not None, "there are tiles"
    assert made.shape == (1, 1, 18, 26)
    assert psnr_of_bytes(by_pillow(made, (9, 13), "bicubic"), low).item() > 50
