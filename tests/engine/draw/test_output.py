"""Bytes, grids, files and animations."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from PIL import Image

from diffcli.config import UserError
from diffcli.engine.draw.out_files import check_output
from diffcli.engine.draw.output import pick, write
from diffcli.engine.draw.sample import Finished
from diffcli.engine.draw.sheets.arrangement import GAP, columns_for, grid, squarest
from diffcli.fields import to_levels
from diffcli.noise import Noise
from tests.conftest import Cli, in_ranks


def test_bytes_are_rounded_and_clamped() -> None:
    values = torch.tensor([-1.01, -1.0, -0.9961, 0.0, 0.0039, 1.0, 1.01, 300.0, -300.0])
    assert to_levels(values).tolist() == [0, 0, 0, 128, 128, 255, 255, 255, 0]


def test_bytes_invert_the_way_images_are_read() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_levels(levels.float() / 127.5 - 1), levels)


def test_a_grid_places_images_row_by_row_on_black() -> None:
    images = torch.arange(1, 6, dtype=torch.uint8)[:, None, None, None].expand(5, 3, 4, 6)
    sheet = grid(images)
    assert sheet.shape == (2 * (4 + GAP) + GAP, 3 * (6 + GAP) + GAP, 3)
    corners = [(GAP + i // 3 * (4 + GAP), GAP + i % 3 * (6 + GAP)) for i in range(6)]
    assert [int(sheet[top, left, 0]) for top, left in corners] == [1, 2, 3, 4, 5, 0]
    assert sheet.sum() == 3 * 24 * (1 + 2 + 3 + 4 + 5)


def test_columns_are_classes_where_labels_cycle_and_one_row_where_images_lie_on_a_way() -> None:
    names = ["a", "b", "c"]
    assert columns_for({"labels": [0, 1, 2, 0], "class_names": names}) == 3
    assert columns_for({"labels": [0, 0, 0], "class_names": names}) is None
    assert columns_for({"labels": [1] * 8, "class_names": names, "interpolate": 8}) == 8
    assert columns_for({"labels": None, "class_names": None, "interpolate": 64}) is None


@pytest.mark.parametrize(
    ("total", "wanted", "chosen"),
    [(5, None, [0, 1, 2, 3, 4]), (5, 9, [0, 1, 2, 3, 4]), (5, 3, [0, 2, 4]), (5, 2, [0, 4]), (5, 1, [4]), (1, 1, [0])],
)
def test_frames_are_picked_evenly_with_the_first_and_the_last(total: int, wanted: int | None, chosen: list[int]):
    frames = [torch.tensor(i) for i in range(total)]
    assert [int(frame) for frame in pick(frames, total, wanted)] == chosen


@pytest.fixture
def animate(cli: Cli, trained: Path, tmp_path: Path) -> Callable[..., Image.Image]:
    """A .gif of the trained run, opened."""

    def run(*options: object) -> Image.Image:
        out = tmp_path / "a.gif"
        done = cli("gif", "--ckpt", trained, "--out", out, *options)
        assert done.code == 0, done.err
        assert done.out == f"{out}\n"
        return Image.open(out)

    return run


def frame(image: Image.Image, number: int) -> np.ndarray:
    image.seek(number)
    return np.asarray(image.convert("L"))


def samples(cli: Cli, trained: Path, tmp_path: Path, *options: object) -> np.ndarray:
    out = tmp_path / "s.npz"
    assert cli("sample", "--ckpt", trained, "--out", out, *options).code == 0
    return grid(torch.from_numpy(np.load(out)["arr_0"]).permute(0, 3, 1, 2))[..., 0]


def test_a_gif_goes_from_the_noise_to_the_sample(
    animate: Callable[..., Image.Image], cli: Cli, trained: Path, tmp_path: Path
) -> None:
    options = ["--n", 3, "--seed", 5, "--class", 2]
    image = animate(*options)
    assert image.n_frames == 4  # the noise and three steps
    noise = Noise([5, 6, 7], torch.device("cpu"))(torch.empty(3, 1, 8, 8))
    assert np.array_equal(frame(image, 0), grid(to_levels(noise))[..., 0])
    assert np.array_equal(frame(image, 3), samples(cli, trained, tmp_path, *options))


def test_a_gif_of_x0_ends_in_the_sample_too(
    animate: Callable[..., Image.Image], cli: Cli, trained: Path, tmp_path: Path
) -> None:
    image = animate("--n", 2, "--show", "x0", "--steps", 5)
    assert image.n_frames == 5
    assert np.array_equal(frame(image, 4), samples(cli, trained, tmp_path, "--n", 2, "--steps", 5))


def test_a_gif_shows_one_image_and_of_all_classes_one_each(animate: Callable[..., Image.Image]) -> None:
    assert animate().size == (8, 8)  # without a frame
    columns, rows = 5, 2  # ten without a gap
    assert animate("--class", "all").size == (columns * (8 + GAP) + GAP, rows * (8 + GAP) + GAP)


def test_frames_and_their_rate_are_as_asked_and_the_last_rests(animate: Callable[..., Image.Image]) -> None:
    image = animate("--steps", 9, "--frames", 4, "--fps", 4)
    assert image.n_frames == 4
    durations = []
    for i in range(4):
        image.seek(i)
        durations.append(image.info["duration"])
    assert durations == [250, 250, 250, 1000]


def close_frames(one: Image.Image, other: Image.Image) -> bool:
    """Within one level: batches of other sizes sum in another order."""
    return all(np.abs(frame(one, i).astype(int) - frame(other, i)).max() <= 1 for i in range(4))


def test_a_gif_does_not_depend_on_the_batch_size(animate: Callable[..., Image.Image]) -> None:
    assert close_frames(animate("--n", 5), animate("--n", 5, "--batch-size", 2))


@pytest.mark.slow
def test_a_gif_does_not_depend_on_the_number_of_processes(
    animate: Callable[..., Image.Image], trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "two.gif"
    done = in_ranks("gif", "--ckpt", trained, "--n", 5, "--nproc", 2, "--out", out)
    assert done.code == 0, done.err
    assert close_frames(animate("--n", 5), Image.open(out))


@pytest.mark.parametrize("suffix", [".webp", ".mp4"])
def test_other_animations_hold_the_same_frames(cli: Cli, trained: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"a{suffix}"
    assert cli("gif", "--ckpt", trained, "--out", out, "--fps", 5, "--n", 2).code == 0
    frames = imageio.imread(out, index=..., plugin="FFMPEG" if suffix == ".mp4" else "pillow")
    assert len(frames) == (4 + 5 if suffix == ".mp4" else 4)  # a film rests by repeating its last frame for a second
    last = samples(cli, trained, tmp_path, "--n", 2)
    shown = frames[-1][: last.shape[0], : last.shape[1], 0].astype(float)
    assert np.abs(shown - last).mean() < 16  # both formats lose a little


def test_an_animation_has_a_sidecar(cli: Cli, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.gif"
    assert cli("gif", "--ckpt", trained, "--out", out, "--fps", 2.5, "--show", "x0", "--class", 3).code == 0
    told = json.loads((tmp_path / "a.gif.json").read_text())
    expected = {"frames": 3, "fps": 2.5, "show": "x0", "labels": [3], "seeds": [0], "steps": 3, "guidance": 2}
    assert expected.items() <= told.items()
    assert told["checkpoint"].endswith("step-00000004")


def test_a_grid_without_a_gap_is_preferred_to_a_squarer_one_with() -> None:
    assert {n: squarest(n) for n in (1, 2, 7, 8, 10, 16, 36, 100)} == {
        1: 1,
        2: 2,
        7: 3,
        8: 4,
        10: 5,
        16: 4,
        36: 6,
        100: 10,
    }


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (["cats/a.jpg", "dogs/b.jpg"], "holds cats/ and 1 other, which are not among the 2 requested"),
        (["photo.JPG"], "holds photo.JPG, which is not among the 2 requested"),
        (["deep/er/film.mp4"], "holds deep/, which is"),
        (["stage-1/000000.png", "stage-2/photo.png"], "holds stage-2/, which is"),  # classes of patients
    ],
)
def test_a_folder_that_holds_pictures_of_others_at_any_depth_gets_no_samples(
    cli: Cli, trained: Path, tmp_path: Path, held: list[str], said: str
) -> None:
    out = tmp_path / "data"
    for name in held:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).touch()
    before = sorted(out.rglob("*"))
    cli("sample", trained, "--n", 2, "--out", out).refused(f"--out {out}: {said}", "give an empty folder")
    assert sorted(out.rglob("*")) == before


def test_a_folder_may_hold_texts_hidden_files_and_former_samples(cli: Cli, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "drawn"
    for name in ("notes.txt", ".cache/a.png", "stage-1/000000.png", "stage-1/000001.webp", "000000.png"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).touch()
    done = cli("sample", trained, "--n", 2, "--out", out)
    assert done.code == 0, done.err
    assert (out / "000001.png").is_file()


@pytest.mark.parametrize("name", ["new/folder", "new/er/a.png", "new/er/a.npz"])
def test_a_refused_drawing_leaves_no_folders(cli: Cli, trained: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    cli("sample", trained, "--n", 2, "--class", 99, "--out", out).refused("--class 99")
    cli("sample", tmp_path / "gone", "--out", out).refused("gone")
    cli("gif", trained, "--class", 99, "--out", out.with_name("a.gif")).refused("--class 99")
    assert list(tmp_path.iterdir()) == []
    assert cli("sample", trained, "--n", 2, "--out", out).code == 0
    assert out.exists()


def test_folders_of_a_drawing_that_breaks_off_are_gone_but_for_those_that_hold_something(tmp_path: Path) -> None:
    out, kept = tmp_path / "new/er", tmp_path / "kept/er"

    def drawn() -> Iterator[Finished]:
        kept.parent.joinpath("mine.txt").write_text("of another program")
        raise KeyboardInterrupt
        yield

    for folder in (kept, out):
        with pytest.raises(KeyboardInterrupt):
            write(folder, drawn(), {"n": 1})
    assert {path.name for path in tmp_path.rglob("*")} == {"kept", "mine.txt"}


def test_a_folder_whose_name_is_too_long_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        check_output(tmp_path / ("n" * 300) / "a.png", (".png",), folder_allowed=False)
