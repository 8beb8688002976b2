"""What people store in shards: labels in other places, other names of images, links, and members that lie apart."""

import io
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffcli.config import UserError
from diffcli.data.stream.stream_data import StreamData
from diffcli.data.stream.tar import REMARKS
from tests.data.making import encoded
from tests.data.stream.streaming import picture, serving, stream, tar


def seen(data: StreamData, steps: int) -> tuple[dict[str, list], list[str], int]:
    """The values of each field over batches of 2, the notes, and how many samples were broken."""
    feed = data.feed(2, 0, 0, 1, None)
    batches = [b for _, b in feed.batches(0, steps, flip=False, device=torch.device("cpu"), workers=0)]
    found: dict[str, list] = {"image": [round((float(x.mean()) + 1) * 127.5) for b in batches for x in b["image"]]}
    for name in ("label", "text"):
        found[name] = [value if isinstance(value, str) else int(value) for b in batches for value in b.get(name, ())]
    return found, feed.notes, int(feed.counts[0])


def opened(folder: Path, data: bytes, **more: object) -> StreamData:
    (folder / "a.tar").write_bytes(data)
    return stream(f"{folder}/a.tar", shuffle=0, **more).build("train")


@pytest.mark.parametrize(
    ("extension", "label"),
    [("class", b"%d"), ("cls", b"%d\n"), ("json", b'{"label": %d}'), ("json", b'{"class_id": %d, "caption": null}')],
)
def test_labels_are_read_wherever_people_keep_them(tmp_path: Path, extension: str, label: bytes) -> None:
    files = {}
    for n in range(4):
        files |= {f"{n}.png": picture(n), f"{n}.{extension}": label % (3 * n)}
    data = opened(tmp_path, tar(files))
    assert list(data.specs) == ["image", "label"]
    assert seen(data, 2)[0] == {"image": [0, 1, 2, 3], "label": [0, 3, 6, 9], "text": []}


def test_labels_beside_captions_in_one_json_are_both_read(tmp_path: Path) -> None:
    files = {}
    for n in range(4):
        files |= {f"{n}.png": picture(n), f"{n}.json": b'{"label": %d, "caption": "number %d"}' % (n % 2, n)}
    found, _, broken = seen(opened(tmp_path, tar(files)), 2)
    assert (found["label"], found["text"], broken) == ([0, 1, 0, 1], [f"number {n}" for n in range(4)], 0)


def test_names_of_classes_need_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffcli.data.stream.dealing.ALL_BROKEN", 4)
    files = {}
    for n in range(4):
        files |= {f"{n}.png": picture(n), f"{n}.cls": [b"dog", b"cat"][n % 2]}
    data = tar(files)
    assert seen(opened(tmp_path, data, classes=("cat", "dog")), 2)[0]["label"] == [1, 0, 1, 0]
    with pytest.raises(UserError, match=r"its label is '(dog|cat)'") as error:
        seen(opened(tmp_path, data), 1)
    assert "data.classes=[" in error.value.hint


def test_one_sample_without_a_label_costs_itself_alone_even_where_it_is_the_first(tmp_path: Path) -> None:
    files = {"0.png": picture(0)}
    for n in range(1, 5):
        files |= {f"{n}.png": picture(n), f"{n}.cls": b"1" if n != 3 else b"-1"}
    found, notes, broken = seen(opened(tmp_path, tar(files)), 1)
    assert set(found["label"]) == {1}
    assert 0 not in found["image"]
    assert broken >= 1
    assert "has no label" in notes[0]


def test_images_with_other_names_are_read_and_what_is_none_is_counted(tmp_path: Path) -> None:
    grey = [encoded(Image.new("L", (2, 2), value), "JPEG", quality=100) for value in (40, 80)]
    files = {"0.jfif": grey[0], "1.jpg?size=l": grey[1], "2.raw": b"what", "3.png": picture(9), "README.md": b"read"}
    data = opened(tmp_path, tar(files))
    found, notes, broken = seen(data, 2)
    assert sorted(set(found["image"])) == [9, 40, 80]
    assert broken == 1
    assert "2 has no image, only raw" in notes[0]


def test_keys_with_dots_are_samples_of_their_own(tmp_path: Path) -> None:
    files = {}
    for n in range(4):
        files |= {f"scan.{n}.png": picture(n), f"scan.{n}.txt": b"number %d" % n}
    found, _, broken = seen(opened(tmp_path, tar(files)), 2)
    assert (found["image"], found["text"], broken) == ([0, 1, 2, 3], [f"number {n}" for n in range(4)], 0)


def test_links_and_what_lies_apart_are_told_with_the_command_that_finds_them(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in (("0.png", picture(0)), ("1.png", None), ("2.png", picture(2)), ("0.txt", b"late")):
            info = tarfile.TarInfo(name)
            if data is None:
                info.type, info.linkname = tarfile.LNKTYPE, "0.png"
            else:
                info.size = len(data)
            archive.addfile(info, None if data is None else io.BytesIO(data))
    found, notes, broken = seen(opened(tmp_path, file.getvalue()), 2)
    assert set(found["image"]) == {0, 2}
    assert broken >= 2  # the link, and the caption without its image
    assert {REMARKS["links"], REMARKS["apart"]} <= set(notes)
    assert all("prep-data webdataset" in REMARKS[name] for name in ("links", "apart"))


def test_captions_that_are_not_utf8_are_broken_samples_and_not_garbled(tmp_path: Path) -> None:
    files = {"0.png": picture(0), "0.txt": "café".encode("latin-1")}
    files |= {"1.png": picture(1), "1.txt": "\ufeffcafé".encode(), "2.png": picture(2), "2.txt": "猫".encode("utf-16")}
    found, notes, broken = seen(opened(tmp_path, tar(files)), 2)
    assert set(found["text"]) == {"café", "猫"}
    assert broken >= 1
    assert "UTF-8" in notes[0]


def test_spaces_and_letters_of_any_language_in_an_address_are_encoded(tmp_path: Path) -> None:
    with serving({"my%20set/%C3%BC.tar": tar({"0.png": picture(7), "1.png": picture(9)})}) as server:
        data = stream(f"{server.url}/my set/ü.tar", shuffle=0).build("train")
        assert seen(data, 1)[0]["image"] == [7, 9]
