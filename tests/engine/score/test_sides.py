"""Every kind of side: read whole, by spans and in bounded memory; what identifies it; and what is refused."""

import dataclasses
import os
import shlex
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffcli.config import UserError
from diffcli.data.broken import broken_among
from diffcli.data.datasets import Digits
from diffcli.engine.score import npz, sides
from diffcli.engine.score.sides import chosen_rows, data_side, fingerprint, own_side, read_ahead, resolve, spread
from tests.engine.score.making import (
    as_set,
    labels,
    pixels,
    read,
    spans,
    write_folder,
    write_npz,
)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_samples_are_read_in_order_with_their_labels(tmp_path, save):
    images = pixels(1, 20, channels=3)
    side = resolve(str(write_npz(tmp_path / "a.npz", images, save)))
    batches = list(side.read(spans(20, 6), ["image", "label"]))
    assert [len(batch["image"]) for batch in batches] == [6, 6, 6, 2]
    whole = torch.from_numpy(images).permute(0, 3, 1, 2)
    assert torch.equal(torch.cat([batch["image"] for batch in batches]), whole)
    assert torch.equal(torch.cat([batch["label"] for batch in batches]), torch.from_numpy(labels(images)))
    assert (side.size, set(side.fields)) == (20, {"image", "label"})
    apart = list(side.read([range(2, 5), range(11, 12)], ["image"]))  # the share of one process of several
    assert [set(batch) for batch in apart] == [{"image"}, {"image"}]
    assert torch.equal(torch.cat([batch["image"] for batch in apart]), whole[[2, 3, 4, 11]])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_is_read_whole_with_its_subfolders(tmp_path, channels):
    images = pixels(1, 20, channels)
    source = resolve(str(write_folder(tmp_path / "images", images)))
    found = read(source)
    assert found.shape == (20, channels, 8, 8)
    assert as_set(found) == as_set(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())


def test_what_earlier_stages_of_a_cascade_drew_is_not_among_its_images(tmp_path):
    write_folder(tmp_path / "drawn", pixels(1, 3, 1))
    write_folder(tmp_path / "drawn" / "stage-1", pixels(2, 4, 1))
    assert len(read(resolve(str(tmp_path / "drawn")))) == 7, "a folder of that name alone is no stage"
    (tmp_path / "drawn" / "stage-1.json").write_text("{}")
    assert len(read(resolve(str(tmp_path / "drawn")))) == 3


def test_grey_images_among_coloured_ones_are_repeated(tmp_path):
    write_folder(tmp_path / "images", pixels(1, 3, 3))
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path / "images" / "a.png")
    assert read(resolve(str(tmp_path / "images")))[0].unique().tolist() == [9]


