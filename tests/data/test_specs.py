"""Data sets say what a sample consists of, and the loader treats every field by its kind."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.data.dataset import DataConfig
from diffcli.data.datasets import Digits, Folder
from diffcli.data.field_notes import FieldNote, classes_in
from diffcli.data.images import ImageData, MemoryImages
from diffcli.data.listing import Split
from diffcli.data.loader import batches, evaluation_batches
from diffcli.data.order import epoch_draws
from diffcli.data.prepared import Shards
from diffcli.data.shards import Index, PreparedSet, open_shards
from diffcli.fields import FieldSpec, to_float
from tests.data.making import class_folders, pixels, png, prepared, run

FORMAT1 = Path(__file__).parent.parent / "fixtures" / "format1"
CPU = torch.device("cpu")


class Clips:
    """Clips in memory, uint8 (N, C, T, H, W): what a set of them has to offer."""

    def __init__(self, clips: Tensor) -> None:
        self.clips, self.spec = clips, FieldSpec("clip", tuple(clips.shape[1:]))

    def read(self, indices: Tensor, draws: Tensor | None) -> Tensor:
        return self.clips[indices]


class ClipsConfig(DataConfig):
    """Five clips of three frames, made on the spot."""

    def build(self, split: Split) -> ImageData:
        clips = torch.from_numpy(pixels(5, 3 * self.channels, *self.shape[1:])).unflatten(1, (self.channels, 3))
        return MemoryImages(clips[:, :, 1], columns={"clip": Clips(clips)})


def read(data: ImageData, size: int, flip: bool = False) -> Iterator[dict]:
    """Three steps of a run."""
    yield from (b for _, b in batches(data, batch_size=size, seed=0, first=0, last=3, flip=flip, device=CPU))


def test_a_set_declares_image_classes_and_columns():
    data = Digits().build("test")
    assert data.specs == {
        "image": FieldSpec("image", (1, 28, 28)),
        "label": FieldSpec("classes", (), tuple("0123456789")),
    }
    assert list(data.select({"label"}).specs) == ["label"]


@pytest.mark.parametrize(
    ("labels", "names", "classes"),
    [
        ([0, 1], ("a", "b"), ("a", "b")),
        ([0, 4], ("a", "b"), 5),
        ([0, 4], None, 5),
        ([], None, None),
        ([], ("a",), ("a",)),
    ],
)
def test_labels_without_a_name_are_counted(labels, names, classes):
    data = MemoryImages(torch.zeros(len(labels), 1, 2, 2), torch.tensor(labels, dtype=torch.int64), names)
    assert data.specs["label"].classes == classes


def test_a_preset_alone_tells_of_images_and_of_captions_made_of_classes(tmp_path: Path):
    config = Folder(root=tmp_path / "nowhere", size=(8, 12), captions={"templates": ["a {name}"]})
    assert config.specs == {"image": FieldSpec("image", (3, 8, 12)), "text": FieldSpec("text")}
    assert Digits(size=8).specs == {"image": FieldSpec("image", (1, 8, 8))}


def test_what_a_preset_tells_is_what_the_set_has(tmp_path: Path):
    class_folders(tmp_path)
    config = Folder(root=tmp_path, size=8, captions={"templates": ["a {name}"]})
    specs = config.build("train").specs
    assert {name: specs[name] for name in config.specs} == config.specs


@pytest.mark.parametrize("flip", [False, True])
def test_masks_prepared_before_fields_had_kinds_arrive_as_their_class_numbers(flip: bool):
    data = Shards(root=FORMAT1 / "pairs-prepared", size=8, flip=flip).build("train")
    assert data.specs["mask"] == FieldSpec("mask", (1, 8, 8))
    for batch in read(data, 6, flip):
        assert batch["mask"].dtype == torch.int64
        assert batch["mask"].shape == (6, 1, 8, 8)
        assert batch["mask"].unique().tolist() == [0, 1, 2]
        assert batch["image"].dtype == torch.float32
        assert batch["image"].min() < -0.5


def test_notes_of_before_have_the_kinds_of_today():
    found = open_shards(FORMAT1 / "pairs-prepared", "x")
    assert found.fields == {"mask": FieldNote(kind="mask")}
    raw = found.model_dump() | {
        "fields": {
            name: {"kind": kind}
            for name, kind in (
                ("sketch", "picture"),
                ("left_mask", "picture"),
                ("clip_tokens", "vector"),
                ("v", "vector"),
            )
        }
    }
    kinds = {name: note.kind for name, note in PreparedSet.model_validate(raw).fields.items()}
    assert kinds == {"sketch": "image", "left_mask": "mask", "clip_tokens": "tokens", "v": "vector"}
    index = Index.model_validate_json((FORMAT1 / "pairs-prepared/train-000000.json").read_bytes())
    notes = index.model_dump() | {"notes": {"t5_tokens": {"kind": "vector", "width": 4}}}
    assert Index.model_validate(notes).notes["t5_tokens"].kind == "tokens"


def test_every_kind_of_a_prepared_field_is_declared_with_its_shape(tmp_path: Path):
    columns = {
        "text": [["one"], ["two"]],
        "mask": [png(np.full((1, 4, 4), 2, np.uint8))] * 2,
        "sketch": [png(np.full((1, 4, 4), 255, np.uint8))] * 2,
        "vec": np.ones((2, 5)),
        "seq": np.ones((2, 1, 7, 5)),
    }
    prepared(tmp_path, {"train": columns}, size=4)
    data = Shards(root=tmp_path, size=4).build("train")
    assert data.specs == {
        "image": FieldSpec("image", (3, 4, 4)),
        "text": FieldSpec("text"),
        "mask": FieldSpec("mask", (1, 4, 4)),
        "sketch": FieldSpec("image", (1, 4, 4)),
        "vec": FieldSpec("vector", (5,)),
        "seq": FieldSpec("tokens", (None, 5)),
    }
    batch = next(evaluation_batches(data, torch.arange(2), 2, CPU))
    assert batch["mask"].unique().tolist() == [2]
    assert batch["sketch"].unique().tolist() == [1.0]
    assert (batch["vec"].shape, batch["seq"].shape, batch["text"]) == ((2, 5), (2, 7, 5), ["one", "two"])


def test_joined_sets_have_the_mask_classes_of_both_unless_one_is_black_and_white(tmp_path: Path):
    for name, values in {"two": [0, 1], "three": [0, 2], "four": [0, 3], "unknown": [0, 255, 3]}.items():
        picture = np.resize(np.array(values, np.uint8), (1, 4, 4))
        for folder, array in (("images", pixels(1, 3, 4, 4)[0]), ("masks", picture)):
            path = tmp_path / "in" / name / folder / "0.png"
            path.parent.mkdir(parents=True)
            path.write_bytes(png(array))
        run("pairs", tmp_path / "in" / name, tmp_path / name)
    data = Shards(root=tmp_path / "three", more=[tmp_path / "four"], size=4).build("train")
    assert data.specs["mask"].classes == 4
    assert data.read(torch.arange(2))["mask"].unique().tolist() == [0, 2, 3]
    for other in ("two", "unknown"):
        with pytest.raises(UserError, match="cannot be one set: the field mask"):
            Shards(root=tmp_path / "three", more=[tmp_path / other], size=4).build("train")


@pytest.mark.parametrize(
    ("values", "classes"), [({0}, 2), ({0, 255}, 2), ({255}, 2), ({0, 1}, 2), ({0, 7}, 8), ({0, 7, 255}, None)]
)
def test_the_values_of_a_mask_tell_its_classes(values, classes):
    assert classes_in(values) == classes


def test_clips_travel_as_bytes_become_floats_and_are_mirrored_with_their_image():
    data = ClipsConfig(size=(4, 6), channels=1).build("train")
    stored = data.columns["clip"].clips
    plain, flipped = list(read(data, 5)), list(read(data, 5, flip=True))
    sides = set()
    for a, b in zip(plain, flipped, strict=True):
        assert torch.equal(a["clip"], to_float(stored[a["index"]]))
        assert torch.equal(b["clip"][:, :, 1], b["image"])
        for row in range(5):
            turned = torch.equal(b["clip"][row], a["clip"][row].flip(-1))
            assert turned or torch.equal(b["clip"][row], a["clip"][row])
            sides.add(turned)
    assert sides == {True, False}


def test_clips_alone_are_read_without_their_images():
    data = ClipsConfig(size=4, channels=1).build("train").select({"clip"})
    assert list(data.specs) == ["clip"]
    batch = next(read(data, 5))
    assert batch.keys() == {"clip", "index", "position", "stream"}
    assert batch["clip"].shape == (5, 1, 3, 4, 4)


def test_a_sequence_of_four_axes_with_its_batch_is_no_picture():
    """Tokens of several captions (K, L, D) would have had as many axes as an image."""

    class Stacked(Clips):
        def __init__(self) -> None:
            self.clips, self.spec = torch.arange(5 * 24.0).view(5, 2, 3, 4), FieldSpec("tokens", (2, 3, 4))

    data = MemoryImages(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), columns={"tokens": Stacked()})
    for batch in read(data, 5, flip=True):
        assert torch.equal(batch["tokens"], data.columns["tokens"].clips[batch["index"]])


def test_the_coin_of_the_mirror_is_bit_zero_of_the_draw():
    data = ClipsConfig(size=4, channels=1).build("train")
    batch, plain = next(read(data, 5, flip=True)), next(read(data, 5))
    coin = epoch_draws(0, 0, batch["index"]) & 1
    for row, side in enumerate(coin.tolist()):
        assert torch.equal(batch["image"][row], plain["image"][row].flip(-1) if side else plain["image"][row])
