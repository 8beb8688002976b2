"""Batches are a pure function of (seed, step): resume, ranks, epochs and workers cannot change what a run sees."""

import lzma
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffcli import noise
from diffcli.config import ImageShape, UserError
from diffcli.data import loader
from diffcli.data.datasets import Cifar
from diffcli.data.faults import zip_faults
from diffcli.data.images import FileImages, MemoryImages
from diffcli.data.loader import batches, evaluation_batches, loaded
from diffcli.data.order import epoch_draws
from diffcli.fields import to_float
from diffcli.noise import Domain
from tests.data.making import class_folders, pixels, png

CPU = torch.device("cpu")
SHAPE = ImageShape(1, 2, 3)


def numbered(n: int) -> MemoryImages:
    """n images whose label is their index."""
    return MemoryImages(torch.from_numpy(pixels(n, *SHAPE)), torch.arange(n), tuple(map(str, range(n))))


def read(data, batch_size: int, last: int, *, first: int = 0, seed: int = 0, flip: bool = False, **more):
    """{step: batch} of a run."""
    return dict(batches(data, batch_size=batch_size, seed=seed, first=first, last=last, flip=flip, device=CPU, **more))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Encoded:
    """PNG files in memory, one of them broken if asked."""

    def __init__(self, n: int, broken: int | None = None) -> None:
        self.files = [png(image) for image in pixels(n, *SHAPE)]
        if broken is not None:
            self.files[broken] = self.files[broken][:40]

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return f"file-{index}.png"

    def read(self, index: int) -> bytes:
        return self.files[index]


def files(n: int, broken: int | None = None) -> FileImages:
    return FileImages(Encoded(n, broken), SHAPE, torch.arange(n), tuple(map(str, range(n))))


def test_a_batch_has_the_fields_of_the_contract():
    batch = read(numbered(10), 4, 1)[1]
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == {
        "image": ((4, *SHAPE), torch.float32),
        "label": ((4,), torch.int64),
        "index": ((4,), torch.int64),
        "position": ((4,), torch.int64),
        "stream": ((4,), torch.int64),
    }
    assert torch.equal(batch["label"], batch["index"])


def test_a_set_without_classes_has_no_labels():
    assert "label" not in read(MemoryImages(torch.zeros(5, *SHAPE, dtype=torch.uint8)), 4, 1)[1]


