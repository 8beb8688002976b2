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
from diffcli.data.loader import drawn
from diffcli.data.shards import FieldNote
from tests.data.making import encoded, npy

SHAPE = ImageShape(1, 4, 4)


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
    found = column.read(index, drawn(0, 0, torch.arange(200)))
    assert set(found) == {"a", "b", "c"}
    assert column.read(index, drawn(0, 0, torch.arange(200))) == found


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=20))
def test_the_embedding_is_that_of_the_caption_that_was_drawn(draws: list[int]):
    rows = np.arange(12, dtype=np.float16).reshape(4, 3)  # caption k has the embedding (3 k, 3 k + 1, 3 k + 2)
    index, draw = torch.zeros(len(draws), dtype=torch.int64), torch.tensor(draws)
    words = texts(["0", "1", "2", "3"]).read(index, draw)
    vectors = Vectors(Files(npy(rows))).read(index, draw)
    assert vectors.dtype == torch.float32
    assert vectors[:, 0].tolist() == [3 * int(word) for word in words]


def test_one_embedding_an_image_is_read_whatever_is_drawn():
    column = Vectors(Files(npy(np.array([1.0, 2.0])), npy(np.array([3.0, 4.0]))))
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
        Vectors(Files(data)).read(torch.tensor([0]), None)


def test_an_embedding_of_another_width_is_named():
    column = Vectors(Files(npy(np.ones(3)), npy(np.ones(4))), FieldNote(kind="vector", width=3))
    assert column.read(torch.tensor([0]), None).shape == (1, 3)
    with pytest.raises(UserError, match=r"file-1: .*it is 4 wide, others 3"):
        column.read(torch.tensor([0, 1]), None)


def test_a_mask_is_cut_where_its_image_is():
    """One picture stored as an image and as a mask over it: they stay equal, whatever is drawn."""
    picture = np.random.default_rng(0).integers(0, 256, (4, 9), dtype=np.uint8)
    files, framing = Files(encoded(Image.fromarray(picture), "PNG")), Framing((4, 4), random=True)
    index, draws = torch.zeros(64, dtype=torch.int64), drawn(0, 0, torch.arange(64))
    masks = Pictures(files, SHAPE, framing).read(index, draws)
    assert torch.equal(masks, FileImages(files, SHAPE, framing=framing).read(index, draws)["image"])
    assert len(masks.flatten(1).unique(dim=0)) == 6  # all places that 9 columns leave to 4


def test_a_mask_keeps_its_levels_when_it_shrinks():
    rng = np.random.default_rng(0)
    file = encoded(Image.fromarray(rng.choice(np.array([0, 7, 255], np.uint8), (33, 50))), "PNG")
    assert set(Pictures(Files(file), SHAPE).read(torch.tensor([0]), None).unique().tolist()) <= {0, 7, 255}


def test_captions_made_of_classes_name_the_class_of_the_row():
    column = ClassTexts(torch.tensor([1, 0]), [["a {name}"], ["the {name}"]], [["cat"], ["dog", "hound"]])
    assert column.read(torch.tensor([0, 1]), None) == ["a dog", "a cat"]
    found = column.read(torch.zeros(100, dtype=torch.int64), drawn(0, 0, torch.arange(100)))
    assert set(found) == {"a dog", "the dog", "a hound", "the hound"}


def test_each_gives_a_draw_to_every_row():
    assert each(None, 2) == [None, None]
    assert each(torch.tensor([5, 6]), 2) == [5, 6]
