"""Films of every kind give the same clip, and what is wrong with one is told by its name."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffcli.config import ImageShape, UserError
from diffcli.data.clips.clip_data import ClipData
from diffcli.data.clips.clip_files import RATE_FILE, TreeClips, clips_among, misnumbered
from diffcli.data.clips.film import BrokenClip, Timing
from diffcli.data.clips.video_film import upright
from diffcli.data.files import open_tree
from diffcli.data.order import epoch_draws
from tests.data.clips import filming

KINDS = ("a.mp4", "a.mov", "a.mkv", "a.webm", "a.avi", "a.gif", "a.webp", "a")
VIDEOS = KINDS[:5]


def clips(source: Path, timing: Timing, size: int = 8, channels: int = 3) -> ClipData:
    tree = open_tree(source, "data.root")
    found = clips_among(tree, "data.root")
    files = TreeClips(tree, list(found.clips), found.clips, fps=8)
    return ClipData(files, ImageShape(channels, size, size), [timing])


def one(path: Path, timing: Timing, share: float) -> list[int]:
    return filming.numbers(clips(path.parent, timing).take(0, share)[0])


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_film_is_read_alike_from_any_start(tmp_path: Path, name: str):
    path = filming.write(tmp_path / name, filming.ramp(20))
    for start in range(0, 17, 4):
        share = (start + 0.5) / 17
        assert one(path, Timing(4), share) == [start + i for i in range(4)]
    assert one(path, Timing(4, 4), 0.0) == [0, 2, 4, 6]
    assert clips(tmp_path, Timing(4)).take(0)[1] == pytest.approx(8, rel=0.05)  # GIF has hundredths of a second


@pytest.mark.parametrize("name", VIDEOS)
def test_only_frames_from_the_key_frame_on_are_decoded(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    from diffcli.data.clips import video_film

    path = filming.write(tmp_path / name, filming.ramp(23, first=10, step=10), keys=5)
    seen, whole = [], video_film.VideoFilm._decoded

    def counted(film, first):
        for shot in whole(film, first):
            seen.append(shot.time)
            yield shot

    monkeypatch.setattr(video_film.VideoFilm, "_decoded", counted)
    assert filming.numbers(clips(path.parent, Timing(2)).take(0, 0.99)[0], 10, 10) == [21, 22]
    assert len(seen) <= 5 + 2


@pytest.mark.parametrize("name", [".mp4", ".mkv"])
def test_a_variable_rate_is_resampled_by_its_time_stamps(tmp_path: Path, name: str):
    times = [0, 100, 200, 1000, 1500, 2000]
    filming.write(tmp_path / f"a{name}", filming.ramp(6), times=times)
    assert filming.numbers(clips(tmp_path, Timing(4, 2)).take(0, 0.0)[0]) == [0, 2, 3, 4]


def test_the_same_films_are_read_from_a_folder_a_tar_and_a_zip(tmp_path: Path):
    folder = tmp_path / "set"
    for name in ("a.mp4", "b.gif", "c"):
        filming.write(folder / name, filming.ramp(6))
    with tarfile.open(tmp_path / "set.tar", "w") as tar, zipfile.ZipFile(tmp_path / "set.zip", "w") as packed:
        for path in sorted(folder.rglob("*.*")):
            tar.add(path, path.relative_to(folder))
            packed.write(path, path.relative_to(folder))
    index = torch.arange(3)
    plain = clips(folder, Timing(3)).read(index)["clip"]
    for source in ("set.tar", "set.zip"):
        assert clips(tmp_path / source, Timing(3)).read(index)["clip"].equal(plain)


def test_a_folder_of_frames_is_in_the_order_of_its_numbers_and_may_say_its_rate(tmp_path: Path):
    for number, frame in enumerate(filming.ramp(12)):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(frame).save(tmp_path / f"a/frame{number}.png")
    (tmp_path / "a" / RATE_FILE).write_text("12\n")
    clip, fps = clips(tmp_path, Timing(12)).take(0)
    assert filming.numbers(clip) == list(range(12))
    assert fps == 12
    (tmp_path / "a" / RATE_FILE).write_text("fast")
    with pytest.raises(BrokenClip, match=RATE_FILE):
        clips(tmp_path, Timing(12)).take(0)


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (["001.png", "002.png", "003.png"], None),
        (["010.png", "020.png", "030.png"], None),
        (["1.png", "2.png", "4.png"], "between 2.png and 4.png"),
        (["a1.png", "b1.png"], "one number"),
        (["cover.png", "1.png"], "cover.png has no number"),
        (["7.png"], None),
    ],
)
def test_frames_that_do_not_count_evenly_are_told_apart(names: list[str], fault: str | None):
    found = misnumbered(names)
    assert found is None if fault is None else fault in found


def test_all_frames_of_a_clip_are_cropped_alike_and_clips_apart(tmp_path: Path):
    scene = np.random.default_rng(0).integers(0, 256, (48, 8, 3), dtype=np.uint8)
    filming.write(tmp_path / "a", np.stack([scene] * 5))
    data = clips(tmp_path, Timing(5), size=8)
    data.framing = data.framing._replace(random=True)
    read = data.read(torch.zeros(40, dtype=torch.int64), epoch_draws(0, 0, torch.arange(40)))["clip"]
    assert (read == read[:, :, :1]).all()
    assert len({each.numpy().tobytes() for each in read}) > 10


def test_grey_clips_have_one_channel(tmp_path: Path):
    filming.write(tmp_path / "a.mp4", filming.ramp(4))
    assert clips(tmp_path, Timing(4), channels=1).read(torch.tensor([0]))["clip"].shape == (1, 1, 4, 8, 8)


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_film_of_a_turned_camera_is_upright(tmp_path: Path, turn: int):
    import av

    scene = np.zeros((16, 16, 3), dtype=np.uint8)
    scene[:8, :8] = 255
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height = stream.width = 16
        stream.pix_fmt = "yuv444p"
        stream.set_display_rotation(turn)
        stored = np.ascontiguousarray(np.rot90(scene, -turn // 90))
        container.mux(stream.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")))
        container.mux(stream.encode())
    clip, _ = clips(tmp_path, Timing(1), size=16).take(0)
    assert np.abs(clip[:, 0].transpose(1, 2, 0).astype(int) - scene).max() < 30


@pytest.mark.parametrize("axes", [[[1, 0], [0, 1]], [[0, 1], [1, 0]]])
@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_pixels_are_turned_and_mirrored_as_the_matrix_of_a_film_places_them(
    axes: list[list[int]], signs: tuple[int, int]
):
    stored = np.arange(6).reshape(2, 3)
    matrix = np.array(axes) * signs
    y, x = np.indices(stored.shape)
    placed = np.stack([x, y], -1) @ matrix  # (x, y) of each pixel, up to where the picture begins
    placed -= placed.min((0, 1))
    shown = np.empty(stored.shape if axes[0][0] else stored.shape[::-1], dtype=int)
    shown[placed[..., 1], placed[..., 0]] = stored
    found = upright(stored[..., None].astype(np.uint8), 65536.0 * matrix)
    assert found[..., 0].tolist() == shown.tolist()


def damaged(folder: Path, fault: str) -> Path:
    """A set of one film with a fault; its name."""
    path = folder / "a.mp4"
    match fault:
        case "empty":
            path.write_bytes(b"")
        case "html":
            path.write_bytes(b"<html>not found</html>")
        case "cut":
            path.write_bytes(filming.write(path, filming.ramp(20)).read_bytes()[:900])
        case "sound":
            filming.sound(path)
        case "short":
            filming.write(path, filming.ramp(3))
        case "gif":
            path = folder / "a.gif"
            path.write_bytes(filming.write(path, filming.ramp(20)).read_bytes()[:150])
        case "mixed":
            path = filming.write(folder / "a", filming.ramp(5))
            Image.new("RGB", (9, 8)).save(path / "002.png")
        case "gap":
            path = filming.write(folder / "a", filming.ramp(5))
            (path / "002.png").unlink()
        case "frame":
            path = filming.write(folder / "a", filming.ramp(5))
            (path / "002.png").write_bytes(b"no picture")
        case "format":
            path.write_bytes(b"#EXTM3U\nhttp://example.org/a.ts\n")
    return path


FAULTS = {
    "empty": "empty",
    "html": "none of MP4",
    "cut": "cannot be decoded",
    "sound": "sound alone",
    "short": "too short: 3 frames",
    "gif": "cannot be decoded",
    "mixed": "8x8 and 8x9",
    "gap": "missing between 001.png and 003.png",
    "frame": "002.png",
    "format": "none of MP4",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_film_that_cannot_be_read_is_one_error_with_its_name_and_why(tmp_path: Path, fault: str):
    path = damaged(tmp_path, fault)
    with pytest.raises(BrokenClip) as error:
        clips(tmp_path, Timing(5)).read(torch.tensor([0]))
    assert error.value.name == str(path)
    assert FAULTS[fault] in error.value.reason
    assert error.value.hint


def test_a_folder_without_clips_is_refused_with_what_it_holds(tmp_path: Path):
    (tmp_path / "a.wmv").write_bytes(b"x")
    with pytest.raises(UserError, match=r"no clips, but 1 \.wmv"):
        clips_among(open_tree(tmp_path, "data.root"), "data.root")


def test_without_pyav_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    filming.write(tmp_path / "a.mp4", filming.ramp(4))
    filming.write(tmp_path / "b.gif", filming.ramp(4))
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    data = clips(tmp_path, Timing(4))
    with pytest.raises(UserError) as error:
        data.read(torch.tensor([0]))
    assert "diffcli[video]" in error.value.hint
    assert filming.numbers(data.read(torch.tensor([1]))["clip"][0]) == [0, 1, 2, 3]


def test_a_broken_member_of_an_archive_is_one_error(tmp_path: Path):
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        member = tarfile.TarInfo("a.mp4")
        member.size = 40
        tar.addfile(member, io.BytesIO(b"\0\0\0\x20ftypisom" + b"\0" * 28))
    with pytest.raises(BrokenClip, match="cannot be decoded"):
        clips(tmp_path / "set.tar", Timing(4)).read(torch.tensor([0]))
