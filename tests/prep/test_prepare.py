"""prep-data: every kind end to end on tiny data, the same bytes however it ran, and nothing stops it but the user."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffcli.config import UserError
from diffcli.data.shards import Index, open_shards
from diffcli.prep import shard
from diffcli.prep.items import Download, Picked, SourceOptions
from diffcli.prep.kinds import KINDS
from diffcli.prep.prepare import prepare
from tests.data import making
from tests.data.making import contents, read, run

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("packed", [False, True])
def test_mnist_end_to_end(tmp_path: Path, packed: bool):
    images, labels = making.mnist(tmp_path / "mnist")
    source = tmp_path / "mnist"
    if packed:
        source = tmp_path / "mnist.zip"
        with zipfile.ZipFile(source, "w") as file:
            for path in (tmp_path / "mnist").iterdir():
                file.write(path, f"MNIST/raw/{path.name}")
    assert run("mnist", source, tmp_path / "out", images_per_shard=8).written == 30
    batch = read(tmp_path / "out", 28, 1)
    assert np.array_equal(batch["image"].numpy(), images)
    assert batch["label"].tolist() == labels.tolist()
    prepared = open_shards(tmp_path / "out", "x")
    assert (prepared.channels, prepared.size, prepared.count) == (1, (28, 28), 30)
    assert {split: value.count for split, value in prepared.splits.items()} == {"train": 20, "test": 10}
    assert prepared.classes == tuple("0123456789")


def test_cifar10_end_to_end_from_both_versions(tmp_path: Path):
    images, labels = making.cifar10_binary(tmp_path / "binary")
    run("cifar10", tmp_path / "binary", tmp_path / "a")
    assert np.array_equal(read(tmp_path / "a", 32, 3)["image"].numpy(), images)
    assert read(tmp_path / "a", 32, 3)["label"].tolist() == labels.tolist()
    images = making.class_folders(tmp_path / "folders/train", making.CIFAR, 2, 32)
    making.class_folders(tmp_path / "folders/test", making.CIFAR, 1, 32)
    run("cifar10", tmp_path / "folders", tmp_path / "b")
    assert np.array_equal(read(tmp_path / "b", 32, 3)["image"].numpy(), images)
    assert open_shards(tmp_path / "b", "x").classes == making.CIFAR


def test_a_folder_keeps_jpegs_turns_the_rest_to_png_and_resizes_on_request(tmp_path: Path):
    image = Image.fromarray(making.pixels(1, 3, 12, 12)[0].transpose(1, 2, 0))
    jpeg = making.encoded(image, "JPEG")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(jpeg)
    (tmp_path / "in/b.webp").write_bytes(making.encoded(image.resize((20, 14)), "WEBP"))
    run("folder", tmp_path / "in", tmp_path / "same")
    index = Index.model_validate_json((tmp_path / "same/train-000000.json").read_bytes())
    tar = (tmp_path / "same/train-000000.tar").read_bytes()
    assert index.members == ["00000000.jpg", "00000001.png"]
    assert tar[index.offset[0] :][: index.size[0]] == jpeg
    assert open_shards(tmp_path / "same", "x").size is None
    run("folder", tmp_path / "in", tmp_path / "small", size=6)
    index = Index.model_validate_json((tmp_path / "small/train-000000.json").read_bytes())
    assert index.members == ["00000000.png", "00000001.png"]
    assert open_shards(tmp_path / "small", "x").size == (6, 6)
    assert open_shards(tmp_path / "small", "x").classes is None


def test_grey_images_stay_grey(tmp_path: Path):
    (tmp_path / "in").mkdir()
    for number, grey in enumerate(making.pixels(3, 1, 8, 8)):
        (tmp_path / f"in/{number}.png").write_bytes(making.png(grey))
    run("folder", tmp_path / "in", tmp_path / "out", size=4)
    assert open_shards(tmp_path / "out", "x").channels == 1


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Class folders in which two of six images are broken, in different shards of two."""
    root = tmp_path / "broken"
    making.class_folders(root)
    (root / "cat/001.png").write_bytes(b"not an image")
    (root / "dog/002.png").write_bytes((root / "dog/002.png").read_bytes()[:50])
    return root


