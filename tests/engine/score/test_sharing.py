"""Several processes score together: each reads, draws and extracts its own share, and the scores are those of one process."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffcli.config import UserError
from diffcli.engine.score.onepass import dealt, share, spans
from diffcli.engine.score.sides import resolve
from tests import warm
from tests.conftest import WAIT, in_ranks
from tests.engine.score.making import ALONE, pixels, write_folder, write_npz
from tests.engine.score.sharing import FORMAT_1, SIDES, TERMS, found, in_this_process

pytestmark = pytest.mark.xdist_group("sharing")  # one fixture serves all of them, and takes its time

WORLD = 2
N = 13  # images of a side: neither a multiple of the batch nor of the processes
SIZES = {"prepared": 10, "stream": 10, "samples": 7}
ALL_SIDES = [*SIDES, "samples"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What one process alone found, and what each of two found."""
    folder = tmp_path_factory.mktemp("shared")
    write_folder(folder / "images", pixels(2, N))
    write_npz(folder / "stored.npz", pixels(1, N))
    write_npz(folder / "compressed.npz", pixels(3, N, channels=3), np.savez_compressed)
    alone = found(folder, ALONE, folder / "cache-1")
    code, _, told = warm.ranks(WORLD, in_this_process, folder, limit=WAIT, env={})
    assert code == 0, told
    return alone, [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(WORLD)]


@pytest.mark.parametrize("name", [*ALL_SIDES, "bound 7", "bound 1"])
def test_two_processes_report_what_one_reports(name: str, results: tuple[dict, list[dict]]) -> None:
    alone, both = results
    one, two = alone[name]["report"], both[0][name]["report"]
    assert both[1][name]["report"] is None, "the leading process reports"
    assert two["scores"] == pytest.approx(one["scores"], rel=1e-5, abs=1e-6)
    assert two.get("terms", []) == pytest.approx(one.get("terms", []), rel=1e-4, abs=1e-7)
    moved = {"scores", "terms", "warnings"}
    assert {k: two[k] for k in two if k not in moved} == {k: one[k] for k in one if k not in moved}
    assert [w for w in two["warnings"] if w != "process 1"] == one["warnings"]


@pytest.mark.parametrize("name", ALL_SIDES)
def test_each_process_looks_at_its_own_share_alone(name: str, results: tuple[dict, list[dict]]) -> None:
    """Of the side and of the reference, which has N images."""
    alone, both = results
    n = SIZES.get(name, N)
    expected = [
        sum(len(rows) for size in (n, N) for rows in spans(size, 3, WORLD)[rank::WORLD]) for rank in range(WORLD)
    ]
    assert sum(expected) == n + N
    assert [rank[name]["seen"] for rank in both] == expected
    drawn = n if name == "samples" else 0
    assert alone[name]["decoded"] == n + N - drawn
    assert sum(rank[name]["decoded"] for rank in both) == n + N - drawn
    assert all(rank[name]["decoded"] <= mine for rank, mine in zip(both, expected, strict=True))


def test_each_process_draws_and_bounds_its_own_images_alone(results: tuple[dict, list[dict]]) -> None:
    alone, both = results
    for name in ("samples", "bound 7", "bound 1"):
        counts = [rank[name].get("denoised", 0) for rank in both]
        assert sum(counts) == alone[name]["denoised"]
        assert max(counts) < alone[name]["denoised"] or name == "bound 1"
    assert alone["bound 7"]["denoised"] == 7 * (TERMS - 1)
    assert [rank["bound 7"]["decoded"] for rank in both] == [4, 3]


def test_notes_of_every_process_are_reported_once(results: tuple[dict, list[dict]]) -> None:
    warnings = results[1][0]["npz"]["report"]["warnings"]
    assert [w for w in warnings if w.startswith("process")] == ["process 0", "process 1"]


@pytest.mark.parametrize(
    ("n", "batch", "world"), [(13, 3, 2), (1, 4, 3), (100, 64, 2), (1000, 250, 1), (7, 7, 7), (0, 4, 2)]
)
def test_batches_cover_the_rows_in_order_and_fairly(n: int, batch: int, world: int) -> None:
    dealt = spans(n, batch, world)
    assert [row for rows in dealt for row in rows] == list(range(n))
    assert all(0 < len(rows) <= batch for rows in dealt)
    shares = [sum(map(len, dealt[rank::world])) for rank in range(world)]
    assert max(shares) - min(shares) <= -(-n // len(dealt)) if dealt else n == 0
    assert len(dealt) == -(-n // batch) or world > 1
    assert share(n, batch, ALONE) == n


def test_no_batch_crosses_the_end_of_an_extractor_and_each_process_has_its_share_up_to_there() -> None:
    rounds = dealt([100, 10, 100], 16, 2)
    rows = [row for batches in rounds for each in batches for row in each]
    assert rows == list(range(100))
    assert rounds[0] == [range(5), range(5, 10)]
    assert all(len(batches) <= 2 and len(each) <= 16 for batches in rounds for each in batches)
    assert dealt([7], 16, 1) == [[range(7)]]


@pytest.mark.slow
def test_a_broken_image_in_the_share_of_any_process_is_left_out_and_named_once(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", pixels(1, 12))
    (folder / "part2" / "00011.png").write_bytes(b"no image")
    scored = ("fid", folder, FORMAT_1 / "reference.npz", "--features", FORMAT_1 / "classifier", "--batch-size", 3)
    done = in_ranks(*scored, "--nproc", 2, "--device", "cpu", DIFFCLI_CACHE=str(tmp_path / "cache"))
    assert done.code == 0, done.err
    assert done.err.count("00011.png") == 1


def test_a_damaged_file_that_processes_share_is_refused(tmp_path: Path) -> None:
    """No process reads all of it, so one of them checks the sum."""
    path = write_npz(tmp_path / "a.npz", pixels(1, 64))
    whole = bytearray(path.read_bytes())
    whole[3000] ^= 255
    path.write_bytes(whole)
    side = resolve(str(path))
    assert side.read is not None
    with pytest.raises(UserError, match=r"a\.npz is damaged"):
        list(side.read([range(8), range(16, 24)], ["image"]))
    assert len(list(side.read([range(8, 16), range(24, 32)], ["image"]))) == 2
