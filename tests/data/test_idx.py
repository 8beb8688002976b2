"""IDX files: exact where they are whole, a user's error and nothing else where they are not."""

import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from diffcli.config import UserError
from diffcli.data.idx import read_idx, read_pair
from tests.data.making import idx, pixels

SMALL = arrays(np.uint8, st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(1, 4)))
WHOLE = idx(pixels(2, 1, 3, 4)[:, 0])


@given(SMALL)
def test_what_was_written_is_read_plain_or_gzipped(array: np.ndarray):
    for data in (idx(array), gzip.compress(idx(array))):
        assert np.array_equal(read_idx(data, "x", 3), array)
        assert read_idx(data, "x", 3).shape == array.shape


@given(st.integers(0, len(WHOLE) - 1), st.booleans())
def test_a_truncated_file_is_the_users_error(length: int, zipped: bool):
    data = gzip.compress(WHOLE[:length]) if zipped else WHOLE[:length]
    with pytest.raises(UserError, match="train-images"):
        read_idx(data, "train-images", 3)


@given(st.integers(0, 59))
def test_a_truncated_gzip_is_the_users_error(length: int):
    with pytest.raises(UserError, match="train-images"):
        read_idx(gzip.compress(WHOLE)[: min(length, len(gzip.compress(WHOLE)) - 9)], "train-images", 3)


@given(
    st.binary(min_size=1, max_size=11), st.sampled_from([b"", b"\x1f\x8b", b"\x1f\x8b\x08\x00", b"\x00\x00\x08\x03"])
)
@settings(max_examples=300)
def test_garbage_is_the_users_error(data: bytes, start: bytes):
    with pytest.raises(UserError, match="garbage"):
        read_idx(start + data, "garbage", 3)


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255), st.booleans())
@settings(max_examples=300)
def test_a_flipped_byte_is_the_users_error_or_another_pixel(position: int, change: int, zipped: bool):
    data = bytearray(gzip.compress(WHOLE) if zipped else WHOLE)
    data[position % len(data)] ^= change
    try:
        array = read_idx(bytes(data), "x", 3)
    except UserError:
        return
    assert array.size == 24


def test_the_error_says_what_is_wrong():
    with pytest.raises(UserError, match="starts with 00000801, not 00000803"):
        read_idx(idx(np.zeros(3)), "x", 3)
    with pytest.raises(UserError, match="3 of the 24 bytes"):
        read_idx(WHOLE[: 16 + 3], "x", 3)
    with pytest.raises(UserError, match="more than the 24 bytes"):
        read_idx(WHOLE + b"\0", "x", 3)
    with pytest.raises(UserError, match="which cannot be"):
        read_idx(b"\0\0\x08\x03" + b"\xff" * 12, "x", 3)


def test_labels_must_fit_their_images():
    images = idx(pixels(2, 1, 3, 4)[:, 0])
    with pytest.raises(UserError, match="3 labels, but a holds 2 images"):
        read_pair(images, idx(np.zeros(3)), ("a", "b"))
    with pytest.raises(UserError, match="the label 10"):
        read_pair(images, idx(np.array([1, 10])), ("a", "b"))
    with pytest.raises(UserError, match="no pixels"):
        read_pair(idx(np.zeros((0, 28, 28))), idx(np.zeros(0)), ("a", "b"))