@pytest.mark.parametrize("kind", ["data", "npz", "folder"])
def test_some_rows_of_a_side_are_spread_evenly_over_it(tmp_path, kind):
    images = pixels(1, 20)
    if kind == "data":
        whole = data_side("digits", Digits(size=8), "test")
    else:
        writes = {
            "npz": lambda: write_npz(tmp_path / "a.npz", images),
            "folder": lambda: write_folder(tmp_path / "a", images),
        }
        whole = resolve(str(writes[kind]()))
    few = spread(whole, 6)
    places = [i * whole.size // 6 for i in range(6)]
    everything = next(whole.read([range(whole.size)], whole.fields.keys()))
    found = list(few.read([range(4), range(4, 6)], few.fields.keys()))
    assert [len(batch["image"]) for batch in found] == [4, 2]
    for name, values in everything.items():
        assert torch.equal(torch.cat([batch[name] for batch in found]), values[places])
    assert (few.size, few.fields) == (6, whole.fields)
    assert few.fingerprint != whole.fingerprint
    assert few.data is None or few.data.read(torch.tensor([5]))["image"].equal(everything["image"][places[5:]])
    assert few.data is None or few.data.labels.equal(whole.data.labels[places])
    assert all(spread(whole, n) is whole for n in (None, whole.size, whole.size + 1))
    assert chosen_rows(whole, few)["rows"].startswith("6 spread evenly over")
    assert chosen_rows(whole, whole) == {}


def test_a_set_sorted_by_class_gives_rows_of_all_classes(tmp_path):
    images = np.arange(40).repeat(64).reshape(40, 8, 8, 1).astype(np.uint8)
    levels = read(spread(resolve(str(write_npz(tmp_path / "a.npz", images))), 10)).flatten(1)[:, 0]
    assert (levels // 10).bincount().tolist() == [3, 2, 3, 2]


def test_a_grey_image_among_coloured_ones_is_repeated_where_rows_are_spread(tmp_path):
    write_folder(tmp_path / "images", pixels(1, 3, 3))
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path / "images" / "a.png")
    found = read(spread(resolve(str(tmp_path / "images")), 2))
    assert found.shape == (2, 3, 8, 8)
    assert found[0].unique().tolist() == [9]


def test_a_preset_split_is_read_with_its_labels(tmp_path):
    side = resolve("digits:test")
    first = next(side.read([range(50)], ["image", "label"]))
    assert first["image"].shape == (50, 1, 28, 28)
    assert len(first["label"]) == 50
    assert side.classes == tuple("0123456789")
    assert side.name == "digits:test"


def test_a_folder_with_another_file_has_another_fingerprint(tmp_path):
    folder = write_folder(tmp_path / "images", pixels(1, 4))
    before = fingerprint(folder)
    assert fingerprint(folder) == before
    os.utime(folder / "part0" / "00000.png", ns=(1, 1))
    assert fingerprint(folder) != before


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": np.zeros((2, 8, 8, 3), np.uint8)}, "holds images; neither arr_0"),
        ({"arr_0": np.zeros((2, 8, 8, 3), np.float32)}, r"arr_0 is float32 \(2, 8, 8, 3\)"),
        ({"arr_0": np.zeros((2, 3, 8, 8), np.uint8)}, r"arr_0 is uint8 \(2, 3, 8, 8\)"),
        ({"arr_0": np.array([None, "x"])}, "Python objects, which are never unpickled"),
        ({"arr_0": np.zeros((2, 8, 8, 1), np.uint8), "arr_1": np.zeros(3, int)}, "beside 2 images"),
        ({"arr_0": np.zeros((2, 8, 8, 1), np.uint8), "arr_1": np.zeros(2)}, "arr_1 is float64"),
        ({"arr_0": np.asfortranarray(np.zeros((2, 8, 8, 3), np.uint8))}, "Fortran order"),
    ],
)
def test_npz_samples_that_cannot_be_are_refused(tmp_path, arrays, said):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=said) as error:
        resolve(str(tmp_path / "bad.npz"))
    assert "bad.npz" in error.value.problem
    assert error.value.hint


def test_damaged_npz_samples_are_refused(tmp_path):
    path = write_npz(tmp_path / "a.npz", pixels(1, 500), np.savez_compressed)
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    with pytest.raises(UserError, match=r"is not an \.npz"):
        resolve(str(path))
    path.write_bytes(whole[:20_000] + bytes(50) + whole[20_050:])
    with pytest.raises(UserError, match=r"a\.npz is damaged"):
        read(resolve(str(path)))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", b"no array")
    with pytest.raises(UserError, match="cannot be read as samples"):
        resolve(str(path))


def test_sides_that_do_not_exist_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no images")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for text, said in (
        (str(tmp_path / "empty"), "holds no images"),
        (str(tmp_path / "none"), "does not exist"),
        (str(tmp_path / "notes.txt"), "is a .txt file"),
        (str(tmp_path / "run"), "--ckpt"),
        ("digits:tset", "did you mean 'test'"),
        ("diggits:test", "did you mean 'digits'"),
    ):
        with pytest.raises(UserError) as error:
            resolve(text)
        assert said in f"{error.value}"


def test_images_of_two_sizes_in_a_folder_are_refused(tmp_path):
    folder = write_folder(tmp_path / "my images", pixels(1, 3))
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(folder / "z.png")
    with pytest.raises(
        UserError, match=r"sizes differ: part0/00000\.png and z\.png are 8x8 and 9x8 pixels \(HxW\)"
    ) as error:
        read(resolve(str(folder)))
    assert str(folder) in shlex.split(error.value.hint)
    assert error.value.hint.endswith("--size 8")


