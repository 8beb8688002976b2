"""`--restore`: what was measured stays, whatever the model draws; pictures of a wrong size and other models are refused."""

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
from diffcli.diffusion.operators import Operator
from diffcli.diffusion.samplers import Ddim, Ode, Sampler, last
from diffcli.engine.distributed import Group
from diffcli.engine.draw.request import Request
from diffcli.engine.draw.sample import Model, SampleOptions, draw, request, request_of
from diffcli.engine.options.restore_wish import LOSSES, Wish, wished
from diffcli.engine.stage_reading import completed
from diffcli.facade import LoadedModel
from diffcli.fields import to_float
from tests.conftest import Cli
from tests.engine.draw.making import FREE, encoding, made, random_model
from tests.engine.one_level import TWO_LEVELS
from tests.latents import latent_tree, stage_checkpoint
from tests.pairing import paired

ALONE = Group(0, 1, torch.device("cpu"))
COLOURED = {"data__channels": 3}


def picture(path: Path, size: tuple[int, int] = (8, 8), channels: int = 3, seed: int = 0) -> Path:
    """A smooth picture of (height, width), grey or in colour."""
    coarse = np.random.default_rng(seed).integers(30, 226, (3, 3, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
    (image if channels == 3 else image.convert("L")).save(path)
    return path


def mask(path: Path, size: tuple[int, int] = (8, 8)) -> Path:
    levels = np.zeros(size, np.uint8)
    levels[:, size[1] // 2 :] = 255
    Image.fromarray(levels).save(path)
    return path


def asked(model: Model, loss: str, image: Path, folder: Path, **options: Any) -> Request:
    if loss == "mask":
        options["mask"] = mask(folder / "mask.png")
    chosen = SampleOptions(**{"restore": loss, "images": (image,), "steps": 4, **options})
    chosen.check()
    return request(model, chosen)


def images(req: Request) -> Tensor:
    return torch.cat([part.images for part in draw(req, ALONE)])


@pytest.mark.parametrize(("loss", "sampler"), paired(LOSSES, ["ddim", "ddpm", "dpmpp_2m"]))
def test_what_was_measured_is_what_the_final_images_measure(loss: str, sampler: str, tmp_path: Path) -> None:
    model = made(**FREE, **COLOURED)
    req = asked(model, loss, picture(tmp_path / "a.png"), tmp_path, degrade=True, n=3, sampler=sampler)
    assert req.restoration is not None
    operator: Operator = req.restoration.operator
    end = last(req.walk(range(3))[1]).x
    measured = req.restoration.measured
    seen = operator.measure(operator.invert(measured))  # a blurred file holds rounding that no image can have
    torch.testing.assert_close(operator.measure(end), seen.expand(3, -1, -1, -1), rtol=0, atol=1e-5)
    torch.testing.assert_close(seen, measured, rtol=0, atol=1e-5 if loss != "blur" else 2 / 127.5)
    assert len({image.numpy().tobytes() for image in images(req)}) == 3, "each seed fills in something else"


def test_a_file_of_low_resolution_is_what_the_image_of_it_shows(tmp_path: Path) -> None:
    model, low = made(**FREE, **COLOURED, **TWO_LEVELS), picture(tmp_path / "low.png", (4, 4))
    drawn = images(asked(model, "sr2:box", low, tmp_path, n=2)).float()
    levels = torch.from_numpy(np.asarray(Image.open(low)).copy()).permute(2, 0, 1)
    inside = (drawn > 0) & (drawn < 255)
    means = torch.nn.functional.avg_pool2d(drawn, 2)
    whole = torch.nn.functional.avg_pool2d(inside.float(), 2) == 1  # clamped pixels lose what was measured
    assert whole.float().mean() > 0.5
    assert ((means - levels).abs()[whole] <= 0.51).all()


def test_a_grey_file_keeps_its_grey_and_known_pixels_stay_to_the_byte(tmp_path: Path) -> None:
    model = made(**FREE, **COLOURED)
    grey = picture(tmp_path / "grey.png", channels=1)
    req = asked(model, "colour", grey, tmp_path)
    assert torch.equal(
        req.restoration.measured, to_float(torch.from_numpy(np.asarray(Image.open(grey)).copy())[None, None])
    )
    colour = picture(tmp_path / "colour.png")
    drawn = images(asked(model, "mask", colour, tmp_path, n=2))
    levels = torch.from_numpy(np.asarray(Image.open(colour)).copy()).permute(2, 0, 1)
    assert torch.equal(drawn[..., :4], levels[..., :4].expand(2, -1, -1, -1))


def test_degrading_is_what_pillow_does_up_to_rounding(tmp_path: Path) -> None:
    model, good = made(**FREE, **COLOURED), picture(tmp_path / "a.png")
    req = asked(model, "sr2", good, tmp_path, degrade=True)
    low = np.asarray(Image.open(good).resize((4, 4), Image.Resampling.BICUBIC)).astype(int)
    found = ((req.restoration.measured[0].permute(1, 2, 0) + 1) * 127.5).round().int().numpy()
    assert np.abs(found - low).max() <= 1


@pytest.mark.parametrize(("loss", "columns"), [("sr2", 3), ("colour", 3), ("mask", 3)])
def test_given_and_original_stand_beside_what_was_restored(loss: str, columns: int, tmp_path: Path) -> None:
    model, good = made(**FREE, **COLOURED), picture(tmp_path / "a.png")
    req = asked(model, loss, good, tmp_path, degrade=True, compare=True)
    (drawn,) = images(req)
    assert req.shape == tuple(drawn.shape) == (3, 8, 8 * columns)
    alone = images(asked(model, loss, good, tmp_path, degrade=True))
    assert torch.equal(drawn[..., 8:16], alone[0])
    assert torch.equal(drawn[..., 16:], torch.from_numpy(np.asarray(Image.open(good)).copy()).permute(2, 0, 1))
    if loss == "sr2":
        assert torch.equal(drawn[:, ::2, :8:2], drawn[:, 1::2, 1:8:2])


def test_a_sampler_that_takes_steps_back_meets_a_projection_without_memory(tmp_path: Path) -> None:
    """Where an image stands still while others of its batch go on, it is evaluated at times that are none of its walk."""
    model = made(**FREE)
    req = asked(model, "sr2", picture(tmp_path / "low.png", (4, 4), 1), tmp_path)
    known, x = req.restoration.known(req.task, range(1), req.batch), req.walk(range(1))[0]

    def end(sampler: Sampler, *times: float) -> Tensor:
        denoise = known.bound(req.task, req.denoise(range(1)), sampler)
        return [denoise(x, torch.tensor(t, dtype=torch.float64)).x0 for t in times][-1]

    assert torch.equal(end(Ode(), 0.9, 0.5), end(Ode(), 0.5))
    assert not torch.allclose(end(Ddim(), 0.9, 0.5), end(Ddim(), 0.5), atol=1e-3)


def test_images_depend_on_their_seed_and_picture_alone(tmp_path: Path) -> None:
    model, files = made(**FREE), tuple(picture(tmp_path / f"{i}.png", (4, 4), 1, i) for i in range(2))
    options: dict[str, Any] = {"restore": "sr2", "images": files, "steps": 3, "sampler": "ddpm"}
    five = images(request(model, SampleOptions(**options, n=5)))
    split = images(request(model, SampleOptions(**options, n=5, batch_size=2)))
    assert (five.int() - split.int()).abs().max() <= 1
    assert len(images(request(model, SampleOptions(**options)))) == 2


def test_the_size_of_a_low_resolution_picture_may_be_asked_for(tmp_path: Path) -> None:
    model, low = made(**FREE), picture(tmp_path / "low.png", (6, 8), 1)
    assert images(asked(model, "sr2", low, tmp_path, size=(12, 16))).shape == (1, 1, 12, 16)


def test_the_command_line_writes_the_record(cli: Cli, trained: Path, tmp_path: Path) -> None:
    low, out = picture(tmp_path / "low.png", (4, 4), 1), tmp_path / "out.png"
    done = cli(
        "sample", "--ckpt", trained, "--restore", "sr2:lanczos", "--image", low, "--class", 3, "--compare", "--out", out
    )
    assert done.code == 0, done.err
    told = json.loads(Path(f"{out}.json").read_text())
    assert told["restore"] == {
        "operator": "sr2", "factor": 2, "kernel": "lanczos, antialiased as Pillow's", "degraded_here": False,
    }  # fmt: skip
    assert told["images"][0]["file"] == str(low)
    assert told["labels"] == [3]
    assert Image.open(out).width == 16
    animated = tmp_path / "a.gif"
    assert cli("gif", "--ckpt", trained, "--restore", "sr2", "--image", low, "--class", 3, "--out", animated).code == 0


def test_python_restores_pictures_in_memory() -> None:
    model = LoadedModel(made(**FREE))
    levels = np.full((4, 4), 77, np.uint8)
    samples = model.sample(n=2, steps=3, restore="sr2", image=levels)
    assert samples.tensor.shape == (2, 1, 8, 8)
    assert (
        model.sample(
            steps=3, restore="sr2", degrade=True, compare=True, image=np.full((8, 8), 9, np.uint8)
        ).tensor.shape[3]
        == 24
    )
    with pytest.raises(UserError, match="restore sr3: 'sr3'"):
        model.sample(restore="sr3", image=levels)


def test_options_of_operators_are_read() -> None:
    assert wished("sr4:box") == Wish("sr4", kernel="box")
    assert wished("blur:2.5") == Wish("blur", sigma=2.5)
    assert [wished(loss).loss for loss in LOSSES] == list(LOSSES)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--restore", "sr3", "--image", "LOW"], ["--restore sr3", "sr2, sr4, colour, blur, mask"]),
        (["--restore", "sr2:nearest", "--image", "LOW"], ["--restore sr2:nearest", "bicubic, lanczos, bilinear, box"]),
        (["--restore", "blur:0", "--image", "GOOD"], ["--restore blur:0"]),
        (["--restore", "blur:x", "--image", "GOOD"], ["--restore blur:x"]),
        (["--restore", "mask:3", "--image", "GOOD"], ["mask has no option"]),
        (["--restore", "sr2"], ["no picture to restore", "--image FILE"]),
        (["--degrade", "--image", "GOOD"], ["--degrade", "--restore sr2"]),
        (["--restore", "sr2", "--image", "GOOD"], ["8x8 pixels", "out of 4x4", "--size 16x16", "--degrade"]),
        (["--restore", "sr4", "--image", "LOW"], ["4x4 pixels", "out of 2x2"]),
        (["--restore", "blur", "--image", "LOW"], ["4x4 pixels", "out of 8x8"]),
        (["--restore", "mask", "--image", "GOOD"], ["--restore mask", "--mask FILE"]),
        (["--restore", "sr2", "--image", "LOW", "--mask", "GOOD"], ["--mask", "--restore sr2", "leave --mask out"]),
        (["--restore", "sr2", "--image", "LOW", "--strength", 0.5], ["--strength 0.5", "pure noise"]),
        (["--restore", "sr2", "--image", "LOW", "--image", "LOW", "--interpolate", 3], ["--interpolate 3", "pure noise"]),
        (["--restore", "colour", "--image", "GOOD"], ["1 channel", "no colours"]),
    ],
)  # fmt: skip
def test_flags_that_contradict_restoring_are_refused(
    cli: Cli, trained: Path, tmp_path: Path, options: list[Any], words: list[str]
) -> None:
    names = {"LOW": picture(tmp_path / "low.png", (4, 4), 1), "GOOD": picture(tmp_path / "good.png", (8, 8), 1)}
    given = [names.get(each, each) for each in options]
    cli("sample", "--ckpt", trained, "--out", tmp_path / "out.png", *given).refused(*words)
    assert not (tmp_path / "out.png").exists()


def test_sizes_that_the_factor_does_not_divide_are_refused(tmp_path: Path) -> None:
    low = picture(tmp_path / "low.png", (5, 5), 1)
    with pytest.raises(UserError, match=r"10x10 pixels \(HxW\), which sr4"):
        asked(made(**FREE), "sr4", low, tmp_path, size=(10, 10))


def test_a_model_of_latents_is_refused(tmp_path: Path) -> None:
    stage = stage_checkpoint(tmp_path / "stage")
    tree = latent_tree(task__codec={"kind": "latent", "from": str(stage)})
    model = random_model(completed(presets.build(tree, "a.yaml")), "a")
    with pytest.raises(UserError, match="draws latents"):
        asked(model, "sr2", picture(tmp_path / "low.png", (4, 4), 1), tmp_path)


def test_a_first_stage_is_refused(tmp_path: Path) -> None:
    options = SampleOptions(restore="sr2", images=(picture(tmp_path / "low.png", (4, 4), 1),))
    with pytest.raises(UserError, match="--restore sr2: encoding is a first stage"):
        request_of(encoding(), options)
