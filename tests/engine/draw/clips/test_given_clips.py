"""Given frames of clips: from pictures, folders and rows of a reference, kept in the output, refused where they do not fit."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from torch import Tensor

from diffcli.config import UserError
from diffcli.data.images import ImageData
from diffcli.data.pixels import to_image
from diffcli.engine.draw.pictures import MemoryClip, MemoryPicture
from diffcli.engine.draw.sample import SampleOptions, request
from diffcli.engine.model import Model
from diffcli.tasks.conditioners.given_frames import GIVEN
from tests.data.clips.filming import numbers, ramp, write
from tests.data.making import pixels, png
from tests.engine.draw.clips.filming import FRAMES, asked, drawn, film_model, film_preset, frames_of

MIXTURE = {"none": 1.0, "first:1": 1.0, "first:3": 1.0, "ends:1": 1.0, "last:2": 1.0}


def model(given: dict[str, float] = MIXTURE, **keys: Any) -> Model:
    return film_model(task__conditioners=[frames_of(given)], **keys)


def stills(n: int) -> Tensor:
    """uint8 (n, 1, 4, 6), the size of the clips."""
    return torch.from_numpy(pixels(n, 1, 4, 6, seed=3))


def memory(levels: Tensor) -> MemoryPicture:
    return MemoryPicture(to_image(levels.numpy()))


def film(frames: Tensor) -> MemoryClip:
    return MemoryClip([memory(frame).image for frame in frames])


def shown(levels: Tensor) -> Tensor:
    """(n, 1, 4, 6) -> (1, n, 4, 6): frames of a clip."""
    return levels.transpose(0, 1)


def test_a_picture_is_the_first_frame_of_each_clip_and_stays_as_it_is() -> None:
    pictures = stills(2)
    clips = drawn(model(), images=tuple(map(memory, pictures)), n=None)
    assert torch.equal(clips[:, :, 0], pictures), "one clip a picture"
    assert not torch.equal(clips[:, :, 1], pictures)


@pytest.mark.parametrize(
    ("text", "places", "sources"),
    [("first:3", [0, 1, 2], [0, 1, 2]), ("last:2", [4, 5], [2, 3]), ("ends:1", [0, 5], [0, 3])],
)
def test_the_frames_of_a_film_lie_where_the_option_says(text: str, places: list[int], sources: list[int]) -> None:
    frames = stills(4)
    (clip,) = drawn(model(), images=(film(frames),), given_frames=text, n=None)
    assert torch.equal(clip[:, places], shown(frames[sources]))
    told = asked(model(), images=(film(frames),), given_frames=text, n=None)
    assert told.batch(range(1))[GIVEN].nonzero()[:, 1].tolist() == places
    assert told.describe()["given_frames"] == text


def test_without_the_option_a_film_gives_as_many_frames_as_training_gave() -> None:
    assert asked(model(), images=(film(stills(5)),)).describe()["given_frames"] == "first:3"
    assert asked(model(), images=(film(stills(2)),)).describe()["given_frames"] in ("ends:1", "last:2")
    assert asked(model({"random:0.5": 1.0}), images=(film(stills(4)),)).describe()["given_frames"] == "first:4"


def test_two_pictures_are_the_ends_of_a_clip() -> None:
    first, last, *more = stills(4)
    clips = drawn(model(), images=tuple(map(memory, (first, last, *more))), given_frames="ends:1", n=None)
    assert torch.equal(clips[:, :, 0], torch.stack([first, more[0]]))
    assert torch.equal(clips[:, :, -1], torch.stack([last, more[1]]))


def test_a_folder_of_pictures_is_a_clip(tmp_path: Path) -> None:
    frames = stills(3)
    for number, frame in enumerate(frames):
        (tmp_path / f"{number}.png").write_bytes(png(frame.numpy()))
    (clip,) = drawn(model(), images=(tmp_path,), given_frames="first:3", n=None)
    assert torch.equal(clip[:, :3], shown(frames))


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp", "frames"])
def test_a_film_gives_its_first_frames_at_the_speed_of_the_clips(name: str, tmp_path: Path) -> None:
    """A film of 24 frames a second, of which clips of 12 take every second; a folder has the speed of the clips."""
    path = write(tmp_path / name, ramp(9, 8, 12), fps=24 if name == "a.mp4" else 12)
    (clip,) = drawn(model(), images=(path,), given_frames="first:3", n=None)
    assert numbers(clip[:, :3].numpy()) == ([0, 2, 4] if name == "a.mp4" else [0, 1, 2])


def test_of_a_long_film_the_last_frames_are_the_last_of_the_clip(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", ramp(20, 8, 12), fps=12)
    (clip,) = drawn(model(), images=(path,), given_frames="last:2", n=None)
    assert numbers(clip[:, 4:].numpy()) == [18, 19]


def test_a_folder_of_films_gives_a_clip_each(tmp_path: Path) -> None:
    for first in (20, 60):
        write(tmp_path / "films" / f"{first}.gif", ramp(5, 8, 12, first=first), fps=12)
    clips = drawn(model(), images=(tmp_path / "films",), given_frames="first:3", n=None)
    assert [numbers(clip[:, :3].numpy()) for clip in clips] == [[0, 1, 2], [4, 5, 6]]


def test_a_folder_with_a_frame_that_cannot_be_read_or_has_another_size_is_refused_with_what_is_wrong(
    tmp_path: Path,
) -> None:
    folder = write(tmp_path / "frames", ramp(3, 8, 12))
    write(tmp_path / "larger", ramp(1, 16, 12))
    for content, words in ((b"no picture", "001.png"), ((tmp_path / "larger/000.png").read_bytes(), "8x12 and 16x12")):
        (folder / "001.png").write_bytes(content)
        with pytest.raises(UserError, match=f"--image {folder}: .*{words}"):
            asked(model(), images=(folder,), given_frames="first:3")


@pytest.mark.parametrize(("name", "content"), [("a.mp4", b"no film"), ("a.gif", b"GIF89a"), ("a.png", b"no picture")])
def test_a_film_that_cannot_be_read_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    for place in (tmp_path / name, tmp_path / "nowhere.mp4"):
        with pytest.raises(UserError, match=f"--image {place}"):
            asked(model(), images=(place,))


def test_given_frames_change_the_others_and_a_model_draws_without_them() -> None:
    one, other = (drawn(model(), images=(memory(still),), n=1) for still in stills(2))
    assert not torch.equal(one[:, :, 1], other[:, :, 1])
    assert drawn(model()).shape == (2, 1, FRAMES, 4, 6)


def test_both_branches_of_guidance_are_given_the_frames() -> None:
    keys = {"task__drop_condition": 0.1, "guidance": 3}
    kinds = [{"kind": "class", "num_classes": 3, "dim": 4}, frames_of(MIXTURE), {"kind": "fps", "dim": 4}]
    guided = film_model(task__conditioners=kinds, **keys)
    req = asked(guided, images=(memory(stills(1)[0]),), n=2)
    cond = req.task._conditions(req.batch(range(2)), 2, (True, False))
    assert cond.spatial is not None
    assert torch.equal(*cond.spatial.chunk(2))
    assert cond.spatial[:, -1].flatten(1).any(dim=1).all()
    assert torch.equal(cond.vector[:2, 4:], cond.vector[2:, 4:])
    assert torch.equal(drawn(guided, images=(memory(stills(1)[0]),), n=2)[:, :, 0], stills(1).expand(2, -1, -1, -1))


def test_long_clips_have_given_frames_in_their_first_window() -> None:
    (clip,) = drawn(model(), images=(film(stills(3)),), given_frames="first:3", frames=15, n=1)
    assert torch.equal(clip[:, :3], shown(stills(3)))


def test_the_speed_reaches_the_network() -> None:
    quick = film_model(task__conditioners=[{"kind": "fps", "dim": 8}])
    assert asked(quick).batch(range(2))["fps"].tolist() == [12.0, 12.0]
    assert asked(quick, fps=5).describe()["clip"]["fps"] == 5
    assert not torch.equal(drawn(quick), drawn(quick, fps=5))
    assert torch.equal(drawn(quick), drawn(quick, fps=12))


class Rows(NamedTuple):
    """A reference of clips."""

    name: str
    data: ImageData | None


def test_a_reference_gives_the_frames_of_its_clips_row_by_row() -> None:
    data = film_preset().data.build("test")
    req = request(model({"first:2": 1.0}), SampleOptions(n=7, steps=1), Rows("clips:test", data))
    rows = data.select({"clip"}).read(torch.arange(7) % 5)["clip"]
    assert torch.equal(req.images(range(7))[:, :, :2], rows[:, :, :2])


@pytest.mark.parametrize(
    ("given", "options", "words"),
    [
        (MIXTURE, {"given_frames": "frist:2"}, ["frist:2", "first:K"]),
        (MIXTURE, {"given_frames": "random"}, ["random", "first:K"]),
        (MIXTURE, {"given_frames": "first:2"}, ["first:2", "--given-frames first:1 or first:3"]),
        (MIXTURE, {"given_frames": "first:3"}, ["--image FILE"]),
        (MIXTURE, {"given_frames": "first:3", "images": 1}, ["1 frame", "3", "--given-frames first:1"]),
        (MIXTURE, {"given_frames": "ends:1", "images": 3}, ["3 --image", "--image LAST"]),
        (MIXTURE, {"given_frames": "first:3", "images": (4,), "frames": 3}, ["3 frames", "--frames 6"]),
        ({"first:4": 1.0}, {"images": 1}, ["1 frame", "first:4", "4 frames or more"]),
        ({"first:4": 1.0}, {}, ["first:4", "--image FILE"]),
        (None, {"images": 1}, ["--image", "kind: frames"]),
        (None, {"given_frames": "first:1"}, ["--given-frames first:1", "leave --given-frames out"]),
    ],
)
def test_frames_that_cannot_be_given_are_refused_with_what_to_type(
    given: dict[str, float] | None, options: dict[str, Any], words: list[str]
) -> None:
    if "images" in options:
        count = options["images"]
        files = (film(stills(count[0])),) if isinstance(count, tuple) else tuple(map(memory, stills(count)))
        options = options | {"images": files}
    with pytest.raises(UserError) as caught:
        asked(film_model() if given is None else model(given), **options)
    for word in words:
        assert word in str(caught.value)


def test_a_picture_of_another_size_is_cut_to_that_of_the_clip(tmp_path: Path) -> None:
    Image.new("L", (31, 17), 90).save(tmp_path / "a.png")
    (clip,) = drawn(model(), images=(tmp_path / "a.png",), n=None)
    assert (clip[:, 0] == 90).all()
