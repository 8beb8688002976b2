"""Downloads end to end, from a server on loopback that answers like the web; what goes wrong is told apart and listed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from diffcli.config import RunFailed, UserError
from diffcli.data.prepared import Shards
from diffcli.data.shards import Index, open_shards
from diffcli.prep.download import url_sources
from diffcli.prep.items import Download, Picked, SourceOptions
from diffcli.prep.progress import PrepReport, kind_of_failure
from tests.conftest import Cli
from tests.data.making import contents, run
from tests.prep.server import FAILURES, GOOD, WebServer, colour, serving

pytestmark = pytest.mark.xdist_group("download")  # one download serves most of them
pytest.importorskip("img2dataset")
SIZE, ROUNDS = 40, 3
OPTIONS = SourceOptions(picked=Picked(min_size=30), download=Download(threads=32, timeout=1, retries=0))


def caption(kind: str, number: int) -> str:
    return f'"{kind} {number}, 你好'  # the quote closes nowhere, as in the official tables


def write_table(path: Path, server: WebServer, rounds: int) -> list[tuple[str, int]]:
    """A table like that of CC3M of every kind of answer in turn; returns its rows."""
    rows = [(kind, number) for number in range(rounds) for kind in (*GOOD, *FAILURES)]
    lines = [f"{caption(kind, number)}\t{server.url}/{kind}/{number}\n" for kind, number in rows]
    path.write_text("".join(lines) + "a local file\tfile:///etc/passwd\n")
    return rows


@dataclass
class Downloaded:
    """What a download left behind."""

    table: Path
    out: Path
    rows: list[tuple[str, int]]
    report: PrepReport
    server: WebServer

    def read(self) -> tuple[list[torch.Tensor], list[list[str]]]:
        """Every image on its own, float (3, SIZE, SIZE) from the centre, and the captions."""
        data = Shards(root=self.out, size=SIZE).build("train")
        batch = data.read(torch.arange(len(data)))
        return list(batch["image"]), batch["text"]


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Downloaded]:
    folder = tmp_path_factory.mktemp("download")
    with serving() as server:
        rows = write_table(folder / "table.tsv", server, ROUNDS)
        report = run("cc3m", folder / "table.tsv", folder / "out", size=SIZE, options=OPTIONS, images_per_shard=25)
        yield Downloaded(folder / "table.tsv", folder / "out", rows, report, server)


def test_every_good_url_is_an_image_with_its_caption_in_the_order_of_the_table(downloaded: Downloaded):
    wanted = [(kind, number) for kind, number in downloaded.rows if kind in GOOD]
    images, texts = downloaded.read()
    assert texts == [caption(kind, number) for kind, number in wanted]
    assert downloaded.report.written == len(images) == len(wanted)
    assert len(open_shards(downloaded.out, "x").splits["train"].shards) == 3


def test_pictures_are_upright_on_white_and_not_clipped_whatever_their_file(downloaded: Downloaded):
    images, _ = downloaded.read()
    wanted = [(kind, number) for kind, number in downloaded.rows if kind in GOOD]
    for (kind, number), image in zip(wanted, images, strict=True):
        left, right = image[:, 20, 8].numpy().astype(int), image[:, 20, 32].numpy().astype(int)
        expected = np.array(colour(number))
        if kind == "alpha":
            expected, left = np.array([255, 255, 255]), left - 255
        elif kind in ("grey", "deep"):
            expected = np.full(3, round(expected @ [0.299, 0.587, 0.114]))
        assert np.abs(left).max() < 20, (kind, left)
        assert np.abs(right - expected).max() < 12, (kind, right, expected)


def test_the_shorter_side_is_resized_and_nothing_is_cut_off_or_bordered(downloaded: Downloaded):
    index = Index.model_validate_json((downloaded.out / "train-000000.json").read_bytes())
    assert index.image_size == (SIZE, round(80 * SIZE / 60))


def test_failures_are_counted_by_kind_and_listed_with_their_url(downloaded: Downloaded):
    assert downloaded.report.reasons == {**dict.fromkeys(FAILURES.values(), ROUNDS), "no URL": 1}
    skipped = [json.loads(line) for line in (downloaded.out / "skipped.jsonl").read_text().splitlines()]
    listed = {entry["path"].removeprefix(downloaded.server.url): entry["reason"] for entry in skipped}
    for kind, told in FAILURES.items():
        for number in range(ROUNDS):
            assert kind_of_failure(listed.pop(f"/{kind}/{number}")) == told
    assert list(listed) == ["refused:file:///etc/passwd"]


@pytest.mark.parametrize("kind", sorted(url_sources.UNSTEADY))
def test_a_kind_that_is_listed_in_place_of_its_words_is_of_its_own_kind(kind: str):
    assert kind_of_failure(kind) == kind


def test_servers_are_told_who_asks_so_that_they_may_refuse(downloaded: Downloaded):
    assert all("compatible; diffcli;" in agent for agent in downloaded.server.agents)


def test_a_downloaded_set_trains_a_model_of_text(
    downloaded: Downloaded, cli: Cli, tiny: Callable[..., Path], tmp_path: Path
):
    text = {"kind": "text", "width": 16, "depth": 1, "heads": 2, "length": 16}
    data = {"kind": "shards", "root": str(downloaded.out), "size": 8, "channels": 3}
    preset = tiny(data=data, task__conditioners=[text], task__network__middle=["res", "cross_attention"])
    outcome = cli("train", "--preset", preset, "--run-dir", tmp_path / "run", "--device", "cpu")
    assert outcome.code == 0, outcome.err
    outcome = cli("sample", "--ckpt", tmp_path / "run", "--prompt", "jpeg 1, 你好", "--out", tmp_path / "a.png")
    assert outcome.code == 0, outcome.err


def test_a_finished_download_asks_nobody_and_stays_as_it_is(downloaded: Downloaded):
    asked, before = downloaded.server.asked.copy(), contents(downloaded.out)
    run("cc3m", downloaded.table, downloaded.out, size=SIZE, options=OPTIONS, images_per_shard=25)
    assert downloaded.server.asked == asked
    assert contents(downloaded.out) == before


def test_patience_may_change_between_runs_but_not_what_is_asked_for(downloaded: Downloaded):
    patient = OPTIONS.model_copy(update={"download": Download(timeout=60)})
    run("cc3m", downloaded.table, downloaded.out, size=SIZE, options=patient, images_per_shard=25)
    with pytest.raises(
        UserError, match=rf"holds a set made with --min-size {OPTIONS.picked.min_size}, not --min-size 256"
    ):
        run("cc3m", downloaded.table, downloaded.out, size=SIZE, images_per_shard=25)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "t.tsv").write_text("a cat\thttp://127.0.0.1:1/a.jpg\na dog\thttp://127.0.0.1:1/b.jpg\n")
    return tmp_path / "t.tsv"


def test_a_download_without_img2dataset_says_how_to_get_it(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "img2dataset", None)
    with pytest.raises(UserError, match=r"img2dataset, which is not installed") as caught:
        run("cc3m", table, tmp_path / "out")
    assert "pip install 'diffcli[download]'" in caught.value.hint


@pytest.mark.parametrize("name", ["pyspark", "ray"])
def test_a_distributor_that_is_not_there_is_refused(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"--distributor {name} needs {name}, which is not installed"):
        run("cc3m", table, tmp_path / "out", options=SourceOptions(download=Download(distributor=name)))


def test_img2dataset_that_dies_is_named_with_its_last_words(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho 'OSError: no space left on device' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(url_sources.sys, "executable", str(script))
    with pytest.raises(RunFailed, match=r"left 1 of 1 shards unfinished \(OSError: no space left on device\)"):
        run("cc3m", table, tmp_path / "out")
    assert not (tmp_path / "out/dataset.json").exists()


def fake_shard(folder: Path, reasons: dict[str, int]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "00000_stats.json").write_text(json.dumps({"status_dict": reasons}))


@pytest.mark.parametrize(("count", "alone", "down"), [(60, False, True), (2, True, True), (2, False, False)])
def test_where_no_url_can_be_reached_it_is_the_network_and_the_shard_is_tried_again(
    tmp_path: Path, count: int, alone: bool, down: bool
):
    fake_shard(tmp_path, {"timed out": 1, "<urlopen error [Errno -3] Temporary failure in name resolution>": count - 1})
    outcomes = url_sources._outcomes(tmp_path, 0)
    if down:
        with pytest.raises(RunFailed, match=f"none of {count} URLs could be reached .*no connection {count - 1}"):
            url_sources._check_reached(tmp_path, 0, outcomes, alone)
    else:
        url_sources._check_reached(tmp_path, 0, outcomes, alone)
    assert (tmp_path / "00000_stats.json").exists() is not down


def test_a_shard_with_one_image_or_one_answer_is_no_matter_of_the_network(tmp_path: Path):
    for other in ("success", "HTTP Error 404: Not Found"):
        fake_shard(tmp_path, {"timed out": 99, other: 1})
        url_sources._check_reached(tmp_path, 0, url_sources._outcomes(tmp_path, 0), alone=True)
        assert (tmp_path / "00000_stats.json").exists()


def test_half_written_statistics_do_not_vouch_for_a_shard(tmp_path: Path):
    fake_shard(tmp_path, {"success": 1})
    assert not url_sources._is_whole(tmp_path, 0)  # nothing of the shard itself is there
    (tmp_path / "00000_stats.json").write_text('{"status_di')
    assert url_sources._outcomes(tmp_path, 0) is None


@pytest.mark.parametrize(("kind", "file"), [("cc3m", "Train_GCC-training.tsv"), ("cc12m", "cc12m.tsv")])
def test_a_kind_alone_says_which_table_it_needs_and_where_to_get_it(cli: Cli, kind: str, file: str):
    cli("prep-data", kind).refused(
        f"prep-data {kind} needs a SOURCE", file, "https://", f"diffcli prep-data {kind} {file}"
    )


def test_a_download_needs_a_place_and_a_table_with_the_columns(cli: Cli, table: Path, tmp_path: Path):
    cli("prep-data", "cc3m", table).refused("--out")
    (tmp_path / "t.csv").write_text("id,picture,words\n1,http://a.org,x\n2,http://b.org,y\n")
    told = cli("prep-data", "urls", tmp_path / "t.csv", "--url-col", "photo", "--out", tmp_path / "out")
    told.refused("--url-col is 'photo'", "it has id, picture, words")


def command(table: Path, out: Path, workers: int = 1) -> "subprocess.Popen[str]":
    line = [sys.executable, "-m", "diffcli", "prep-data", "cc3m", str(table), "--out", str(out), "--size", str(SIZE)]
    more = ["--min-size", "30", "--timeout", "1", "--retries", "0", "--workers", str(workers)]
    return subprocess.Popen(line + more, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*_stats.json"))


def wait_until(true, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def group_of(job: Path) -> list[int]:
    """The processes that work on a job, found by what they were started with."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if str(job) in (folder / "cmdline").read_text():
                    found.append(int(folder.name))
            except OSError:  # it has just ended
                pass
    return found


