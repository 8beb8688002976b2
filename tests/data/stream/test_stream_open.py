"""Shards are opened wherever they lie, taken up again where a connection broke, and given up with a reason."""

import gzip
import time
from pathlib import Path
from unittest import mock

import fsspec
import pytest

from diffcli.config import UserError
from diffcli.data.stream.opening import BrokenShard, Patience, ShardBytes
from tests.data.stream.streaming import QUICK, serving

DATA = bytes(range(256)) * 40  # 10240 bytes


def read(url: str, position: int = 0, patience: Patience = QUICK, count: int = 1 << 30) -> bytes:
    shard = ShardBytes(url, patience, position)
    try:
        return shard.read(count)
    finally:
        shard.close()


@pytest.fixture
def places(tmp_path: Path):
    """The same bytes in every kind of place."""
    (tmp_path / "a b.tar").write_bytes(DATA)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(DATA))
    with fsspec.open("memory://place/a.tar", "wb") as file:
        file.write(DATA)
    with serving({"a.tar": DATA, "a.tar.gz": gzip.compress(DATA)}) as server:
        yield {
            "path": f"{tmp_path}/a b.tar",
            "file": f"file://{tmp_path}/a%20b.tar",
            "gzip": f"{tmp_path}/a.tar.gz",
            "http": f"{server.url}/a.tar",
            "http gzip": f"{server.url}/a.tar.gz?key=1",
            "memory": "memory://place/a.tar",
            "pipe": f"pipe:cat '{tmp_path}/a b.tar'",
        }


@pytest.mark.parametrize("kind", ["path", "file", "gzip", "http", "http gzip", "memory", "pipe"])
@pytest.mark.parametrize("position", [0, 1, 5000, 10240])
def test_a_shard_is_read_from_any_byte_on_wherever_it_lies(places: dict[str, str], kind: str, position: int) -> None:
    if kind == "http" and position == len(DATA):
        return  # no server answers a request for what lies beyond the end; no sample begins there
    shard = ShardBytes(places[kind], QUICK, position)
    first = shard.read(100)
    shard.skip(min(200, len(DATA) - shard.position))
    rest = shard.read(1 << 20)
    shard.close()
    assert first == DATA[position : position + 100]
    assert rest == DATA[min(position + 300, len(DATA)) :]
    assert shard.position == len(DATA)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_drops_is_taken_up_where_it_broke(ranges: bool) -> None:
    with serving({"a.tar": DATA}) as server:
        server.ranges = ranges
        server.drop = 4000
        if ranges:
            assert read(f"{server.url}/a.tar") == DATA
            assert [wanted for _, wanted in server.asked] == [None, "bytes=4000-", "bytes=8000-"]
        else:  # it never gets beyond byte 4000
            with pytest.raises(BrokenShard, match=r"byte 4000 of 10240|before the place"):
                read(f"{server.url}/a.tar")
            server.drop = 0
            assert read(f"{server.url}/a.tar", position=7000) == DATA[7000:]


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("told", ["tag", "tag alone", "length"])
def test_the_halves_of_two_files_are_no_shard(ranges: bool, told: str) -> None:
    """Of a server that heeds If-Range, of one that sends a part whatever it says, and of one that has no tags."""
    other = DATA[::-1] + (b"more" if told == "length" else b"")
    with serving({"a.tar": DATA}) as server:
        server.ranges, server.drop, server.next = ranges, 4000, {"a.tar": other}
        server.tag, server.heeds_tags = "" if told == "length" else '"one"', told == "tag"
        with pytest.raises(BrokenShard, match="changed"):
            read(f"{server.url}/a.tar")
        assert len(server.asked) == 2
        server.drop = 0
        assert read(f"{server.url}/a.tar") == other


def test_a_part_that_begins_elsewhere_is_no_part_of_the_shard() -> None:
    with serving({"a.tar": DATA}) as server:
        server.shift = -1000
        assert read(f"{server.url}/a.tar", position=5000) == DATA[5000:]
        server.shift = 1
        with pytest.raises(BrokenShard, match="5001"):
            read(f"{server.url}/a.tar", position=5000)


def test_the_output_of_a_command_is_unpacked_once(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(DATA))
    for command in (f"gzip -dc {tmp_path}/a.tar.gz", f"cat {tmp_path}/a.tar.gz"):
        assert read(f"pipe:{command}") == DATA
        assert read(f"pipe:{command}", position=7000) == DATA[7000:]
    assert read("pipe:true") == b""


def test_a_server_that_is_busy_or_slow_is_asked_again() -> None:
    with serving({"a.tar": DATA}) as server:
        server.busy = 3
        assert read(f"{server.url}/a.tar") == DATA
        server.busy = 4
        with pytest.raises(BrokenShard, match=r"HTTP 503 .* \(after 3 retries\)"):
            read(f"{server.url}/a.tar")
        server.busy, server.slow = 0, 0.3
        assert read(f"{server.url}/a.tar") == DATA
        with pytest.raises(BrokenShard, match="timed out"):
            read(f"{server.url}/a.tar", patience=Patience(1, 0.001, 0.05))


def test_what_will_not_come_is_given_up_at_once() -> None:
    with serving({}) as server:
        with pytest.raises(BrokenShard, match="HTTP 404"):
            read(f"{server.url}/a.tar")
        assert len(server.asked) == 1
    with pytest.raises(BrokenShard, match="refused"):
        read(f"{server.url}/a.tar")
    with pytest.raises(BrokenShard, match="No such file"):
        read("/nowhere/a.tar")
    with pytest.raises(BrokenShard, match="exit code 3"):
        read("pipe:exit 3")
    with pytest.raises(BrokenShard, match=r"a\.tar"):
        read("memory://nowhere/a.tar")


def test_the_waits_double_up_to_a_ceiling() -> None:
    with mock.patch.object(time, "sleep") as sleep, pytest.raises(BrokenShard):
        read("pipe:exit 3", patience=Patience(9, 0.5, 1))
    assert [call.args[0] for call in sleep.call_args_list] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_a_place_that_needs_a_missing_package_says_what_to_install() -> None:
    with mock.patch.dict("sys.modules", {"fsspec": None}), pytest.raises(UserError) as told:
        read("s3://bucket/a.tar")
    assert "pip install 'diffcli[remote]'" in told.value.hint
    with pytest.raises(UserError, match="nonsense://a"):
        read("nonsense://a")