def test_every_epoch_is_a_permutation_and_epochs_differ():
    index = torch.cat([batch["index"] for batch in read(numbered(12), 4, 9).values()])
    epochs = index.split(12)
    assert all(sorted(epoch.tolist()) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3
    assert not torch.equal(index, torch.cat([b["index"] for b in read(numbered(12), 4, 9, seed=1).values()]))


@given(n=st.integers(1, 30), batch_size=st.integers(1, 40), first=st.integers(0, 50))
@settings(max_examples=30, deadline=None)
def test_position_p_reads_the_permutation_of_its_epoch(n: int, batch_size: int, first: int):
    batch = read(numbered(n), batch_size, first + 1, first=first)[first + 1]
    position = torch.arange(first * batch_size, (first + 1) * batch_size)
    orders = {epoch: noise.permutation(0, epoch, n).tolist() for epoch in set((position // n).tolist())}
    expected = [orders[p // n][p % n] for p in position.tolist()]
    assert torch.equal(batch["position"], position)
    assert batch["index"].tolist() == expected


@given(n=st.integers(1, 30), batch_size=st.integers(1, 20), world=st.integers(1, 8), first=st.integers(0, 20))
@settings(max_examples=30, deadline=None)
def test_the_shares_of_the_ranks_make_up_the_batch_of_one_process(n: int, batch_size: int, world: int, first: int):
    data, step = numbered(n), first + 1
    whole = read(data, batch_size, step, first=first, flip=True)[step]
    parts = [read(data, batch_size, step, first=first, flip=True, rank=r, world=world)[step] for r in range(world)]
    assert same({name: torch.cat([part[name] for part in parts]) for name in whole}, whole)
    sizes = [len(part["index"]) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_resuming_in_the_middle_equals_going_through():
    data = numbered(11)
    through, resumed = read(data, 4, 20, flip=True), read(data, 4, 20, first=7, flip=True)
    assert list(resumed) == list(range(8, 21))
    assert all(same(through[step], resumed[step]) for step in resumed)


def test_a_batch_may_straddle_epochs_and_exceed_the_set():
    index = read(numbered(3), 8, 1)[1]["index"].tolist()
    assert sorted(index[:3]) == sorted(index[3:6]) == [0, 1, 2]


def test_the_stream_of_a_sample_follows_from_its_position():
    batch = read(numbered(5), 4, 3, first=2, seed=9)[3]
    assert torch.equal(batch["stream"], noise.derive(9, Domain.TRAIN, torch.arange(8, 12)))


def test_flips_depend_on_seed_epoch_and_index_alone():
    """Other batch sizes place an image elsewhere in the batch, but mirror it in the same epochs."""
    data = numbered(10)

    def mirrored(batch_size: int, steps: int) -> dict[tuple[int, int], bool]:
        found = {}
        for batch in read(data, batch_size, steps, flip=True).values():
            original = to_float(data.images[batch["index"]])
            flips = (batch["image"] != original).flatten(1).any(1)
            assert torch.equal(batch["image"][flips], original[flips].flip(-1))
            epochs = (batch["position"] // 10).tolist()
            found |= dict(zip(zip(epochs, batch["index"].tolist(), strict=True), flips.tolist(), strict=True))
        return found

    assert mirrored(5, 12) == mirrored(4, 15)
    assert set(mirrored(5, 12).values()) == {True, False}


def test_half_of_the_images_are_mirrored_and_each_epoch_mirrors_others():
    index = torch.arange(10_000)
    first, second = epoch_draws(0, 0, index) & 1, epoch_draws(0, 1, index) & 1
    assert abs(first.float().mean() - 0.5) < 0.02
    assert abs((first ^ second).float().mean() - 0.5) < 0.02
    assert abs((first ^ epoch_draws(1, 0, index) & 1).float().mean() - 0.5) < 0.02


def test_bytes_survive_the_way_to_floats_and_back():
    levels = torch.arange(256, dtype=torch.uint8)
    floats = to_float(levels)
    assert floats.min() == -1
    assert floats.max() == 1
    assert torch.equal(((floats + 1) * 127.5).round().to(torch.uint8), levels)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_read_what_this_process_reads(workers: int):
    here = read(numbered(10), 4, 7, flip=True)
    there = read(files(10), 4, 7, flip=True, workers=workers)
    assert list(there) == list(here)
    assert all(same(here[step], there[step]) for step in here)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_the_users_error_in_any_process(workers: int):
    with pytest.raises(UserError, match=r"file-3\.png"):
        read(files(6, broken=3), 2, 3, workers=workers)


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    read(files(6), 2, 3, flip=True, workers=1)
    read(numbered(6), 2, 3, flip=True)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_goes_through_the_set_in_order(workers: int):
    data = files(7)
    found = list(evaluation_batches(data, torch.arange(7), 3, CPU, workers=workers))
    assert [batch["index"].tolist() for batch in found] == [[0, 1, 2], [3, 4, 5], [6]]
    assert torch.equal(torch.cat([batch["image"] for batch in found]), to_float(numbered(7).images))
    assert [len(batch["label"]) for batch in evaluation_batches(data, torch.arange(4), 3, CPU)] == [3, 1]
    assert [batch["index"].tolist() for batch in evaluation_batches(data, torch.tensor([6, 0]), 3, CPU)] == [[6, 0]]
    assert list(evaluation_batches(data, torch.arange(0), 3, CPU)) == []


@pytest.mark.parametrize("worth", [1, 1000])
def test_a_set_held_in_memory_is_the_set_of_files(monkeypatch: pytest.MonkeyPatch, worth: int):
    monkeypatch.setattr(loader, "WORTH_WORKERS", worth)
    monkeypatch.setattr(loader, "LOAD_CHUNK", 4)
    data = loaded(files(10), None)
    assert isinstance(data, MemoryImages)
    assert same(data.read(torch.arange(10)), numbered(10).read(torch.arange(10)))


def test_what_does_not_fit_stays_in_files(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loader, "MEMORY_LIMIT", 10 * 6 - 1)
    assert isinstance(loaded(files(10), None), FileImages)
    assert isinstance(loaded(files(10), True), MemoryImages)
    monkeypatch.setattr(loader, "MEMORY_LIMIT", 10 * 6)
    assert isinstance(loaded(files(10), None), MemoryImages)
    assert isinstance(loaded(files(10), False), FileImages)


def test_a_set_in_memory_stays_on_the_host_and_its_batches_travel():
    data, device = numbered(10), torch.device("meta")
    for _, batch in batches(data, batch_size=4, seed=0, first=0, last=3, flip=True, device=device):
        assert {name: value.device.type for name, value in batch.items()} == {
            "image": "meta", "label": "meta", "index": "cpu", "position": "cpu", "stream": "cpu"
        }  # fmt: skip
    assert data.images.device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_gets_the_batches_of_the_cpu_and_nothing_waits():
    data, gpu = numbered(10), torch.device("cuda")
    here = read(data, 4, 5, flip=True)
    torch.zeros(1, device=gpu)
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = dict(batches(data, batch_size=4, seed=0, first=0, last=5, flip=True, device=gpu))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(batch["stream"].is_pinned() for batch in there.values())
    for step, batch in here.items():
        assert there[step]["image"].is_cuda
        assert same(batch, {name: value.cpu() for name, value in there[step].items()})


def test_shards_of_a_folder_of_files_pickle_for_spawned_workers(tmp_path: Path):
    import pickle

    data = pickle.loads(pickle.dumps(files(4)))
    assert same(data.read(torch.arange(4)), numbered(4).read(torch.arange(4)))


@pytest.fixture
def zipped(tmp_path: Path) -> Path:
    """A zip of 800 PNGs, each its own bytes; large enough that several processes are inside it at once."""
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for number, image in enumerate(pixels(800, 3, 8, 8)):
            file.writestr(f"train/a/{number:04d}.png", png(image))
    return path


def test_workers_do_not_share_their_place_in_a_zip(zipped: Path):
    """Forked processes share the position of a file that their parent opened."""
    data = Cifar(root=zipped, size=8, in_memory=False).build("train")
    found = list(evaluation_batches(data, torch.arange(800), 10, CPU, workers=4))
    assert torch.equal(torch.cat([batch["image"] for batch in found]), to_float(torch.from_numpy(pixels(800, 3, 8, 8))))


def test_a_zip_is_held_in_memory_by_several_processes(zipped: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loader, "WORTH_WORKERS", 800)
    monkeypatch.setattr(loader, "LOAD_CHUNK", 10)
    monkeypatch.setattr(loader, "_cores", lambda: 4)
    data = Cifar(root=zipped, size=8, in_memory=True).build("train")
    assert isinstance(data, MemoryImages)
    assert torch.equal(data.images, torch.from_numpy(pixels(800, 3, 8, 8)))


@pytest.mark.parametrize(("ranks", "decoders"), [(None, 8), ("1", 8), ("2", 4), ("3", 2), ("16", 1)])
def test_the_ranks_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch, ranks: str | None, decoders: int):
    """torchrun tells each process how many it started on this machine."""
    monkeypatch.setattr(loader, "_cores", lambda: 8)
    monkeypatch.setattr(loader, "WORTH_WORKERS", 1)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if ranks is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    asked: list[int] = []

    def read_here(data, plans, device, workers: int):
        asked.append(workers)
        return read_ahead(data, plans, device, 0)

    read_ahead = loader._read_ahead
    monkeypatch.setattr(loader, "_read_ahead", read_here)
    assert isinstance(loaded(files(10), True), MemoryImages)
    assert asked == [decoders]


@pytest.mark.parametrize(
    "error",
    [
        OSError("gone"),
        EOFError("x.tar ends before byte 9"),
        RuntimeError("That compression method is not supported"),
        NotImplementedError("compression type 97"),
        zipfile.BadZipFile("Bad CRC-32"),
        zlib.error("Error -3 while decompressing data"),
        lzma.LZMAError("Corrupt input data"),
        struct.error("unpack requires a buffer of 30 bytes"),
        KeyError("There is no item named 'a.png' in the archive"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_an_archive_refuses_names_the_image(monkeypatch: pytest.MonkeyPatch, error: Exception):
    data = files(3)

    def refuse(index: int) -> bytes:
        with zip_faults():
            raise error

    monkeypatch.setattr(data.files, "read", refuse)
    with pytest.raises(UserError, match=r"image file-1\.png cannot be read: .") as caught:
        data.read(torch.tensor([1]))
    assert str(error.args[0]) in caught.value.problem


def test_a_garbled_member_of_a_zip_is_the_users_error_in_a_worker(zipped: Path):
    with zipfile.ZipFile(zipped) as file:
        member = file.getinfo("train/a/0005.png")
    garbled = bytearray(zipped.read_bytes())
    garbled[member.header_offset + 8] = 97  # the compression method, in the member's own header ...
    start = garbled.index(b"PK\x01\x02")
    where = garbled.index(b"train/a/0005.png", start) - 46
    garbled[where + 10] = 97  # ... and in the directory
    zipped.write_bytes(garbled)
    data = Cifar(root=zipped, size=8, in_memory=False).build("train")
    with pytest.raises(UserError, match=r"set\.zip/train/a/0005\.png cannot be read: .*compression"):
        list(evaluation_batches(data, torch.arange(10), 10, CPU, workers=1))


LEFT_OPEN = """
import sys, torch
from pathlib import Path
from diffcli.data.datasets import Folder
from diffcli.data.loader import batches
data = Folder(root=Path(sys.argv[1]), size=2, in_memory=False).build("train")
feed = batches(data, batch_size=2, seed=0, first=0, last=9, flip=False, device=torch.device("cpu"), workers=2)
next(feed)
raise ZeroDivisionError
"""


def test_a_process_that_fails_in_the_middle_of_a_loop_ends_although_its_workers_ignore_signals(tmp_path: Path):
    class_folders(tmp_path)
    done = subprocess.run([sys.executable, "-c", LEFT_OPEN, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert done.stderr.rstrip().endswith("ZeroDivisionError")
