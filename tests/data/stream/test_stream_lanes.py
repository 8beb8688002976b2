"""The order of a stream is arithmetic: rows, lanes and blocks, whatever the number of ranks."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffcli.config import UserError
from diffcli.data.loader import share
from diffcli.data.stream.lanes import LaneBlock, LaneEntry, LaneSource, Mark, Order, ahead
from diffcli.data.stream.opening import Patience
from tests.data.stream.streaming import QUICK, numbers, serving, shard, stream, write_shards

SIZES = [7, 5, 9, 4, 6]


@given(batch=st.integers(1, 70), lanes=st.integers(1, 70), world=st.integers(1, 70))
def test_every_row_belongs_to_one_lane_and_every_lane_to_one_owner(batch: int, lanes: int, world: int) -> None:
    lanes, world = min(lanes, batch), min(world, batch)
    order = Order(0, shards=lanes, lanes=lanes, block=1)
    assert [row for lane in range(lanes) for row in order.rows(lane, batch)] == list(range(batch))
    assert all(row * lanes // batch == lane for lane in range(lanes) for row in order.rows(lane, batch))
    assert all(len(order.rows(lane, batch)) >= batch // lanes for lane in range(lanes))
    shares = [range(*share(batch, rank, world)) for rank in range(world)]
    assert [lane for rows in shares for lane in order.owned(rows, batch)] == list(range(lanes))
    for rows in shares:
        assert set(order.needed(rows, batch)) == {row * lanes // batch for row in rows}


@given(shards=st.integers(1, 60), lanes=st.integers(1, 60), epoch=st.integers(0, 1000), seed=st.integers(0, 2**63 - 1))
def test_the_lanes_read_every_shard_once_an_epoch(shards: int, lanes: int, epoch: int, seed: int) -> None:
    order = Order(seed, shards, min(lanes, shards), block=3)
    turns = [order.turns(lane, epoch) for lane in range(order.lanes)]
    assert sorted(shard for lane in turns for shard in lane) == list(range(shards))
    assert min(map(len, turns)) >= 1
    assert max(map(len, turns)) - min(map(len, turns)) <= 1


def test_blocks_are_shuffled_differently_by_seed_lane_and_number() -> None:
    orders = [Order(seed, 4, 4, 50).dealt(lane, block) for seed in (0, 1) for lane in (0, 1) for block in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len(set(map(tuple, orders))) == len(orders)


@settings(max_examples=8, deadline=None)
@given(
    batch=st.integers(3, 9),
    world=st.integers(1, 3),
    lanes=st.integers(1, 3),
    shuffle=st.integers(0, 40),
    cut=st.integers(0, 8),
)
def test_ranks_together_see_what_one_sees_and_going_on_is_not_stopping(
    shards: str, batch: int, world: int, lanes: int, shuffle: int, cut: int
) -> None:
    config = stream(shards, lanes=lanes, shuffle=shuffle)
    whole, _ = numbers(config, 8, batch)
    first = [numbers(config, cut, batch, rank=rank, world=world) for rank in range(world)]
    marks = torch.cat([feed.marks[feed.owned] for _, feed in first])
    then = [numbers(config, 8 - cut, batch, first=cut, marks=marks, rank=rank, world=world)[0] for rank in range(world)]
    for step in range(8):
        parts = [seen[step] if step < cut else later[step - cut] for (seen, _), later in zip(first, then, strict=True)]
        assert [number for part in parts for number in part] == whole[step]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_shards(tmp_path_factory.mktemp("shards"), SIZES)


def test_an_epoch_of_one_lane_is_every_sample_once_and_another_order_the_next_time(shards: str) -> None:
    seen, feed = numbers(stream(shards, lanes=1, shuffle=10), 62, 1)
    flat = [number for step in seen for number in step]
    assert sorted(flat[:30]) != list(range(30))  # blocks lie across the end of an epoch
    seen, feed = numbers(stream(shards, lanes=1, shuffle=0), 62, 1)
    flat = [number for step in seen for number in step]
    assert sorted(flat[:31]) == sorted(flat[31:]) == list(range(31))
    assert flat[:31] != flat[31:]
    assert feed.marks[0, :2].tolist() == [1, 4]


def test_worker_processes_deal_what_one_process_deals(shards: str) -> None:
    config = stream(shards, lanes=5, shuffle=20)
    alone, feed = numbers(config, 9, 7)
    for workers in (2, 3):
        seen, other = numbers(config, 9, 7, workers=workers)
        assert seen == alone
        assert torch.equal(feed.marks, other.marks)


def test_a_resumed_stream_asks_for_no_byte_before_its_blocks_and_decodes_none_that_was_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving({"a.tar": shard(0, 40)}) as server:
        config = stream(f"{server.url}/a.tar", shuffle=16)
        whole, _ = numbers(config, 10, 3)
        _, feed = numbers(config, 8, 3)
        offset = int(feed.marks[0, 3])
        assert offset > 0
        assert feed.marks[0, 2] == 16  # 24 samples used: at the end of the second and third block of 8
        data = config.build("train").select({"text"})
        server.asked.clear()
        opened = data.feed(3, 0, 0, 1, feed.marks)
        decoded = []
        monkeypatch.setattr("diffcli.data.stream.layout.CaptionFiles.read", _counting(decoded))
        later = [b["text"] for _, b in opened.batches(8, 10, flip=False, device=torch.device("cpu"), workers=0)]
        assert server.asked[0] == ("a.tar", f"bytes={offset}-")
    assert [[int(text.split()[-1]) for text in batch] for batch in later] == whole[8:]
    assert len(decoded) <= 6 + 2  # and the first of each block, which tells that there is a good one


def _counting(decoded: list[int]):
    from diffcli.data.stream.layout import CaptionFiles

    plain = CaptionFiles.read

    def read(self: CaptionFiles, index: int) -> bytes:
        decoded.append(index)
        return plain(self, index)

    return read


def test_rows_are_told_what_is_random_about_them_by_epoch_and_place_alone(shards: str) -> None:
    config = stream(shards, lanes=2, shuffle=8, flip=True)
    data = config.build("train").select({"image"})

    def batches(rank: int, world: int) -> list[dict[str, torch.Tensor]]:
        feed = data.feed(6, 3, rank, world, None)
        return [b for _, b in feed.batches(0, 12, flip=True, device=torch.device("cpu"), workers=0)]

    one, two = batches(0, 1), [batches(rank, 2) for rank in (0, 1)]
    for step, batch in enumerate(one):
        for name in ("image", "index", "position", "stream", "label"):
            assert torch.equal(batch[name], torch.cat([two[0][step][name], two[1][step][name]]))
    index = torch.cat([batch["index"] for batch in one])
    assert set((index >> 32).tolist()) == set(range(5))
    assert int((index & 0xFFFFFFFF).max()) == max(SIZES) - 1


def test_memory_is_bounded_by_the_shuffle_buffer_however_large_the_shards(tmp_path: Path) -> None:
    """Counted: the samples that have been read from the tar and not yet been dealt."""
    order = Order(0, 1, 1, 25)
    (tmp_path / "a.tar").write_bytes(shard(0, 1000))
    source = LaneSource(order, (str(tmp_path / "a.tar"),), QUICK, lambda extension: extension == "txt")
    read = 0

    class Counting(LaneSource):
        def shard(self, *where: int) -> Iterator[LaneEntry]:  # type: ignore[override]
            nonlocal read
            for entry in LaneSource.shard(self, *where):
                read += 1
                yield entry  # type: ignore[misc]

    blocks = ahead(Counting(order, source.urls, QUICK, source.wanted).blocks(0, Mark()), lambda: False)
    most = 0
    for number, block in enumerate(islice(blocks, 35)):
        assert len(block.entries) == 25
        most = max(most, read - 25 * number)
    assert 25 <= most <= 51  # the block that is dealt, the one that is read, and the sample after it


def test_what_is_made_ahead_keeps_its_order_its_errors_and_its_end() -> None:
    assert list(ahead(iter(range(50)), lambda: False)) == list(range(50))

    def failing() -> Iterator[int]:
        yield 1
        raise UserError("no", "yes")

    items = ahead(failing(), lambda: False)
    assert next(items) == 1
    with pytest.raises(UserError, match="no"):
        next(items)
    assert list(ahead(iter(range(50)), lambda: True)) == []


def test_no_shard_that_can_be_read_is_an_error_that_names_the_first(tmp_path: Path) -> None:
    source = LaneSource(
        Order(0, 2, 1, 4), (f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"), Patience(0), lambda extension: True
    )
    with pytest.raises(UserError, match=r"none of the 2 shards can be read; .*\.tar: No such file"):
        next(source.blocks(0, Mark()))
    (tmp_path / "b.tar").write_bytes(shard(0, 3))
    block = next(source.blocks(0, Mark()))  # where one is good, it is read over and over
    assert isinstance(block, LaneBlock)
    assert [entry.shard for entry in block.entries] == [1] * 4
    assert {fault.shard for fault in block.faults} <= {0}
