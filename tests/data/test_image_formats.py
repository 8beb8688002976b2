"""Images are known by their content, those that need a package by name, and texts of any size do not hide the pixels."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from diffcli.data import image_formats
from diffcli.data.image_formats import NEEDS, SUFFIXES, format_of, images_among, images_in, is_image, readable
from diffcli.data.pixels import BrokenImage, open_image, read_size
from tests.data.making import encoded
from tests.data.png_chunks import chunk, png_of

COLOUR = Image.new("RGB", (4, 4), (10, 20, 30))
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)


def skip_what_pillow_lacks(kind: str) -> None:
    """Pillow is built without AVIF where libavif is not there, and before 11.3."""
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF", "JPEG2000", "QOI"])
def test_an_image_with_any_name_is_known_by_its_first_bytes(kind: str):
    skip_what_pillow_lacks(kind)
    data = encoded(COLOUR, kind)
    for name in ("1.jpg?size=l", "photo", "1.img", "1.xyz"):
        assert images_among([name], lambda _: data[:64]).images == [name]
    assert format_of(data[:64]) == kind


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "QOI", "TGA", "PCX", "SGI", "DIB", "DDS"])
def test_further_formats_are_decoded(kind: str):
    skip_what_pillow_lacks(kind)
    found = np.asarray(open_image(encoded(COLOUR, kind), "x")).astype(int)
    assert abs(found - [10, 20, 30]).max() <= 4
    assert read_size(io.BytesIO(encoded(COLOUR, kind)), "x") == (4, 4)


def test_files_that_are_no_images_are_counted_by_suffix_but_for_texts():
    names = [
        "a.png",
        "b.jfif",
        "c.mov",
        "d.MOV",
        "e.docx",
        "f.txt",
        "g.json",
        "h",
        "i.jpg?w=3&h=4",
        "j.nef",
        "k.jpg.part",
    ]
    found = images_among(names, lambda name: b"II*\0" if name == "j.nef" else b"no image")
    assert found.images == ["a.png", "b.jfif"]
    assert found.others == {".mov": 2, ".docx": 1, "with another name": 2, ".nef": 1, ".part": 1}
    assert "2 .mov" in found.notes[0]
    assert "7 files" in found.notes[0]


def test_the_first_bytes_are_asked_for_only_where_the_suffix_does_not_tell():
    def never(name: str) -> bytes:
        raise AssertionError(name)

    assert images_among(
        [f"a{suffix}" for suffix in SUFFIXES - image_formats.SUFFIXES_OF["HEIF"]] + ["a.txt"], never
    ).images


def test_the_images_that_lie_in_a_folder_are_known_by_content_too(tmp_path: Path):
    data = encoded(COLOUR, "JPEG")
    for name in ("b.jpg?size=l", "a", "c.heic", "d.txt", "e.mov", ".hidden.jpg", "f.jfif", "g.part"):
        (tmp_path / name).write_bytes(b"no image" if name == "e.mov" else data)
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in images_in(tmp_path)] == ["a", "b.jpg?size=l", "c.heic", "f.jfif"]


@pytest.fixture
def without_heif(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(image_formats, "_further", lambda: ())


def test_a_picture_whose_package_is_missing_is_left_out_and_the_package_named(without_heif: None):
    found = images_among(["a.heic", "b.avif", "c.png", "d"], lambda name: HEIC)
    assert found.images == ["c.png"]
    assert found.others == {".heic": 1, ".avif": 1, "with another name": 1}
    assert set(found.notes[1:]) == {NEEDS["HEIF"], NEEDS["AVIF"]}
    with pytest.raises(BrokenImage) as error:
        open_image(HEIC, "IMG_1.jpg")  # as phones send them: the suffix is no promise
    assert error.value.reason == NEEDS["HEIF"]
    assert "pip install 'diffcli[photos]'" in error.value.reason


def test_a_plugin_that_is_installed_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A stand-in for pillow-heif that registers a reader for the mark of HEIC."""
    (tmp_path / "pillow_heif.py").write_text(
        "from PIL import Image, ImageFile\n"
        "class Heif(ImageFile.ImageFile):\n"
        "    format = 'HEIF'\n"
        "    def _open(self):\n"
        "        self._size, self._mode = (2, 1), 'RGB'\n"
        "    def load(self):\n"
        "        return Image.new('RGB', (2, 1), (9, 8, 7)).load()\n"
        "    def convert(self, mode):\n"
        "        return Image.new(mode, (2, 1), (9, 8, 7))\n"
        "def register_heif_opener():\n"
        "    Image.register_open('HEIF', Heif, lambda head: head[4:12] == b'ftypheic')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(Image, "OPEN", {name: one for name, one in Image.OPEN.items() if name != "HEIF"})
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    image_formats._further.cache_clear()
    try:
        assert readable("HEIF")
        assert is_image(".heic", lambda: b"")
        assert read_size(io.BytesIO(HEIC), "x") == (1, 2)
    finally:
        image_formats._further.cache_clear()


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP", b"iTXt"])
@pytest.mark.parametrize("place", ["more", "last"])
def test_a_png_with_large_texts_keeps_its_pixels(name: bytes, place: str):
    large = zlib.compress(b"x" * (3 << 20))  # more than Pillow unpacks
    body = {b"zTXt": b"workflow\0\0", b"iCCP": b"profile\0\0", b"iTXt": b"workflow\0\x01\0\0\0"}[name] + large
    data = png_of(bytes([7, 200]), kind=0, depth=8, **{place: chunk(name, body)})
    assert np.asarray(open_image(data, "x")).tolist() == [[7, 200]]
    assert read_size(io.BytesIO(data), "x") == (1, 2)


def test_a_broken_png_with_a_text_is_still_broken():
    data = png_of(bytes(64), kind=0, depth=8, more=chunk(b"tEXt", b"a\0b"))
    with pytest.raises(BrokenImage):
        open_image(data[:-30], "x")