def test_broken_images_are_listed_and_left_out(broken: Path, tmp_path: Path):
    report = run("folder", broken, tmp_path / "out", images_per_shard=2)
    assert (report.total, report.done, report.written, report.skipped) == (6, 6, 4, 2)
    skipped = [json.loads(line) for line in (tmp_path / "out/skipped.jsonl").read_text().splitlines()]
    assert [(entry["split"], entry["path"]) for entry in skipped] == [
        ("train", "cat/001.png"),
        ("train", "dog/002.png"),
    ]
    assert "none of PNG" in skipped[0]["reason"]
    assert "truncated" in skipped[1]["reason"]
    assert read(tmp_path / "out", 8, 3)["label"].tolist() == [0, 0, 1, 1]
    assert open_shards(tmp_path / "out", "x").skipped == 2


def test_strict_makes_a_broken_image_an_error_also_when_it_was_skipped_before(broken: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"cat/001\.png cannot be used"):
        run("folder", broken, tmp_path / "out", strict=True)
    run("folder", broken, tmp_path / "out")
    with pytest.raises(UserError, match=r"cat/001\.png cannot be used"):
        run("folder", broken, tmp_path / "out", strict=True)


def test_names_that_are_no_utf8_or_hold_line_ends_are_written_down(tmp_path: Path):
    source = tmp_path / os.fsdecode(b"of-\xfe")
    odd = source / os.fsdecode(b"cat-\xff")
    odd.mkdir(parents=True)
    (odd / "a\nb.png").write_bytes(making.png(np.zeros((3, 4, 4), np.uint8)))
    (odd / os.fsdecode(b"\xff.png")).write_bytes(b"no image")
    report = run("folder", source, tmp_path / "out")
    assert (report.written, report.skipped) == (1, 1)
    prepared = open_shards(tmp_path / "out", "data.root")
    assert (prepared.classes, prepared.source) == (("cat-\\udcff",), "of-\\udcfe")
    assert json.loads((tmp_path / "out/skipped.jsonl").read_text())["path"] == "cat-\\udcff/\\udcff.png"


def test_nothing_but_broken_images_is_an_error(tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(b"no")
    with pytest.raises(UserError, match=r"has no usable image \(a\.png"):
        run("folder", tmp_path / "in", tmp_path / "out")


def test_a_stopped_run_goes_on_to_the_same_bytes_and_keeps_what_it_has(broken: Path, tmp_path: Path):
    run("folder", broken, tmp_path / "whole", images_per_shard=1)
    stopped = prepare("folder", broken, tmp_path / "out", images_per_shard=1)
    for _ in range(4):
        next(stopped)
    stopped.close()
    assert not (tmp_path / "out/dataset.json").exists()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("train-*")}
    assert len(before) == 6
    first, *_, last = prepare("folder", broken, tmp_path / "out", images_per_shard=1)
    assert (first.done, last.done) == (3, 6)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_finished_set_is_left_as_it_is_and_a_damaged_one_is_mended(broken: Path, tmp_path: Path):
    out = tmp_path / "out"
    run("folder", broken, out, images_per_shard=2)
    before = contents(out)
    assert len(list(prepare("folder", broken, out, images_per_shard=2))) == 1
    assert contents(out) == before
    (out / "train-000000.tar").unlink()
    (out / "train-000001.tar").write_bytes(b"short")
    (out / "train-000002.json").write_text("{")
    assert len(list(prepare("folder", broken, out, images_per_shard=2))) == 4
    assert contents(out) == before


def test_worker_processes_write_the_same_bytes(broken: Path, tmp_path: Path):
    run("folder", broken, tmp_path / "one", images_per_shard=1)
    run("folder", broken, tmp_path / "two", images_per_shard=1, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_killed_run_with_workers_leaves_no_process_and_goes_on_to_the_same_bytes(tmp_path: Path):
    making.class_folders(tmp_path / "in", n=150, size=64)
    more = {"images_per_shard": 10, "size": 48}
    code = (
        "import sys\nfrom pathlib import Path\nfrom diffcli.prep.prepare import prepare\n"
        "if __name__ == '__main__':\n"
        "    for _ in prepare('folder', Path(sys.argv[1]), Path(sys.argv[2]), workers=2, **eval(sys.argv[3])):\n"
        "        pass\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    command = [sys.executable, str(script), str(tmp_path / "in"), str(tmp_path / "out"), repr(more)]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").glob("*.tar")) and time.monotonic() < deadline:
        time.sleep(0.005)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out/dataset.json").exists(), "it was finished before it could be killed"
    while any(Path(f"/proc/{child}/fd").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)  # a zombie without a parent that waits for it still has a /proc entry for a moment
    alive = [child for child in children if _state(child) not in ("", "Z")]
    assert alive == []
    run("folder", tmp_path / "in", tmp_path / "out", **more)
    run("folder", tmp_path / "in", tmp_path / "whole", **more)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def _state(process: str) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("change", [{"size": 4}, {"limit": 3}, {"images_per_shard": 3}])
