"""Prepared sets: random access into tars that any WebDataset reader reads too; what was tampered with is named."""

import json
import shutil
import tarfile
import tracemalloc
from functools import lru_cache
from pathlib import Path

import pytest
import torch
import webdataset

from diffcli.config import UserError
from diffcli.data import shards
from diffcli.data.images import ImageData
from diffcli.data.pixels import decode
from diffcli.data.prepared import Shards
from diffcli.data.set_folder import is_prepared
from diffcli.data.shards import Index, PreparedSplit, open_shards
from diffcli.digest import sha256
from diffcli.prep.prepare import prepare
from tests.data import making


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six images of two classes in three shards."""
    making.class_folders(tmp_path / "source")
    list(prepare("folder", tmp_path / "source", tmp_path / "set", images_per_shard=2))
    return tmp_path / "set"


def build(root: Path, **more: object) -> ImageData:
    return Shards(root=root, size=8, **more).build("train")


def edit(root: Path, **changes: object) -> None:
    path = root / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_images_and_labels_are_those_of_the_source(root: Path, tmp_path: Path):
    data = build(root)
    assert torch.equal(data.read(torch.arange(6))["image"], torch.from_numpy(making.class_folders(tmp_path / "again")))
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.classes == ("cat", "dog")


def test_the_index_points_at_the_members_of_the_tar(root: Path):
    for tar in sorted(root.glob("*.tar")):
        index = Index.model_validate_json(tar.with_suffix(".json").read_bytes())
        with tarfile.open(tar) as file:
            members = {member.name: (member.offset_data, member.size) for member in file}
        assert {name: members[name] for name in index.members} == dict(
            zip(index.members, zip(index.offset, index.size, strict=True), strict=True)
        )
        assert len(members) == 2 * len(index.members)  # each with its label


def test_webdataset_reads_the_shards_as_they_are(root: Path):
    urls = sorted(map(str, root.glob("train-*.tar")))
    data, found = build(root), list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(found) == 6
    assert [sample["__key__"] for sample in found] == [f"{number:08d}" for number in range(6)]
    for number, sample in enumerate(found):
        assert int(sample["cls"]) == data.labels[number]
        expected = data.read(torch.tensor([number]))["image"][0].numpy()
        assert (decode(sample["png"], "x", data.shape) == expected).all()


def test_a_set_knows_what_it_is(root: Path):
    prepared = open_shards(root, "data.root")
    assert is_prepared(root)
    assert not is_prepared(root.parent)
    assert (prepared.kind, prepared.count, prepared.size, prepared.channels) == ("folder", 6, (8, 8), 3)
    assert prepared.splits["train"].count == 6
    assert [shard.count for shard in prepared.splits["train"].shards] == [2, 2, 2]


def test_a_missing_shard_is_named(root: Path):
    (root / "train-000001.tar").unlink()
    with pytest.raises(UserError, match=r"train-000001\.tar is missing"):
        build(root)


def test_a_truncated_shard_is_named(root: Path):
    tar = root / "train-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(UserError, match=r"train-000001\.tar has 9728 bytes, not 10240"):
        build(root)


def test_a_shard_truncated_while_it_is_read_is_named(root: Path):
    data = build(root, in_memory=False)
    tar = root / "train-000001.tar"
    data.read(torch.tensor([2]))
    with tar.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(UserError, match=r"train-000001\.tar ends within image 2"):
        data.read(torch.tensor([2]))


def test_a_shard_rewritten_while_it_is_read_is_named_and_never_read_at_the_old_places(root: Path):
    data = build(root, in_memory=False)
    tar = root / "train-000001.tar"
    tar.with_suffix(".new").write_bytes(bytes(1024) + tar.read_bytes())
    tar.with_suffix(".new").replace(tar)
    data.read(torch.tensor([0]))
    with pytest.raises(UserError, match=r"train-000001\.tar has \d+ bytes, not \d+: it was changed while it was read"):
        data.read(torch.tensor([2]))
    tar.unlink()
    with pytest.raises(UserError, match=r"train-000001\.tar cannot be opened: No such file"):
        data.read(torch.tensor([2]))


def test_opening_a_set_holds_few_bytes_an_image(root: Path):
    shutil.copy(root / "train-000000.tar", root / "many.tar")
    index, count = Index.model_validate_json((root / "train-000000.json").read_bytes()), 20_000
    many = index.model_copy(
        update={
            "members": [f"{number:08d}.png" for number in range(count)],
            "offset": list(range(count)),
            "size": list(range(count)),
            "labels": list(range(count)),
            "fields": {},
        }
    )
    (root / "many.json").write_text(many.model_dump_json())
    prepared = open_shards(root, "data.root")
    shard = (
        prepared.splits["train"]
        .shards[0]
        .model_copy(
            update={"tar": "many.tar", "index": "many.json", "count": count, "index_sha256": sha256(root / "many.json")}
        )
    )
    split = PreparedSplit(count=20 * count, shards=[shard] * 20)
    prepared = prepared.model_copy(update={"splits": {"train": split}, "classes": tuple(map(str, range(count)))})
    tracemalloc.start()
    try:
        files = shards.ShardFiles(root, prepared, "train")
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(files) == 20 * count
    assert kept < 1 << 20  # tensors are not among what is traced
    assert peak < 20 << 20  # one index at a time: all together are 100 MiB


def test_an_edited_shard_is_named_by_its_digest(root: Path):
    tar = root / "train-000002.tar"
    data = bytearray(tar.read_bytes())
    data[0] ^= 1
    tar.write_bytes(data)
    assert len(build(root)) == 6  # of the same size, so it takes a digest to see it
    with pytest.raises(UserError, match=r"train-000002\.tar was changed"):
        build(root, verify=True)


def test_edited_pixels_are_seen_when_they_are_read(root: Path):
    index = Index.model_validate_json((root / "train-000000.json").read_bytes())
    tar = root / "train-000000.tar"
    data = bytearray(tar.read_bytes())
    data[index.offset[1] + index.size[1] // 2] ^= 0xFF
    tar.write_bytes(data)
    files = build(root, in_memory=False)
    files.read(torch.tensor([0]))
    with pytest.raises(UserError, match=r"train-000000\.tar \(image 1\) cannot be read"):
        files.read(torch.tensor([1]))


@pytest.mark.parametrize("spoil", [lambda p: p.unlink(), lambda p: p.write_text(p.read_text().replace("1", "2"))])
def test_a_missing_or_edited_index_is_named(root: Path, spoil):
    spoil(root / "train-000001.json")
    with pytest.raises(UserError, match=r"train-000001\.json (is missing|was changed)"):
        build(root)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"format": 2}, "format"),
        ({"splits": {}}, "splits"),
        ({"count": -1}, "count"),
        ({"surprise": 1}, "surprise"),
        ({"classes": ["only"]}, "holds the label 1, but dataset.json names 1 classes"),
    ],
)
def test_a_garbled_description_is_the_users_error(root: Path, changes: dict, told: str):
    edit(root, **changes)
    with pytest.raises(UserError, match=told):
        build(root)


def test_a_description_cannot_point_outside_of_its_folder(root: Path):
    splits = json.loads((root / "dataset.json").read_text())["splits"]
    splits["train"]["shards"][0]["tar"] = "../train-000000.tar"
    edit(root, splits=splits)
    with pytest.raises(UserError, match=r"splits\.train\.shards\.0\.tar"):
        build(root)


def test_half_of_a_description_is_the_users_error(root: Path):
    path = root / "dataset.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(UserError, match=r"dataset\.json is not a set of this version"):
        build(root)


def test_a_set_written_anew_in_the_same_place_is_read_anew(root: Path, tmp_path: Path):
    before = build(root, in_memory=False).read(torch.arange(6))["image"]
    shutil.rmtree(root)
    list(prepare("folder", tmp_path / "source/dog", root))
    assert torch.equal(build(root, in_memory=False).read(torch.arange(3))["image"], before[3:])


def test_many_shards_need_few_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The cache of open shards forgets: reading on in a random order stays right and closes what it leaves."""
    making.class_folders(tmp_path / "source", n=5)
    list(prepare("folder", tmp_path / "source", tmp_path / "set", images_per_shard=1))
    monkeypatch.setattr(shards, "_open", lru_cache(maxsize=2)(shards._OpenShard))
    data = build(tmp_path / "set", in_memory=False)
    order = torch.tensor([9, 0, 5, 9, 3, 0, 7, 1])
    assert torch.equal(data.read(order)["image"], build(tmp_path / "set", in_memory=True).images[order])
    open_now = [
        link for link in Path("/proc/self/fd").glob("*") if str(link.resolve()).startswith(str(tmp_path.resolve()))
    ]
    assert len(open_now) <= 2
