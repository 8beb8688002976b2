"""Several prepared sets read as one, and one that serves for validation; two that do not fit are both named."""

import json
from pathlib import Path

import pytest
import torch

from diffcli.config import UserError
from diffcli.data.datasets import Folder
from diffcli.data.prepared import Shards
from tests.data import making


def prepare(root: Path, name: str, n: int, classes: tuple[str, ...] = ("cat", "dog"), size: int = 8) -> Path:
    making.class_folders(root / f"{name}-source/train", classes, n, size)
    making.class_folders(root / f"{name}-source/test", classes, 1, size)
    making.run("folder", root / f"{name}-source", root / name, images_per_shard=2)
    return root / name


def edit(root: Path, **changes: object) -> None:
    path = root / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("in_memory", [True, False])
def test_joined_sets_follow_each_other(tmp_path: Path, in_memory: bool):
    roots = [prepare(tmp_path, name, n, size=size) for name, n, size in (("a", 3, 8), ("b", 1, 8), ("c", 2, 10))]
    data = Shards(root=roots[0], more=roots[1:], size=8, in_memory=in_memory).build("train")
    parts = [Shards(root=root, size=8).build("train") for root in roots]
    assert len(data) == 12
    index = torch.arange(12)
    assert torch.equal(
        data.read(index)["image"], torch.cat([part.read(torch.arange(len(part)))["image"] for part in parts])
    )
    assert torch.equal(data.labels, torch.cat([part.labels for part in parts]))
    assert torch.equal(data.read(index.flip(0))["image"], data.read(index)["image"].flip(0))
    assert len(Shards(root=roots[0], more=roots[1:], size=8).build("test")) == 6


def test_joined_sets_have_their_own_sizes_in_buckets(tmp_path: Path):
    roots = [prepare(tmp_path, name, 2, size=size) for name, size in (("a", 8), ("b", 12))]
    data = Shards(root=roots[0], more=roots[1:], size=8, buckets=[[8, 8], [4, 16]]).build("train")
    assert data.framing.bucket.tolist() == [0] * 8


def test_the_broken_image_of_a_further_set_is_named_there(tmp_path: Path):
    one, two = prepare(tmp_path, "a", 1), prepare(tmp_path, "b", 1)
    data = Shards(root=one, more=[two], size=8, in_memory=False).build("train")
    (two / "train-000000.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"/b/train-000000\.tar"):
        data.read(torch.tensor([3]))


def test_fields_that_all_sets_have_are_joined_and_others_told_when_read(tmp_path: Path):
    texts = [["one"], ["two"]]
    a = making.prepared(tmp_path / "a", {"train": {"text": texts, "clip_text": torch.ones(2, 3).numpy()}})
    b = making.prepared(tmp_path / "b", {"train": {"text": [["three"]]}})
    data = Shards(root=a, more=[b], size=8).build("train")
    assert data.select({"image", "text"}).read(torch.arange(3))["text"] == ["one", "two", "three"]
    with pytest.raises(UserError, match=r"data\.more\.0 '.*/b' has no field 'clip_text', which data\.root '.*/a' has"):
        data.select({"clip_text"}).read(torch.arange(1))


def vectors(root: Path, width: int, encoder: str, digest: str | None) -> Path:
    columns = {"clip_text": torch.ones(2, width).numpy()}
    return making.prepared(root, {"train": columns}, encoder=encoder, digest=digest)


@pytest.mark.parametrize(
    ("second", "fits"),
    [
        ((3, "clip", "a" * 64), True),
        ((3, "the same elsewhere", "a" * 64), True),
        ((3, "clip", "b" * 64), False),
        ((4, "clip", "a" * 64), False),
        ((3, "clip", None), True),
        ((3, "another", None), False),
    ],
)
def test_embeddings_of_two_encoders_are_no_one_set(tmp_path: Path, second: tuple, fits: bool):
    config = Shards(root=vectors(tmp_path / "a", 3, "clip", "a" * 64), more=[vectors(tmp_path / "b", *second)], size=8)
    if fits:
        assert config.build("train").read(torch.arange(4))["clip_text"].shape == (4, 3)
    else:
        with pytest.raises(
            UserError, match=r"data\.root '.*/a' and data\.more\.0 '.*/b' cannot be one set: the field clip_text"
        ):
            config.build("train")


def test_sets_of_other_channels_or_classes_are_both_named(tmp_path: Path):
    one, two = prepare(tmp_path, "a", 1), prepare(tmp_path, "b", 1, ("cat", "wolf"))
    pair = r"data\.root '.*/a' and data\.more\.0 '.*/b' cannot be one set: "
    with pytest.raises(UserError, match=pair + "classes cat, dog against cat, wolf"):
        Shards(root=one, more=[two], size=8).build("train")
    edit(two, channels=1, classes=["cat", "dog"])
    with pytest.raises(UserError, match=pair + "channels 3 against 1"):
        Shards(root=one, more=[two], size=8).build("train")


def test_a_set_that_is_not_there_is_named_by_its_key(tmp_path: Path):
    root = prepare(tmp_path, "a", 1)
    with pytest.raises(UserError, match=r"data\.more\.0 is '.*nowhere'.*\n.*--set data\.more=\[\] goes without"):
        Shards(root=root, more=[tmp_path / "nowhere"], size=8).build("train")
    with pytest.raises(UserError, match=r"data\.validation is '.*nowhere'"):
        Shards(root=root, validation=tmp_path / "nowhere", size=8).build("test")


def test_the_validation_set_serves_as_test(tmp_path: Path):
    root, other = prepare(tmp_path, "a", 1), prepare(tmp_path, "b", 3)
    config = Shards(root=root, validation=other, size=8)
    assert len(config.build("train")) == len(config.build("test")) == 2
    making.class_folders(tmp_path / "flat/train", n=5)
    making.run("folder", tmp_path / "flat", tmp_path / "only-train")
    assert len(Shards(root=root, validation=tmp_path / "only-train", size=8).build("test")) == 10


def test_paths_are_made_absolute_for_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    config = Shards(root="a", more=["b", "/c"], validation="d", size=8).absolute()
    assert (config.root, config.more, config.validation) == (
        tmp_path / "a",
        (tmp_path / "b", Path("/c")),
        tmp_path / "d",
    )


def test_a_shard_edited_in_place_is_named_where_it_is_verified(tmp_path: Path):
    one, two = prepare(tmp_path, "a", 1), prepare(tmp_path, "b", 1)
    tar = two / "train-000000.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    config = Shards(root=one, more=[two], size=8)
    assert len(config.build("train")) == 4  # every byte is read only on request
    with pytest.raises(UserError, match=r"/b/train-000000\.tar was changed: its digest"):
        config.model_copy(update={"verify": True}).build("train")


def test_shards_without_their_record_say_what_they_lack(tmp_path: Path):
    making.class_folders(tmp_path / "in")
    making.run("folder", tmp_path / "in", tmp_path / "set")
    (tmp_path / "set/dataset.json").unlink()
    for kind in (Folder, Shards):
        with pytest.raises(UserError, match=r"train-000000\.tar") as caught:
            kind(root=tmp_path / "set", size=8).build("train")
        assert "dataset.json" in caught.value.problem
        assert "prep-data" in caught.value.hint
