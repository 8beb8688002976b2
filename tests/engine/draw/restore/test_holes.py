"""Models that paint holes: the picture and its mask are told, what is known stays to the byte, and other models are as before."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.engine.draw.given import Value
from diffcli.engine.draw.sample import Model, SampleOptions, request
from diffcli.fields import to_float
from tests.conftest import Cli
from tests.engine.draw.making import FREE, made
from tests.engine.score.pairs.test_drawn_pairs import UPSCALER, model_of, save

PAINTER = UPSCALER | {
    "data": {"kind": "digits", "size": 16, "derived": [{"kind": "hole"}]},
    "task__conditioners": [
        {"kind": "spatial", "field": "hole", "of": "mask", "classes": 2},
        {"kind": "spatial", "field": "masked", "channels": 1},
    ],
}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A picture and a mask whose right half is white."""
    levels = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "a.png")
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 8:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return tmp_path / "a.png", tmp_path / "mask.png"


def told(model: Model, **options: Any) -> dict[str, Tensor]:
    return request(model, SampleOptions(**options)).batch(range(2))  # type: ignore[return-value]


def test_the_picture_and_its_mask_are_what_training_would_tell(files: tuple[Path, Path]) -> None:
    """As data.derived makes them, for a hole of this place: 1 where it is painted, grey in the picture."""
    image, mask = files
    fields = told(model_of(PAINTER), images=(image,), mask=mask, n=2)
    levels = torch.from_numpy(np.asarray(Image.open(image)).copy())
    hole = torch.zeros(16, 16, dtype=torch.int64)
    hole[:, 8:] = 1
    assert torch.equal(fields["hole"], hole.expand(2, 1, 16, 16))
    assert torch.equal(fields["masked"], to_float(levels.masked_fill(hole == 1, 128)).expand(2, 1, 16, 16))
    data = model_of(PAINTER).preset.data.build("test").read(torch.arange(3))
    assert torch.equal(data["masked"], data["image"].masked_fill(data["hole"] == 1, 128))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "heun"])
def test_what_is_known_stays_to_the_byte_and_each_seed_paints_something_else(
    sampler: str, cli: Cli, files: tuple[Path, Path], tmp_path: Path
) -> None:
    run, out = save(tmp_path / "run", PAINTER), tmp_path / "drawn.npz"
    image, mask = files
    done = cli(
        "sample", "--ckpt", run, "--image", image, "--mask", mask, "--n", 3, "--sampler", sampler, "--out", out,
        "--steps", 4,
    )  # fmt: skip
    assert done.code == 0, done.err
    drawn = np.load(out)["arr_0"][..., 0]
    levels = np.asarray(Image.open(image))
    assert all(np.array_equal(each[:, :8], levels[:, :8]) for each in drawn)
    assert len({each.tobytes() for each in drawn}) == 3
    record = json.loads(Path(f"{out}.json").read_text())
    assert record["given"]["hole"]["file"] == str(mask)
    assert record["given"]["masked"][0]["file"] == str(image)
    assert record["kept"] == "pixels outside of 'hole'"


def test_the_hole_is_seen_by_the_network_from_the_first_step(files: tuple[Path, Path]) -> None:
    """Another mask over the same picture changes what is predicted of pure noise, also where nothing is put back."""
    image, mask = files
    model = model_of(PAINTER)
    x, t = torch.zeros(1, 1, 16, 16), torch.tensor(1.0, dtype=torch.float64)
    half = request(model, SampleOptions(images=(image,), mask=mask)).denoise(range(1))(x, t)
    everything = torch.ones(1, 1, 16, 16, dtype=torch.uint8)
    given = {"hole": Value(everything, ""), "masked": Value(everything * 128, "")}
    whole = request(model, SampleOptions(), given=given).denoise(range(1))(x, t)
    assert not torch.allclose(half.x0[..., 12:], whole.x0[..., 12:], atol=1e-4)


def test_pairs_of_such_a_model_keep_what_is_known(cli: Cli, tmp_path: Path) -> None:
    run = save(tmp_path / "run", PAINTER)
    done = cli("fid", "--ckpt", run, "--n", 6, "--metrics", "psnr,ssim", "--device", "cpu", "--json")
    assert done.code == 0, done.err
    model = model_of(PAINTER)
    fields = model.preset.data.build("test").read(torch.arange(6))
    hole = fields["hole"].bool()
    worst = fields["image"].float().sub(255 * (fields["image"] < 128)).abs().masked_fill(~hole, 0)
    bound = 10 * np.log10(255**2 / worst.square().flatten(1).mean(1).numpy())
    assert json.loads(done.out)["scores"]["psnr"] >= bound.mean(), "only the hole can be wrong"


def test_a_model_that_paints_holes_is_told_of_one(files: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match="no hole is given") as caught:
        request(model_of(PAINTER), SampleOptions())
    assert "--image FILE --mask FILE" in caught.value.hint
    with pytest.raises(UserError, match="no hole is given"):
        request(model_of(PAINTER), SampleOptions(images=(files[0],)))


def test_a_mask_that_does_not_lie_over_its_image_is_refused() -> None:
    model = model_of(PAINTER)
    channels, height, width = model.preset.data.shape
    whole = Value(torch.zeros(1, channels, height, width, dtype=torch.uint8), "")
    for size in ((height, width), (height // 2, width)):
        given = {"hole": Value(torch.ones(1, 1, *size, dtype=torch.uint8), ""), "masked": whole}
        if size == (height, width):
            assert len(request(model, SampleOptions(), given=given).images(range(1))) == 1
            continue
        with pytest.raises(UserError, match=f"'hole' is given in {size[0]}x{size[1]}") as caught:
            request(model, SampleOptions(), given=given)
        assert "size of the images" in caught.value.hint


def test_a_field_that_image_and_mask_make_is_not_given_beside_them(files: tuple[Path, Path]) -> None:
    options = SampleOptions(images=(files[0],), mask=files[1], fields=(("masked", (files[0],)),))
    with pytest.raises(UserError, match="'masked' is given twice") as caught:
        request(model_of(PAINTER), options)
    assert "leave out 'masked'" in caught.value.hint


def test_other_models_paint_without_training_as_before(files: tuple[Path, Path]) -> None:
    req = request(made(**FREE), SampleOptions(images=(files[0],), mask=files[1]))
    assert req.restoration is None
    assert "given" not in req.describe()
    assert req.edit.painted is not None


def test_the_preset_reads_both_fields() -> None:
    preset = presets.load("cifar10-inpaint")
    assert {c.field for c in preset.task.conditioners} == {"hole", "masked"}  # type: ignore[union-attr]
