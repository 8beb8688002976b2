"""Deep images whose values use little of 16 bits are told, with the range to type."""

import numpy as np
import pytest
from PIL import Image

from diffcli.data.deep_images import deep_range, range_note
from tests.data.making import encoded, pixels, png


def deep(*values: float, kind: type = np.uint16) -> bytes:
    return encoded(Image.fromarray(np.array([values], kind)), "TIFF")


def test_the_range_of_deep_images_alone_is_seen():
    assert deep_range(deep(7, 4000)) == (7, 4000)
    assert deep_range(deep(0.5, -3, kind=np.float32)) == (-3, 0.5)
    assert deep_range(png(pixels(1, 3, 4, 4)[0])) is None
    assert deep_range(b"no image") is None


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ([deep(0, 4000), deep(3, 900)], "--range 0,4095"),
        ([deep(0, 1023)], "--range 0,1023"),
        ([deep(0, 200)], "--range 0,255"),
        ([deep(-1024, 3071, kind=np.int32)], "--range -1024,3071"),
        ([deep(0, 60000)], "0 to 60000"),
    ],
)
def test_the_note_says_what_to_type(files: list[bytes], told: str):
    note = range_note(files, "--range {}")
    assert note is not None
    assert told in note
    assert ("--range" in told) == ("--range" in note)


def test_a_set_whose_first_image_is_not_deep_costs_one_look():
    def files():
        yield png(pixels(1, 3, 4, 4)[0])
        raise AssertionError("no further image is read")

    assert range_note(files(), "--range {}") is None