@pytest.mark.slow
def test_a_lost_shard_of_a_part_of_a_table_is_mended_by_asking_for_its_urls_alone(tmp_path: Path):
    more = {"size": SIZE, "options": OPTIONS, "images_per_shard": 10, "limit": 20}
    with serving() as server:
        write_table(tmp_path / "t.tsv", server, ROUNDS)
        assert run("cc3m", tmp_path / "t.tsv", tmp_path / "out", **more).total == len(server.asked) == 20
        before = contents(tmp_path / "out")
        (tmp_path / "out/train-000001.tar").unlink()
        server.asked.clear()
        run("cc3m", tmp_path / "t.tsv", tmp_path / "out", **more)
    assert len(server.asked) == 10
    assert contents(tmp_path / "out") == before


@pytest.mark.slow
def test_thousands_of_urls_with_a_kill_in_the_middle_give_the_same_set_as_one_run(tmp_path: Path):
    with serving() as server:
        rows = write_table(tmp_path / "t.tsv", server, 158)  # 3003 URLs: three shards, and a fourth of two rows
        started = time.monotonic()
        whole = command(tmp_path / "t.tsv", tmp_path / "whole")
        _, err = whole.communicate(timeout=400)
        seconds = time.monotonic() - started
        assert whole.returncode == 0, err
        killed = command(tmp_path / "t.tsv", tmp_path / "killed")
        folder = tmp_path / "killed/.work/download"
        wait_until(lambda: finished(folder))
        job = folder.with_suffix(".json")
        assert group_of(job)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        wait_until(lambda: not group_of(job), 20)  # img2dataset went with it
        kept = {name: os.stat(folder / name).st_mtime_ns for name in finished(folder)}
        assert len(kept) < 4
        asked = server.asked.copy()
        again = command(tmp_path / "t.tsv", tmp_path / "killed")
        _, err = again.communicate(timeout=400)
        assert again.returncode == 0, err
        assert sum((server.asked - asked).values()) < len(rows)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert open_shards(tmp_path / "whole", "x").count == 158 * len(GOOD)
    assert "158  HTTP 404" in err
    print(f"{len(rows) / seconds:.0f} URLs/s in one process")