def test_a_corrupt_image_is_left_out_named_and_counted(tmp_path):
    folder = write_folder(tmp_path / "images", pixels(1, 3))
    whole = read(resolve(str(folder)))
    (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    side = resolve(str(folder))
    assert side.size == 3
    assert torch.equal(read(side), whole)
    (note,) = side.notes
    assert "1 of 4" in note
    assert "a.png" in note
    assert resolve(str(write_folder(tmp_path / "fine", pixels(1, 3)))).notes == ()


def test_what_is_broken_in_a_large_folder_is_looked_for_once_and_again_when_it_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sides, "WORTH_WORKERS", 2)
    decoded = []
    monkeypatch.setattr(sides, "broken_among", lambda files: decoded.append(len(files)) or broken_among(files))
    folder = write_folder(tmp_path / "images", pixels(1, 3))
    (folder / "a.png").write_bytes(b"no image")
    first, again = resolve(str(folder)), resolve(str(folder))
    assert (first.notes, first.size, decoded) == (again.notes, again.size, [4])
    (folder / "b.png").write_bytes(b"none either")
    assert "2 of 5" in resolve(str(folder)).notes[0]
    assert decoded == [4, 5]


def test_a_folder_of_nothing_that_can_be_decoded_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"no image can be decoded.*a\.png") as error:
        resolve(str(tmp_path))
    assert "whole images" in error.value.hint


def test_reading_ahead_keeps_the_order_and_a_bounded_distance():
    begun: list[int] = []

    def square(i: int) -> int:
        begun.append(i)
        return i * i

    results = read_ahead(square, range(100), workers=2)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert len(begun) <= 8
    assert list(results) == [i * i for i in range(3, 100)]


def test_flips_and_memory_settings_of_training_do_not_change_the_identity_of_data():
    from diffcli.data.datasets import Digits

    plain, flipped = (data_side("digits:test", Digits(flip=f), "test").fingerprint for f in (False, True))
    assert plain == flipped
    assert plain != data_side("digits:train", Digits(), "train").fingerprint


def test_memory_of_npz_samples_stays_that_of_a_batch(tmp_path, monkeypatch):
    path = write_npz(tmp_path / "a.npz", pixels(1, 200))
    largest = []
    original = npz.take
    monkeypatch.setattr(
        npz, "take", lambda file, dtype, shape: largest.append(shape[0]) or original(file, dtype, shape)
    )
    assert len(read(resolve(str(path)), batch_size=16)) == 200
    assert max(largest) == 16


def test_a_prepared_set_is_a_side(tmp_path):
    from diffcli.prep.prepare import prepare

    folder = write_folder(tmp_path / "images", pixels(1, 12, 3))
    list(prepare("folder", folder, tmp_path / "set", size=8, workers=1))
    source = resolve(str(tmp_path / "set"))
    assert as_set(read(source)) == as_set(read(resolve(str(folder))))
    assert resolve(f"{tmp_path / 'set'}:train").fingerprint == source.fingerprint


def test_no_command_of_a_checkpoint_is_run_to_score_it(trained: Path, tmp_path: Path) -> None:
    from diffcli.data.stream.stream_data import Stream
    from diffcli.engine.model import load_model

    witness = tmp_path / "ran"
    model = load_model(trained, torch.device("cpu"))
    data = Stream(shards=f"pipe:touch {witness}", test_shards=("a.tar", f"pipe:touch {witness}"), size=8, channels=1)
    other = dataclasses.replace(model, preset=model.preset.model_copy(update={"data": data}))
    for split in ("train", "test"):
        with pytest.raises(UserError, match="touch") as caught:
            own_side(other, split)
        assert "--ref" in caught.value.hint
    assert not witness.exists()


def test_a_reference_changes_with_any_of_the_sets_that_it_joins(tmp_path: Path) -> None:
    from diffcli.data.prepared import Shards
    from diffcli.prep.prepare import prepare

    for seed, name in enumerate(("one", "two")):
        list(prepare("folder", write_folder(tmp_path / f"{name}-images", pixels(seed, 3, 3)), tmp_path / name, size=8))
    config = Shards(root=tmp_path / "one", more=(tmp_path / "two",), size=8)
    before = data_side("both", config, "train").fingerprint
    assert before == data_side("both", config, "train").fingerprint
    record = tmp_path / "two" / "dataset.json"
    record.write_text(record.read_text().replace('"licence"', ' "licence"'))
    assert data_side("both", config, "train").fingerprint != before
