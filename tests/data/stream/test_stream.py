"""A stream as data of a preset: what its samples mean, and that faults cost no more than themselves."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from diffcli.config import UserError
from diffcli.data.datasets import Folder, at_root
from diffcli.data.prepared import Shards
from diffcli.data.stream.stream_data import Stream, StreamData
from diffcli.fields import FieldSpec
from tests.data.making import class_folders, npy, png, run
from tests.data.stream.streaming import numbers, serving, shard, stream, tar, vector, write_shards

CPU = torch.device("cpu")


def batches(data: StreamData, steps: int, batch_size: int, **more: object) -> tuple[list[dict], list[str], list[int]]:
    """The batches of one rank, the notes that came with them, and the counts of broken samples and shards."""
    feed = data.feed(batch_size, 0, 0, 1, None)
    options = {"flip": False, "device": CPU, "workers": 0} | more
    found = [batch for _, batch in feed.batches(0, steps, **options)]
    return found, feed.notes, feed.counts.tolist()


def test_the_members_of_a_sample_are_the_fields_of_its_row(tmp_path: Path) -> None:
    files = {}
    for n in range(6):
        files |= {
            f"{n}.png": png(np.full((3, 4, 6), 40 * n, dtype=np.uint8)),
            f"{n}.cls": b"%d" % (n % 3),
        }
        files |= {f"{n}.json": b'{"caption": ["one %d", "two"], "url": "x"}' % n, f"{n}.emb.npy": vector(n)}
        files |= {f"{n}.mask.png": png(np.full((1, 4, 6), 255 * (n % 2), dtype=np.uint8)), f"{n}.other.pkl": b"evil"}
    (tmp_path / "a.tar").write_bytes(tar(files))
    data = stream(f"{tmp_path}/a.tar", channels=3, shuffle=0).build("train")
    assert list(data.specs) == ["image", "label", "text", "emb", "mask"]
    found, notes, counts = batches(data.select({"image", "label", "text", "emb", "mask"}), 2, 3)
    assert counts == [0, 0]
    assert notes == ["members that would have to be unpickled are never read"]
    for step, batch in enumerate(found):
        rows = [int(row) & 0xFFFFFFFF for row in batch["index"]]
        assert rows == [3 * step, 3 * step + 1, 3 * step + 2]
        for place, n in enumerate(rows):
            assert batch["image"][place].unique().tolist() == pytest.approx([40 * n / 127.5 - 1])
            assert batch["mask"][place].unique().tolist() == [255 * (n % 2)]
            assert batch["label"][place] == n % 3
            assert batch["text"][place] in (f"one {n}", "two")
            assert batch["emb"][place].tolist() == [n, -n]
        assert batch["image"].shape == (3, 3, 2, 2)
        assert batch["mask"].shape == (3, 1, 2, 2)
    assert [data.columns["emb"].note.width, data.labels.tolist()] == [2, []]
    ((batch,), _, _) = batches(data.select({"mask"}).knowing({"mask": FieldSpec("mask", (1, 2, 2), 2)}), 1, 6)
    assert sorted(batch["mask"].flatten(1)[:, 0].tolist()) == [0, 0, 0, 1, 1, 1], "white is class 1 of two"


def test_a_prepared_set_on_a_server_is_known_by_its_dataset_json(tmp_path: Path) -> None:
    class_folders(tmp_path / "images")
    run("folder", tmp_path / "images", tmp_path / "set", size=8)
    files = {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir() if path.is_file()}
    with serving(files) as server:
        data = Stream(shards=f"{server.url}/train-000000.tar", size=8, pause=0.001, shuffle=0).build("train")
        assert (data.classes, data.labels.tolist(), data.count) == (("cat", "dog"), [0, 1], 6)
        assert [name for name, _ in server.asked] == ["dataset.json"]
        found, _, _ = batches(data, 2, 3)
    local = Shards(root=tmp_path / "set", size=8).build("train").read(torch.arange(6))
    for name in ("image", "label"):
        streamed = torch.cat([batch[name] for batch in found])
        assert torch.equal(streamed, local[name] if name == "label" else local[name] / 127.5 - 1)


def test_a_busy_server_does_not_lose_the_names_of_the_classes(tmp_path: Path) -> None:
    class_folders(tmp_path / "images")
    run("folder", tmp_path / "images", tmp_path / "set", size=8)
    files = {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir() if path.is_file()}
    with serving(files) as server:
        config = Stream(shards=f"{server.url}/train-000000.tar", size=8, pause=0.001, retries=2)
        server.busy = 2
        assert config.build("train").classes == ("cat", "dog")
        server.busy = 3
        with pytest.raises(UserError, match=r"dataset\.json.*503") as told:
            config.build("train")
        assert "data.retries" in told.value.hint


def test_a_broken_sample_is_counted_and_moves_no_other(tmp_path: Path) -> None:
    files, spoiled = {}, {}
    for n in range(24):
        good = {f"{n:02d}.png": png(np.full((1, 2, 2), n, dtype=np.uint8)), f"{n:02d}.cls": b"1"}
        files |= good
        spoiled |= good | {4: {"04.png": b"no image"}, 11: {"11.cls": b"7"}, 17: {"17.cls": b"?"}}.get(n, {})
    seen = {}
    for name, members in (("files", files), ("spoiled", spoiled)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.tar").write_bytes(tar(members))
        data = stream(f"{tmp_path}/{name}/a.tar", shuffle=16, classes=("a", "b")).build("train")
        found, notes, counts = batches(data, 8, 3)
        seen[name] = torch.cat([batch["index"] for batch in found]).tolist()
        assert counts == [0 if name == "files" else 3, 0]
        assert len(notes) == (name == "spoiled")
        assert {float(batch["label"][0]) for batch in found} == {1}
    assert sorted(seen["files"]) == list(range(24))
    changed = [was for was, now in zip(seen["files"], seen["spoiled"], strict=True) if was != now]
    assert sorted(changed) == [4, 11, 17]
    assert len(set(seen["spoiled"])) == 21


def test_labels_that_fit_no_number_and_embeddings_of_another_width_are_broken_samples(tmp_path: Path) -> None:
    files = {}
    for n in range(6):
        files |= {f"{n}.png": png(np.full((1, 2, 2), n, dtype=np.uint8)), f"{n}.cls": b"9" * 30 if n == 2 else b"1"}
        files[f"{n}.emb.npy"] = npy(np.ones(3 if n == 4 else 2))
    (tmp_path / "a.tar").write_bytes(tar(files))
    found, _, counts = batches(stream(f"{tmp_path}/a.tar", shuffle=0).build("train"), 6, 2)
    assert counts[0] >= 2
    seen = torch.cat([batch["index"] for batch in found]).tolist()
    assert set(seen) == {0, 1, 3, 5}


def test_a_block_without_a_good_sample_is_passed_over_by_all_ranks_alike(tmp_path: Path) -> None:
    files = {f"{n:02d}.png": b"no" if 8 <= n < 20 else png(np.full((1, 2, 2), n, dtype=np.uint8)) for n in range(32)}
    (tmp_path / "a.tar").write_bytes(tar(files))
    data = stream(f"{tmp_path}/a.tar", shuffle=8).build("train")  # blocks of 4
    whole, _, counts = batches(data, 5, 4)
    seen = torch.cat([batch["index"] for batch in whole])
    assert sorted(seen.tolist()) == [n for n in range(32) if not 8 <= n < 20]
    assert counts == [12, 0]
    for world in (2, 4):
        feeds = [data.feed(4, 0, rank, world, None) for rank in range(world)]
        parts = [[b["index"] for _, b in feed.batches(0, 5, flip=False, device=CPU, workers=0)] for feed in feeds]
        assert torch.equal(torch.cat([torch.cat(step) for step in zip(*parts, strict=True)]), seen)
        assert sum(feed.counts for feed in feeds).tolist() == [12, 0]


def test_a_stream_without_any_good_sample_ends_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffcli.data.stream.dealing.ALL_BROKEN", 50)
    (tmp_path / "a.tar").write_bytes(tar({f"{n}.png": b"no" for n in range(20)}))
    data = stream(f"{tmp_path}/a.tar", shuffle=8).build("train")
    with pytest.raises(UserError, match=r"none of 52 samples in a row can be used; image .*a\.tar: \d+ cannot be read"):
        batches(data, 1, 2)
    with pytest.raises(UserError, match="none of 52 samples"):
        batches(data, 1, 2, workers=1)


@pytest.mark.slow
def test_a_broken_shard_costs_no_other_lane_anything(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [6, 6, 6, 6])
    config = stream(shards, lanes=4, shuffle=16)
    whole, _ = numbers(config, 3, 8)
    third = tmp_path / "train-000003.tar"
    third.write_bytes(third.read_bytes()[:9000])  # its first two samples are whole, and another follows
    some, feed = numbers(config, 3, 8)
    assert feed.counts.tolist()[1] >= 1
    assert "train-000003.tar: it breaks off at byte 9" in feed.notes[0]
    lane = next(lane for lane in range(4) if feed.source.order.turns(lane, 0) == [3])
    for one, other in zip(whole, some, strict=True):
        for place in range(8):
            assert one[place] == other[place] or place * 4 // 8 == lane
    flat = [number for step in some for number in step]
    assert {18, 19} <= set(flat)
    assert not {21, 22, 23} & set(flat)


def test_of_a_lone_shard_that_is_cut_the_samples_before_the_cut_are_dealt_again_and_again(tmp_path: Path) -> None:
    whole = shard(0, 6)
    (tmp_path / "a.tar").write_bytes(whole[: len(whole) // 2])
    found, notes, counts = batches(stream(f"{tmp_path}/a.tar", shuffle=0).build("train"), 3, 4)
    seen = torch.cat([batch["index"] for batch in found]).tolist()
    assert seen == [0, 1, 2] * 4
    assert "it breaks off" in notes[0]
    assert counts[1] == 3


def test_the_fault_of_a_server_is_told_once_a_shard_in_the_order_of_the_stream() -> None:
    with serving({"a.tar": shard(0, 9), "b.tar": b"<html>", "c.tar": shard(9, 9)[:-3000]}) as server:
        seen, feed = numbers(stream(f"{server.url}/{{a,b,c,d}}.tar", lanes=1, shuffle=4), 20, 2)
        told = "\n".join(feed.notes)
        for name, reason in (("b.tar", "it is no tar at byte 0"), ("d.tar", "HTTP 404 Not Found")):
            assert told.count(name) == 1
            assert reason in told
        assert len(seen) == 20


def test_a_stream_shows_its_first_samples_and_holds_its_test_shards(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [5, 4])
    data = stream(shards, test_shards=f"{tmp_path}/train-000001.tar", classes=tuple("0123456789")).build("train")
    fields, rows = data.shown(3)
    assert fields["text"] == ["number 0", "number 1", "number 2"]
    assert rows.tolist() == [0, 1, 2]
    assert len(data.shown(100)[1]) == 9
    with pytest.raises(UserError, match=r"data.kind 'stream' \(2 shards from .* has no order"):
        len(data)
    test = data.config.build("test").select({"text", "image"})
    assert len(test) == 4
    assert test.read(torch.arange(4))["text"] == [f"number {n}" for n in range(5, 9)]
    with pytest.raises(UserError, match="no split 'test'"):
        stream(shards).build("test")
    with pytest.raises(UserError, match=r"data.test_shards: .*none\.tar: No such file"):
        stream(shards, test_shards=[f"{tmp_path}/train-000001.tar", f"{tmp_path}/none.tar"]).build("test")


def test_class_names_make_captions_and_crops_are_drawn(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(
        tar({name: data for n in range(4) for name, data in ((f"{n}.png", _ramp()), (f"{n}.cls", b"1"))})
    )
    captions = {"templates": ["a {name}", "the {name}"]}
    config = stream(f"{tmp_path}/a.tar", classes=("cat", "dog"), captions=captions, crop="random", shuffle=0)
    found, _, _ = batches(config.build("train").select({"image", "text"}), 12, 4)
    assert {text for batch in found for text in batch["text"]} == {"a dog", "the dog"}
    assert len({float(image[0, 0, 0]) for batch in found for image in batch["image"]}) > 10
    with pytest.raises(UserError, match="no classes that captions could name"):
        stream(f"{tmp_path}/a.tar", captions=captions).build("train")


def _ramp() -> bytes:
    return png(np.broadcast_to(np.arange(250, dtype=np.uint8), (1, 2, 250)))


def test_braces_lists_and_places_are_understood(tmp_path: Path) -> None:
    assert stream("{a,b}-{08..10}.tar").absolute().shards == str(Path("{a,b}-{08..10}.tar").absolute())
    same = stream(["https://h/{0..1}.tar", "pipe:cat x", "s3://b/c.tar"])
    assert same.absolute() == same
    assert at_root(stream("a.tar"), "https://h/{0..3}.tar").shards == "https://h/{0..3}.tar"
    assert at_root(Shards(size=8, flip=True), "s3://b/c.tar") == Stream(shards="s3://b/c.tar", size=8, flip=True)
    shards = write_shards(tmp_path, [3, 3])
    assert at_root(Folder(size=8), shards) == Stream(shards=shards, size=8)
    assert at_root(Folder(size=8), tmp_path).kind == "folder"
    (tmp_path / "{a,b}").mkdir()
    assert at_root(Folder(size=8), tmp_path / "{a,b}").kind == "folder"
    listed = [f"pipe:cat {tmp_path}/train-000000.tar", f"file:{tmp_path}/train-000001.tar"]
    assert numbers(stream(listed, shuffle=8), 6, 2)[0] == numbers(stream(shards, shuffle=8), 6, 2)[0]


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"shards": "a{1"}, "do not pair"),
        ({"shards": []}, "names no shard"),
        ({"shards": ""}, "names no shard"),
        ({"root": "/x"}, "set data.shards instead"),
        ({"in_memory": True}, "never held"),
        ({"buckets": [[2, 4]]}, "buckets need the sizes"),
    ],
)
def test_keys_that_a_stream_cannot_take_are_refused(keys: dict, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Stream(**{"shards": "a.tar", "size": 2} | keys)


def test_a_checkpoint_of_more_lanes_than_rows_is_refused(tmp_path: Path) -> None:
    data = stream(write_shards(tmp_path, [3, 3, 3]), lanes=3).build("train")
    with pytest.raises(UserError, match="in 3 lanes, more than the 3 shards or the batch of 2"):
        data.feed(2, 0, 0, 1, torch.zeros(3, 6, dtype=torch.int64))
    assert data.feed(2, 0, 0, 1, None).source.order.lanes == 2


def test_where_no_first_shard_can_be_read_the_first_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of the 5 shards can be read; .*/0\.tar: No such file") as told:
        stream(f"{tmp_path}/{{0..4}}.tar").build("train")
    assert "curl" in told.value.hint


@pytest.mark.parametrize("workers", [0, 1])
def test_a_training_that_ends_waits_for_no_silent_server(workers: int) -> None:
    with serving({"a.tar": shard(0, 8)}) as server:
        data = stream(f"{server.url}/a.tar", shuffle=8, timeout=60).build("train")
        feed = data.feed(2, 0, 0, 1, None)
        batches = feed.batches(0, 100, flip=False, device=CPU, workers=workers)
        next(batches)
        server.slow = 20
        next(batches)
        before = time.monotonic()
        batches.close()
        assert time.monotonic() - before < 4
        server.slow = 0
        server.released.set()
