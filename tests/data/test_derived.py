"""Fields made of the image: the same whatever reads them, aligned under crop and flip, and right where the answer is known."""

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.data.datasets import Digits
from diffcli.data.derived import Colour, Edges, Grey, Hole, LowRes, Sketch
from diffcli.data.images import MemoryImages
from diffcli.data.loader import batches
from diffcli.data.lowering import lowered
from tests.conftest import TINY, changed

ROWS = torch.arange(4)
ALL = (LowRes(), Edges(), Sketch(), Colour(), Grey(), Hole())


def pictures(channels: int = 3, size: int = 16) -> Tensor:
    values = torch.rand(4, channels, size, size, generator=torch.Generator().manual_seed(1))
    return (values * 255).to(torch.uint8)


def step_at(column: int, size: int = 16) -> Tensor:
    """Black on the left of a column, white from there on."""
    return ((torch.arange(size) >= column) * 255).to(torch.uint8).expand(1, 1, size, size)


def test_what_is_declared_is_what_is_read() -> None:
    data = MemoryImages(pictures()).deriving(ALL)
    fields = data.read(ROWS)
    for name, spec in data.specs.items():
        assert tuple(fields[name].shape[1:]) == spec.shape, name
        assert fields[name].dtype == torch.uint8
    assert data.in_files, "worker processes make them"


def test_a_selection_reads_what_it_names_alone() -> None:
    data = MemoryImages(pictures()).deriving(ALL).select({"edges"})
    assert set(data.read(ROWS)) == set(data.specs) == {"edges"}


def test_low_res_is_pillows_antialiased_kernel() -> None:
    images = pictures()
    made = LowRes(factor=4, kernel="bicubic").make(images, ROWS, None)["low_res"]
    for image, small in zip(images, made, strict=True):
        expected = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((4, 4), Image.Resampling.BICUBIC)
        assert np.array_equal(small.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_a_box_is_the_mean_of_its_pixels() -> None:
    images = pictures(1)
    mean = images.float().unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    assert (lowered(images, (8, 8), "box") - mean).abs().max() <= 1, "Pillow rounds after each axis"


@pytest.mark.parametrize("derived", [LowRes(), Edges(), Sketch(), Colour(), Grey()], ids=lambda each: each.kind)
def test_a_field_of_the_mirrored_image_is_the_mirrored_field(derived: LowRes | Edges | Sketch | Colour | Grey) -> None:
    images = pictures()
    plain, mirrored = (derived.make(x, ROWS, None)[derived.field] for x in (images, images.flip(-1)))
    if derived.kind == "edges":  # of two equally steep neighbours the first is the edge: random pictures have none
        assert (plain.flip(-1) != mirrored).float().mean() < 0.01
    else:
        assert (plain.flip(-1).int() - mirrored.int()).abs().max() <= 1


def test_a_flip_of_the_batch_keeps_field_and_image_aligned() -> None:
    data = MemoryImages(pictures(1)).deriving((Colour(blur=0.5), Hole()))
    seen = next(batches(data, batch_size=4, seed=0, first=0, last=1, flip=True, device=torch.device("cpu")))[1]
    hole = seen["hole"].bool()
    assert torch.equal(seen["masked"][~hole], seen["image"][~hole])
    assert hole.any()


def test_an_edge_is_one_line_where_black_meets_white() -> None:
    edges = Edges().make(step_at(7), ROWS[:1], None)["edges"][0, 0]
    assert edges.unique().tolist() == [0, 255]
    columns = (edges > 0).any(0).nonzero().flatten().tolist()
    assert len(columns) == 1
    assert abs(columns[0] - 7) <= 1
    assert (edges[:, columns[0]] == 255).all()


def test_flat_pictures_have_no_edges_and_no_lines() -> None:
    flat = torch.full((1, 1, 16, 16), 90, dtype=torch.uint8)
    assert not Edges().make(flat, ROWS[:1], None)["edges"].any()
    white = torch.full((1, 1, 16, 16), 200, dtype=torch.uint8)
    assert (Sketch().make(white, ROWS[:1], None)["sketch"] == 255).all()


def test_a_weak_edge_counts_only_where_it_hangs_together_with_a_strong_one() -> None:
    image = torch.zeros(1, 1, 16, 16)
    image[..., 8:] = torch.linspace(0.5, 0.1, 16)[:, None]  # an edge that fades downwards
    joined, weak = (image * 255).to(torch.uint8), (image[:, :, 12:] * 255).to(torch.uint8)
    edges = Edges(sigma=0.5, low=0.03, high=0.2)
    assert edges.make(joined, ROWS[:1], None)["edges"][0, 0, 14:].any()
    assert not edges.make(weak, ROWS[:1], None)["edges"].any()


def test_grey_is_pillows() -> None:
    images = pictures()
    for image, found in zip(images, Grey().make(images, ROWS, None)["grey"], strict=True):
        expected = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")).astype(int)
        assert np.abs(found[0].numpy().astype(int) - expected).max() <= 1


def test_blurring_keeps_the_mean_of_a_flat_picture_and_takes_detail() -> None:
    images = pictures()
    blurred = Colour(blur=4).make(images, ROWS, None)["colour"]
    assert blurred.float().std() < images.float().std() / 3
    flat = torch.full((1, 3, 16, 16), 77, dtype=torch.uint8)
    assert torch.equal(Colour().make(flat, ROWS[:1], None)["colour"], flat)


def test_a_hole_follows_from_the_draw_alone_and_has_the_edges_it_may_have() -> None:
    images, draws = pictures(1, 20), torch.tensor([3, 9, 3, 1 << 60])
    hole = Hole(least=0.2, most=0.5).make(images, ROWS, draws)["hole"]
    assert torch.equal(hole[0], hole[2])
    assert not torch.equal(hole[0], hole[1])
    for one in hole[:, 0]:
        rows, columns = one.any(1).sum(), one.any(0).sum()
        assert one.sum() == rows * columns, "a rectangle"
        assert 4 <= int(rows) <= 10
        assert 4 <= int(columns) <= 10


@pytest.mark.parametrize(("kind", "low", "high"), [("edges", "low", "high"), ("hole", "least", "most")])
def test_a_lower_bound_above_the_upper_one_is_refused(kind: str, low: str, high: str) -> None:
    with pytest.raises(UserError, match=f"{low} is 0.9, above {high}") as caught:
        presets.build(changed(TINY, data__derived=[{"kind": kind, low: 0.9, high: 0.5}]), "tiny.yaml")
    assert "0.5 or less" in caught.value.hint


def test_an_indivisible_size_and_a_name_that_is_taken_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"data\.size"):
        Digits(size=15, derived=(LowRes(factor=2),))
    with pytest.raises(UserError, match="'grey'"):
        MemoryImages(pictures()).deriving((Grey(), Grey()))
    with pytest.raises(UserError, match="'image'"):
        MemoryImages(pictures()).deriving((Grey(field="image"),))
