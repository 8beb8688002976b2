"""Pictures as conditions from the command line: whose they are, and how large the images are that follow."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffcli.config import UserError
from diffcli.digest import sha256
from diffcli.engine.distributed import Group
from diffcli.engine.draw.given import Value
from diffcli.engine.draw.pictured.gallery import Gallery
from diffcli.engine.draw.sample import SampleOptions, draw, drawing, request
from diffcli.engine.model import Model
from diffcli.engine.score.sides import data_side
from diffcli.fields import to_float
from tests.conftest import Cli, changed
from tests.engine.draw.making import FREE
from tests.engine.draw.pictured.small import CLASSES, EDGES, LOW, from_edges, opened, picture, saved, upscaler
from tests.engine.one_level import TWO_LEVELS

ALONE = Group(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("up"), upscaler())


def images(model: Model, **options: Any) -> list[np.ndarray]:
    drawn = draw(drawing(model, SampleOptions(**options)), ALONE)
    return [image.numpy() for batch in drawn for image in batch.images]


def arrays(cli: Cli, out: Path, *arguments: object) -> tuple[np.ndarray, dict[str, Any]]:
    done = cli("sample", "--out", out, *arguments)
    assert done.code == 0, done.err
    return np.load(out)["arr_0"], json.loads(Path(f"{out}.json").read_text())


def test_the_one_picture_that_a_model_reads_is_image_and_the_same_as_its_field(
    cli: Cli, up: Path, tmp_path: Path
) -> None:
    a, b = picture(tmp_path / "a.png"), picture(tmp_path / "b.png", seed=1)
    drawn, record = arrays(cli, tmp_path / "x.npz", "--ckpt", up, "--image", a, "--image", b, "--no-tile")
    assert drawn.shape == (2, 16, 16, 1)
    assert record["given"]["low_res"] == [{"file": str(p), "sha256": sha256(p)} for p in (a, b)]
    assert "images" not in record, "it is no edit"
    again, _ = arrays(cli, tmp_path / "y.npz", "--ckpt", up, "--field", f"low_res={a}")
    assert np.array_equal(again, drawn[:1])
    other, _ = arrays(cli, tmp_path / "z.npz", "--ckpt", up, "--image", b)
    assert not np.array_equal(other, drawn[:1]), "the picture says nothing"


def test_more_images_than_pictures_repeat_them_in_turn(cli: Cli, up: Path, tmp_path: Path) -> None:
    a, b = picture(tmp_path / "a.png"), picture(tmp_path / "b.png", seed=1)
    five, _ = arrays(cli, tmp_path / "x.npz", "--ckpt", up, "--image", a, "--image", b, "--n", 5)
    third, _ = arrays(cli, tmp_path / "y.npz", "--ckpt", up, "--image", b, "--seed", 3)
    assert len(five) == 5
    assert np.abs(five[3].astype(int) - third[0]).max() <= 1


def test_with_strength_an_image_is_begun_from_and_the_field_says_what_is_told(
    cli: Cli, up: Path, tmp_path: Path
) -> None:
    small, large = picture(tmp_path / "a.png"), picture(tmp_path / "b.png", 16, seed=1)
    options = ["--ckpt", up, "--image", large, "--field", f"low_res={small}", "--strength", 0.3]
    _, record = arrays(cli, tmp_path / "x.npz", *options)
    assert record["images"][0]["file"] == str(large)
    assert record["given"]["low_res"][0]["file"] == str(small)
    done = cli("sample", "--ckpt", up, "--image", large, "--strength", 0.3, "--out", tmp_path / "y.npz")
    done.refused("'low_res'", "there is none", "--field low_res=FILE", "--image FILE")


def test_a_picture_that_is_read_is_not_overwritten(cli: Cli, up: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    file = picture(folder / "a.png")
    before = file.read_bytes()
    for options, out in (
        (["--image", file], file),
        (["--field", f"low_res={file}"], file),
        (["--image", folder], folder / "grid.png"),
        (["--image", folder], folder),
    ):
        cli("sample", "--ckpt", up, *options, "--out", out).refused(f"--out {out}", str(options[1])[-5:])
    assert cli("sample", "--ckpt", up, "--image", folder, "--out", folder / "larger").code == 0
    assert file.read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "larger", "larger.json"]


def test_a_folder_is_its_pictures_in_order_of_name_without_those_that_are_broken(
    cli: Cli, up: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    files = [picture(folder / name, seed=i) for i, name in enumerate(("c.png", "a.png", "b.PNG"))]
    (folder / "b1.png").write_bytes(files[0].read_bytes()[:60])
    (folder / "notes.txt").write_text("no picture")
    done = cli("sample", "--ckpt", up, "--image", folder, "--out", tmp_path / "x.npz")
    assert done.code == 0
    assert [line for line in done.err.splitlines() if "1 of its 4 pictures" in line and "b1.png" in line]
    record = json.loads((tmp_path / "x.npz.json").read_text())
    assert [Path(each["file"]).name for each in record["given"]["low_res"]] == ["a.png", "b.PNG", "c.png"]
    done = cli("sample", "--ckpt", up, "--image", folder / "b1.png", "--out", tmp_path / "x.npz")
    done.refused("--image", "b1.png")
    (tmp_path / "none").mkdir()
    cli("sample", "--ckpt", up, "--image", tmp_path / "none", "--out", tmp_path / "x.npz").refused("holds no picture")


def test_images_are_as_much_larger_as_in_training_whatever_the_size_of_the_picture(up: Path, tmp_path: Path) -> None:
    model = opened(tmp_path / "m", upscaler())
    for height, width in ((8, 8), (4, 12), (7, 9), (1, 3)):
        (drawn,) = images(model, images=(picture(tmp_path / "a.png", height, width),), whole=True)
        assert drawn.shape == (1, 2 * height, 2 * width)


def test_a_picture_whose_edges_are_repeated_is_drawn_as_if_it_were_so_large(tmp_path: Path) -> None:
    """Sides that the network cannot take: 7 becomes 14, of which 4 is no divisor, so 16 is drawn and cut."""
    network = {"kind": "dit", "width": 16, "depth": 1, "heads": 2, "patch": 4}
    model = opened(tmp_path / "m", upscaler(task__network=network))
    odd = picture(tmp_path / "odd.png", 7, 6)
    levels = np.pad(np.asarray(Image.open(odd)), ((0, 1), (0, 0)), mode="edge")
    Image.fromarray(levels).save(tmp_path / "even.png")
    (cut,), (full,) = (images(model, images=(tmp_path / name,)) for name in ("odd.png", "even.png"))
    assert (cut.shape, full.shape) == ((1, 14, 12), (1, 16, 12))
    assert np.array_equal(cut, full[:, :14])


def test_a_network_that_folds_pixels_refuses_tiles_and_sizes_that_it_cannot_fold(cli: Cli, tmp_path: Path) -> None:
    folded = saved(tmp_path / "m", upscaler(task__network__fold=4, task__network__mult=[1]))
    options = ["--ckpt", folded, "--image", picture(tmp_path / "a.png", 15, 9), "--out", tmp_path / "x.npz"]
    cli("sample", *options, "--tile", 10).refused("--tile 10", "multiples of 4", "try --tile 8")
    drawn, _ = arrays(cli, tmp_path / "x.npz", *options[:4], "--tile", 8)
    assert drawn.shape == (1, 30, 18, 1), "what it cannot fold is drawn larger and cut"
    edges = saved(tmp_path / "edges", from_edges(task__network__fold=4, task__network__mult=[1]))
    done = cli("sample", "--ckpt", edges, *options[2:], "--size", 10)
    done.refused("--size 10x10", "multiples of 4", "try --size 8x8")


def test_pictures_of_several_sizes_are_drawn_each_at_its_own_into_a_folder(cli: Cli, up: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for i, (height, width) in enumerate(((8, 8), (8, 8), (6, 10), (8, 8))):
        picture(folder / f"{i}.png", height, width, seed=i)
    out = tmp_path / "out"
    done = cli("sample", "--ckpt", up, "--image", folder, "--seed", 5, "--out", out, "--batch-size", 3)
    assert done.code == 0, done.err
    sizes = [Image.open(file).size for file in sorted(out.glob("*.png"))]
    assert sizes == [(16, 16), (16, 16), (20, 12), (16, 16)]
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["sizes"] == [[16, 16], [16, 16], [12, 20], [16, 16]]
    for i, seed in ((2, 7), (3, 8)):
        alone, _ = arrays(cli, tmp_path / "x.npz", "--ckpt", up, "--image", folder / f"{i}.png", "--seed", seed)
        assert np.abs(np.asarray(Image.open(out / f"{i:06d}.png")).astype(int) - alone[0, ..., 0]).max() <= 1
    done = cli("sample", "--ckpt", up, "--image", folder, "--out", tmp_path / "grid.png")
    done.refused("--out", "several sizes", "one file an image")
    done = cli("gif", "--ckpt", up, "--image", folder, "--out", tmp_path / "a.gif")
    done.refused("several sizes", "--size HxW")
    assert "FOLDER" not in done.err, "an animation is no folder"


def test_the_evaluations_of_images_of_several_sizes_are_counted_together(tmp_path: Path) -> None:
    model = opened(tmp_path / "m", upscaler(sampler={"kind": "ode", "steps": 1}))
    files = (picture(tmp_path / "a.png"), picture(tmp_path / "b.png", 6))
    req = drawing(model, SampleOptions(images=files))
    assert isinstance(req, Gallery)
    told = req.describe()["nfe"]
    list(draw(req, ALONE))
    alone = [request(model, SampleOptions(images=(file,), seed=i)) for i, file in enumerate(files)]
    for each in alone:
        list(draw(each, ALONE))
    assert int(told) == max(int(each.tally) for each in alone) > 0


def test_size_says_what_is_drawn_of_a_picture_that_is_no_larger(cli: Cli, up: Path, tmp_path: Path) -> None:
    model, small = opened(tmp_path / "m", upscaler()), picture(tmp_path / "a.png", 6, 9)
    (drawn,) = images(model, images=(small,), size=(16, 16))
    assert drawn.shape == (1, 16, 16)
    large = picture(tmp_path / "b.png", 40)
    done = cli("sample", "--ckpt", up, "--image", large, "--size", 32, "--out", tmp_path / "x.png")
    done.refused("40x40", "larger than the 32x32", "--size")
    given = {"low_res": Value(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), "")}
    with pytest.raises(UserError, match="images of 16x16 follow"):
        drawing(model, SampleOptions(size=(32, 32)), given)


def test_other_pictures_are_cut_and_resized_to_the_images(cli: Cli, tmp_path: Path) -> None:
    model = saved(tmp_path / "edges", from_edges())
    large = picture(tmp_path / "a.png", 20, 30)
    own, _ = arrays(cli, tmp_path / "x.npz", "--ckpt", model, "--image", large)
    wide, record = arrays(cli, tmp_path / "y.npz", "--ckpt", model, "--image", large, "--size", "8x16", "--no-tile")
    assert (own.shape, wide.shape) == ((1, 8, 8, 1), (1, 8, 16, 1))
    assert record["size"] == [8, 16]


def test_a_model_of_several_pictures_is_told_which_is_which(cli: Cli, tmp_path: Path) -> None:
    derived = [{"kind": "low_res", "factor": 2}, {"kind": "edges"}]
    tree = changed(upscaler(), data__derived=derived, task__conditioners=[EDGES, LOW])
    model, out = saved(tmp_path / "two", tree), tmp_path / "x.npz"
    low, edges = picture(tmp_path / "low.png", 6, 4), picture(tmp_path / "edges.png", 30, 20)
    cli("sample", "--ckpt", model, "--image", low, "--out", out).refused("several pictures: edges, low_res", "--field")
    options = ["--ckpt", model, "--field", f"low_res={low}"]
    cli("sample", *options, "--out", out).refused("'edges'", "there is none")
    drawn, record = arrays(cli, out, *options, "--field", f"edges={edges}")
    assert drawn.shape == (1, 12, 8, 1)
    assert record["given"].keys() == {"low_res", "edges"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--field", "low_ras=a.png"], ["'low_ras'", "does not read it", "low_res"]),
        (["--field", "low_res=a.png", "--field", "low_res=a.png"], ["--field low_res", "given twice"]),
        (["--field", "low_res"], ["low_res is no NAME=FILE"]),
        (["--image", "a.png", "--tile", 8, "--overlap", 8], ["--overlap 8", "at most"]),
        (["--image", "a.png", "--tile", 8, "--no-tile"], ["--tile 8 with --no-tile"]),
        (["--image", "a.png", "--augment", 0.2], ["--augment 0.2", "task.conditioners.0.augment"]),
    ],
)
def test_what_does_not_fit_is_one_error(
    cli: Cli, up: Path, tmp_path: Path, options: list[object], words: list[str]
) -> None:
    picture(tmp_path / "a.png")
    given = [str(o).replace("a.png", str(tmp_path / "a.png")) for o in options]
    cli("sample", "--ckpt", up, "--out", tmp_path / "x.png", *given).refused(*words)


def test_a_tile_that_the_levels_of_a_network_do_not_halve_is_refused(cli: Cli, tmp_path: Path) -> None:
    low, deep = picture(tmp_path / "a.png"), saved(tmp_path / "deep", changed(upscaler(), **TWO_LEVELS))
    done = cli("sample", "--ckpt", deep, "--out", tmp_path / "x.png", "--image", low, "--tile", 7)
    done.refused("--tile 7", "multiples of 2", "try --tile")


def test_a_model_that_reads_no_picture_refuses_a_field(cli: Cli, tmp_path: Path) -> None:
    free = saved(tmp_path / "free", changed(upscaler(), data__derived=[], **FREE))
    done = cli(
        "sample", "--ckpt", free, "--field", f"low_res={picture(tmp_path / 'a.png')}", "--out", tmp_path / "x.png"
    )
    done.refused("'low_res' is given", "does not read it")


def test_rows_of_a_set_are_told_even_where_the_null_branch_alone_is_asked(tmp_path: Path) -> None:
    """What an upscaler enlarges stays in that branch."""
    told = {"task__conditioners": [LOW, CLASSES], "task__drop_condition": 0.1, "guidance": 2}
    model = opened(tmp_path / "m", upscaler(**told))
    side = data_side("digits:test", model.preset.data, "test")
    req = request(model, SampleOptions(n=2, guidance=0), side)
    assert torch.equal(req.batch(range(2))["low_res"], to_float(side.data.read(torch.arange(2))["low_res"]))


def test_augmentation_is_told_up_to_the_trained_level(cli: Cli, tmp_path: Path) -> None:
    model = saved(tmp_path / "noisy", upscaler(task__conditioners=[{**LOW, "augment": 0.4, "dim": 8}]))
    options = ["--ckpt", model, "--image", picture(tmp_path / "a.png")]
    plain, record = arrays(cli, tmp_path / "x.npz", *options)
    zero, _ = arrays(cli, tmp_path / "x.npz", *options, "--augment", 0)
    noisy, told = arrays(cli, tmp_path / "x.npz", *options, "--augment", 0.4)
    again, _ = arrays(cli, tmp_path / "x.npz", *options, "--augment", 0.4)
    assert np.array_equal(plain, zero)
    assert not np.array_equal(plain, noisy)
    assert np.array_equal(noisy, again), "its noise is not that of the seed"
    assert ("augment" in record, told["augment"]) == (False, 0.4)
    for level in (0.5, 1):
        done = cli("sample", *options, "--augment", level, "--out", tmp_path / "x.png")
        done.refused(f"--augment {float(level)}", "level of 0.4")