def test_another_request_into_the_same_folder_is_refused(broken: Path, tmp_path: Path, finished: bool, change: dict):
    work = prepare("folder", broken, tmp_path / "out", images_per_shard=2)
    for _ in work if finished else range(2):
        if not finished:
            next(work)
    work.close()
    before = contents(tmp_path / "out")
    with pytest.raises(UserError, match=f"holds a set made with (no --)?{next(iter(change))}"):
        run("folder", broken, tmp_path / "out", **({"images_per_shard": 2} | change))
    assert contents(tmp_path / "out") == before


def test_a_source_that_changed_is_refused(broken: Path, tmp_path: Path):
    run("folder", broken, tmp_path / "out")
    (broken / "cat/009.png").write_bytes(making.png(making.pixels(1, 3, 8, 8)[0]))
    with pytest.raises(UserError, match="other contents of SOURCE"):
        run("folder", broken, tmp_path / "out")


def test_a_limit_takes_evenly_from_all_classes(tmp_path: Path):
    making.class_folders(tmp_path / "in", ("a", "b", "c"), 10)
    assert run("folder", tmp_path / "in", tmp_path / "out", limit=6).written == 6
    assert read(tmp_path / "out", 8, 3)["label"].tolist() == [0, 0, 1, 1, 2, 2]


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, broken: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"holds other files \('thesis\.tex'\)"):
        run("folder", broken, tmp_path / "out")
    with pytest.raises(UserError, match="which is a file"):
        run("folder", broken, tmp_path / "out/thesis.tex")
    assert contents(tmp_path / "out") == {"thesis.tex": b"years of work"}


def test_an_out_below_a_file_cannot_be_written(tmp_path: Path, broken: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out .* cannot be written"):
        run("folder", broken, tmp_path / "file/out")


def test_a_full_disk_is_said_and_what_was_finished_stays(tmp_path: Path, broken: Path, monkeypatch: pytest.MonkeyPatch):
    run("folder", broken, tmp_path / "whole", images_per_shard=2)
    whole, calls = shard.os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 3:  # the request, the first tar and its index
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(descriptor)

    monkeypatch.setattr(shard.os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        run("folder", broken, tmp_path / "out", images_per_shard=2)
    monkeypatch.setattr(shard.os, "fsync", whole)
    assert sorted(path.name for path in (tmp_path / "out").glob("train*")) == ["train-000000.json", "train-000000.tar"]
    run("folder", broken, tmp_path / "out", images_per_shard=2)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_path_traversal_in_an_archive_is_refused_and_nothing_is_written_outside(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as file:
        file.writestr("../../escaped.png", making.png(making.pixels(1, 3, 8, 8)[0]))
    with pytest.raises(UserError, match="points outside"):
        run("folder", tmp_path / "evil.zip", tmp_path / "out")
    assert not list(tmp_path.rglob("escaped*"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_says_where_its_source_is_to_be_had(kind: str, tmp_path: Path):
    with pytest.raises(UserError, match="needs a SOURCE") as caught:
        run(kind, None, tmp_path / "out")
    assert caught.value.hint == KINDS[kind].where
    with pytest.raises(UserError, match=r"SOURCE is '.*nowhere', which does not exist"):
        run(kind, tmp_path / "nowhere", tmp_path / "out")


def test_an_unknown_kind_is_guessed(tmp_path: Path):
    with pytest.raises(UserError, match="did you mean 'mnist'"):
        run("minst", tmp_path, tmp_path / "out")


def test_options_of_downloads_are_refused_where_nothing_is_downloaded(tmp_path: Path):
    making.class_folders(tmp_path / "source")
    for options, flag in (
        (SourceOptions(picked=Picked(quality=80)), "--quality"),
        (SourceOptions(download=Download(threads=3)), "--threads"),
    ):
        with pytest.raises(UserError, match=f"{flag} has no effect in prep-data folder"):
            run("folder", tmp_path / "source", tmp_path / "out", options=options)


def test_clips_are_refused_the_options_that_pictures_have(tmp_path: Path):
    (tmp_path / "clips.csv").write_text("videoid,name,contentUrl\n")
    with pytest.raises(UserError, match="--min-size has no effect in prep-data webvid") as caught:
        run("webvid", tmp_path / "clips.csv", tmp_path / "out", options=SourceOptions(picked=Picked(min_size=3)))
    assert "coco, cc3m, cc12m, urls" in caught.value.hint
