"""Fields beside the image: each row reads its own, an epoch draws among several, and a caption's embedding comes with it."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diffcli.config import ImageShape, UserError
from diffcli.data import captions
from diffcli.data.buckets import Framing
from diffcli.data.columns import ClassTexts, Pictures, Texts, Vectors, each
from diffcli.data.images import FileImages
from diffcli.data.order import epoch_draws
from diffcli.fields import FieldSpec
from tests.data.making import encoded, npy, png

SHAPE = ImageShape(1, 4, 4)
WHOLE = Framing((4, 4))


class Files:
    """Encoded files in memory."""

    def __init__(self, *files: bytes) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return f"file-{index}"

    def read(self, index: int) -> bytes:
        return self.files[index]


def texts(*rows: list[str]) -> Texts:
    return Texts(Files(*map(captions.to_bytes, rows)))


def test_without_draws_the_first_of_several_is_read():
    assert texts(["a", "b"], ["c"], []).read(torch.tensor([1, 0, 2]), None) == ["c", "a", ""]


def test_draws_reach_every_caption_and_are_reproducible():
    column, index = texts(["a", "b", "c"]), torch.zeros(200, dtype=torch.int64)
    found = column.read(index, epoch_draws(0, 0, torch.arange(200)))
    assert set(found) == {"a", "b", "c"}
    assert column.read(index, epoch_draws(0, 0, torch.arange(200))) == found


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=20))
def test_the_embedding_is_that_of_the_caption_that_was_drawn(draws: list[int]):
    rows = np.arange(12, dtype=np.float16).reshape(4, 3)  # caption k has the embedding (3 k, 3 k + 1, 3 k + 2)
    index, draw = torch.zeros(len(draws), dtype=torch.int64), torch.tensor(draws)
    words = texts(["0", "1", "2", "3"]).read(index, draw)
    vectors = Vectors(Files(npy(rows)), FieldSpec("vector", (3,))).read(index, draw)
    assert vectors.dtype == torch.float32
    assert vectors[:, 0].tolist() == [3 * int(word) for word in words]


def test_one_embedding_an_image_is_read_whatever_is_drawn():
    column = Vectors(Files(npy(np.array([1.0, 2.0])), npy(np.array([3.0, 4.0]))), FieldSpec("vector", (2,)))
    assert column.read(torch.tensor([1, 0]), torch.tensor([7, 8])).tolist() == [[3, 4], [1, 2]]


ENDLESS = b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999,), }".ljust(117) + b"\n"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY\x01",
        npy(np.ones(3))[:-4],
        pickle.dumps([1.0]),
        b"PK\x03\x04",
        b"\x93NUMPY\x01\x00v\x00" + ENDLESS,
        *map(npy, (np.float32(3), np.ones((0, 3)), np.ones((1, 1, 1, 3)), np.array([1.0, np.nan]))),
    ],
)
def test_a_garbled_embedding_is_named_and_never_unpickled(data: bytes):
    with pytest.raises(UserError, match="file-0: its embedding cannot be read"):
        Vectors(Files(data), FieldSpec("vector", (None,))).read(torch.tensor([0]), None)


@pytest.mark.parametrize("other", [np.ones(4), np.ones((2, 4)), np.ones((1, 2, 3))])
def test_an_embedding_of_another_width_or_of_more_axes_is_named(other: np.ndarray):
    column = Vectors(Files(npy(np.ones(3)), npy(other)), FieldSpec("vector", (3,)))
    assert column.read(torch.tensor([0]), None).shape == (1, 3)
    with pytest.raises(UserError, match=r"file-1: .*it is (4|2x3) a sample, not 3"):
        column.read(torch.tensor([0, 1]), None)


def test_a_sequence_may_have_any_length():
    column = Vectors(Files(npy(np.ones((1, 5, 3)))), FieldSpec("tokens", (None, 3)))
    assert column.read(torch.tensor([0]), None).shape == (1, 5, 3)


def test_a_mask_is_cut_where_its_image_is():
    """One picture stored as an image and as a mask over it: they stay equal, whatever is drawn."""
    picture = np.random.default_rng(0).integers(0, 256, (4, 9), dtype=np.uint8)
    files, framing = Files(encoded(Image.fromarray(picture), "PNG")), Framing((4, 4), random=True)
    index, draws = torch.zeros(64, dtype=torch.int64), epoch_draws(0, 0, torch.arange(64))
    masks = Pictures(files, FieldSpec("mask", SHAPE), framing).read(index, draws)
    assert torch.equal(masks, FileImages(files, SHAPE, framing=framing).read(index, draws)["image"])
    assert len(masks.flatten(1).unique(dim=0)) == 6  # all places that 9 columns leave to 4


def test_a_mask_keeps_its_levels_when_it_shrinks():
    rng = np.random.default_rng(0)
    file = encoded(Image.fromarray(rng.choice(np.array([0, 7, 255], np.uint8), (33, 50))), "PNG")
    column = Pictures(Files(file), FieldSpec("mask", SHAPE), WHOLE)
    assert set(column.read(torch.tensor([0]), None).unique().tolist()) <= {0, 7, 255}


@pytest.mark.parametrize(("count", "stored", "read"), [(2, [0, 255], [0, 1]), (2, [0, 1], [0, 1]), (3, [0, 2], [0, 2])])
def test_white_is_class_one_of_two(count: int, stored: list[int], read: list[int]):
    file = png(np.resize(np.array(stored, np.uint8), (1, 4, 4)))
    column = Pictures(Files(file), FieldSpec("mask", SHAPE, count), WHOLE)
    assert column.read(torch.tensor([0]), None).unique().tolist() == read


def test_levels_of_pictures_are_no_classes():
    file = png(np.full((1, 4, 4), 255, np.uint8))
    assert Pictures(Files(file), FieldSpec("image", SHAPE), WHOLE).read(torch.tensor([0]), None).unique() == 255


def test_a_mask_with_a_class_that_the_set_does_not_have_is_named():
    column = Pictures(Files(png(np.full((1, 4, 4), 3, np.uint8))), FieldSpec("mask", SHAPE, 3), WHOLE)
    with pytest.raises(UserError, match="file-0: its mask holds the class 3, but the set has the classes 0 to 2"):
        column.read(torch.tensor([0]), None)


def test_masks_of_a_set_that_knows_no_classes_have_those_of_their_reader():
    """255 may mean white, or what has no class; a reader of two classes would take either for the background."""
    levels = np.zeros((1, 4, 4), np.uint8)
    levels[:, 2:] = 255
    void = levels.copy()
    void[0, 0, 0] = 7
    column = Pictures(Files(png(levels), png(void)), FieldSpec("mask", SHAPE), WHOLE)
    assert column.read(torch.tensor([0]), None).unique().tolist() == [0, 255]
    known = column.knowing(2)
    assert (known.spec.classes, column.spec.classes) == (2, None)
    assert known.read(torch.tensor([0]), None).unique().tolist() == [0, 1]
    with pytest.raises(UserError, match="file-1: its mask holds the class 7, but the model knows the classes 0 to 1"):
        known.read(torch.tensor([1]), None)
    noted = Pictures(Files(png(void)), FieldSpec("mask", SHAPE, 9), WHOLE)
    assert noted.knowing(2) is noted, "what the set says is checked where the fields are"


def test_captions_made_of_classes_name_the_class_of_the_row():
    column = ClassTexts(torch.tensor([1, 0]), [["a {name}"], ["the {name}"]], [["cat"], ["dog", "hound"]])
    assert column.read(torch.tensor([0, 1]), None) == ["a dog", "a cat"]
    found = column.read(torch.zeros(100, dtype=torch.int64), epoch_draws(0, 0, torch.arange(100)))
    assert set(found) == {"a dog", "the dog", "a hound", "the hound"}


def test_each_gives_a_draw_to_every_row():
    assert each(None, 2) == [None, None]
    assert each(torch.tensor([5, 6]), 2) == [5, 6]
