"""Crops and aspect buckets: every batch has one size, and is the same pure function of (seed, step) as without them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from diffcli.config import UserError
from diffcli.data.buckets import Framing, nearest
from diffcli.data.datasets import Digits, Folder
from diffcli.data.images import FileImages
from diffcli.data.loader import batches
from diffcli.data.order import BucketOrder, epoch_draws
from diffcli.data.prepared import Shards
from tests.data.making import encoded, run

CPU = torch.device("cpu")
BUCKETS = ((16, 16), (12, 20), (20, 12))
SIZES = [(10, 10), (40, 41), (30, 50), (12, 20), (33, 20)]  # (height, width); buckets 0 0 1 1 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 pictures, each of a colour of its own: red tells the number."""
    (tmp_path / "set/images").mkdir(parents=True)
    for number in range(40):
        height, width = SIZES[number % 5]
        exif = Image.Exif()
        if number == 2:  # a landscape that lies as a portrait in its file
            height, width, exif[0x0112] = width, height, 6
        image = Image.new("RGB", (width, height), (number, 0, 0))
        (tmp_path / "set/images" / f"{number:03d}.png").write_bytes(encoded(image, "PNG", exif=exif))
    return tmp_path / "set/images"


def feed(data, last: int, *, first: int = 0, size: int = 6, **more):
    """{step: batch} of a run."""
    return dict(batches(data, batch_size=size, seed=3, first=first, last=last, flip=True, device=CPU, **more))


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_every_batch_is_of_one_bucket_and_holds_its_images(folder: Path, tmp_path: Path, kind: str):
    if kind == "folder":
        data = Folder(root=folder, size=16, buckets=BUCKETS).build("train")
    else:
        run("folder", folder, tmp_path / "out", images_per_shard=7)
        data = Shards(root=tmp_path / "out", size=16, buckets=BUCKETS).build("train")
    for batch in feed(data, 12).values():
        bucket = {(0, 0, 1, 1, 2)[number % 5] for number in batch["index"].tolist()}
        assert len(bucket) == 1
        assert batch["image"].shape == (6, 3, *BUCKETS[bucket.pop()])
        red = ((batch["image"][:, 0] + 1) * 127.5).round()
        assert torch.equal(red, batch["index"].float()[:, None, None].expand_as(red))


def test_without_draws_every_image_has_the_size_of_the_set(folder: Path):
    data = Folder(root=folder, size=(8, 24), buckets=BUCKETS, crop="random").build("train")
    assert isinstance(data, FileImages)
    assert data.read(torch.arange(40))["image"].shape == (40, 3, 8, 24)


@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=4),
    size=st.integers(1, 8),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_an_epoch_sees_every_image_once_but_for_what_fills_no_batch(counts: list[int], size: int, seed: int):
    assume(any(counts) and all(count == 0 or count >= size for count in counts))
    bucket = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    framing = Framing((8, 8), buckets=tuple((8, 8 + i) for i in range(len(counts))), bucket=bucket)
    stream = BucketOrder(seed, framing, size)
    for epoch in range(2):
        order = stream.order(epoch)
        assert order.shape == (sum(count // size for count in counts), size)
        assert len(order.unique()) == order.numel()
        assert (bucket[order] == bucket[order][:, :1]).all()
        assert bucket[order.flatten()].bincount(minlength=len(counts)).tolist() == [c // size * size for c in counts]


def test_epochs_leave_out_other_images_and_mix_the_buckets_otherwise():
    bucket = torch.arange(2).repeat_interleave(torch.tensor([103, 57]))
    stream = BucketOrder(0, Framing((8, 8), buckets=((8, 8), (8, 16)), bucket=bucket), 10)
    orders = [stream.order(epoch) for epoch in range(8)]
    left = [set(range(160)) - set(order.flatten().tolist()) for order in orders]
    assert len(set.union(*left)) > 40
    assert len({tuple(bucket[order[:, 0]].tolist()) for order in orders}) == 8


def test_resuming_and_sharing_out_give_the_batches_of_one_run(folder: Path):
    data = Folder(root=folder, size=16, buckets=BUCKETS, crop="random").build("train")
    whole, resumed = feed(data, 14), feed(data, 14, first=5)
    shares = [feed(data, 14, rank=rank, world=4, workers=2 * (rank == 3)) for rank in range(4)]
    for step, batch in whole.items():
        parts = [share[step] for share in shares]
        for name, value in batch.items():
            assert torch.equal(torch.cat([part[name] for part in parts]), value)
            assert step <= 5 or torch.equal(resumed[step][name], value)


def test_a_bucket_with_less_than_a_batch_is_said(folder: Path):
    data = Folder(root=folder, size=16, buckets=BUCKETS).build("train")
    with pytest.raises(UserError, match=r"data\.buckets: 8 images are nearest to 20x12, less than a batch of 9"):
        feed(data, 1, size=9)
    assert feed(
        Folder(root=folder, size=16, buckets=(*BUCKETS[:2], (1, 9))).build("train"), 1, size=8
    )  # empty: no matter


def test_images_go_to_the_nearest_aspect_ratio_not_size():
    sides = torch.tensor([[1000, 1000], [100, 199], [199, 100], [10, 141], [10, 12]])
    assert nearest(sides, [(64, 64), (48, 96), (96, 48)]).tolist() == [0, 1, 2, 1, 0]


@given(
    st.integers(1, 5000), st.integers(1, 5000), st.lists(st.tuples(st.integers(1, 99), st.integers(1, 99)), min_size=1)
)
def test_no_bucket_is_nearer_than_the_one_that_is_taken(height: int, width: int, buckets: list[tuple[int, int]]):
    def far(size: tuple[int, int]) -> float:
        return abs(np.log(height / width) - np.log(size[0] / size[1]))

    taken = int(nearest(torch.tensor([[height, width]]), buckets))
    assert far(buckets[taken]) <= min(map(far, buckets)) + 1e-9


def test_random_crops_differ_by_epoch_and_lie_all_over(tmp_path: Path):
    ramp = np.tile(np.arange(64, dtype=np.uint8), (8, 1))
    (tmp_path / "x.png").write_bytes(encoded(Image.fromarray(ramp), "PNG"))
    data = Folder(root=tmp_path, size=8, channels=1, crop="random").build("train")
    index = torch.zeros(1, dtype=torch.int64)
    lefts = [int(data.read(index, epoch_draws(0, epoch, index))["image"][0, 0, 0, 0]) for epoch in range(300)]
    assert min(lefts) < 4
    assert max(lefts) > 52
    assert abs(np.mean(lefts) - 28) < 4
    assert data.read(index)["image"][0, 0, 0, 0] == 28


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"in_memory": True, "crop": "random"}, "in_memory is true, but crop 'random' cut"),
        ({"in_memory": True, "buckets": [[8, 8]]}, "in_memory is true, but buckets cut"),
        ({"buckets": [[8, 8], [4, 8], [16, 16]]}, "one aspect ratio twice"),
    ],
)
def test_what_cannot_be_is_refused(keys: dict, told: str):
    with pytest.raises(ValidationError, match=told):
        Folder(size=8, **keys)


def test_sets_in_one_array_have_nothing_to_cut():
    with pytest.raises(UserError, match=r"data\.crop 'random': .* one array of 28x28 images"):
        Digits(crop="random").build("train")
