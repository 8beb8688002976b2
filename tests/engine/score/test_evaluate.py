"""Scoring end to end with a small extractor: every kind of side, the cache, the report and what is refused."""

import dataclasses
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffcli.config import ImageShape, UserError
from diffcli.engine.distributed import Group
from diffcli.engine.score import npz
from diffcli.engine.score.cache import cache_folder
from diffcli.engine.score.evaluate import evaluate
from diffcli.engine.score.features import ClassifierFeatures, extractor_for
from diffcli.engine.score.report import Report
from diffcli.engine.score.sides import Side, data_side, fingerprint, own_side, read_ahead, resolve
from diffcli.fields import FieldSpec
from diffcli.metrics.extractor import IMAGES, Extracted, check_images
from diffcli.metrics.keepers import MOMENTS
from diffcli.metrics.scores import metrics_by_name
from diffcli.metrics.statistics import Statistics
from diffcli.metrics.summary import Summary
from diffcli.noise import Noise

ALL = ["fid", "kid", "is", "precision", "recall", "accuracy"]


ALONE = Group(0, 1, torch.device("cpu"))


class Toy:
    """Means of the four quarters of an image; brightness decides between two classes. Counts the images it sees."""

    reads, limit, unit = IMAGES, None, "images"
    classes: tuple[str, ...] | None = ("dark", "bright")

    def __init__(self) -> None:
        self.name = "toy"
        self.gives = {"features": (4,), "logits": (2,)}
        self.notes: list[str] = []
        self.seen = 0

    def check(self, name, fields) -> None:
        check_images(name, fields, self.name)

    def __call__(self, fields, rows: range) -> Extracted:
        images = fields["image"]
        assert len(images) == len(rows)
        self.seen += len(images)
        x = torch.nn.functional.adaptive_avg_pool2d(images.float().mean(1, keepdim=True) / 64, 2).flatten(1)
        bright = x.mean(1) - 2
        return {"features": x, "logits": torch.stack([-bright, bright], 1)}

    def describe(self) -> dict[str, str]:
        return {"name": self.name, "layer": "quarters"}


def score(real: Side, fake: Side, names: list[str], extractor, **more) -> Report:
    """Fake scored against real."""
    extractors = {} if extractor is None else {"features": extractor}
    report = evaluate(metrics_by_name(names), {"samples": fake, "reference": real}, extractors, ALONE, **more)
    assert report is not None
    return report


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DIFFCLI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pixels(seed: int, n: int, channels: int = 1, size: int = 8) -> np.ndarray:
    """Random uint8 (N, H, W, C), each image of a brightness of its own."""
    noise = Noise(range(1000 * seed, 1000 * seed + n), torch.device("cpu"))
    level = noise(torch.empty(n, 1, 1, 1)) * 40 + 128
    return (level + noise(torch.empty(n, size, size, channels)) * 30).clamp(0, 255).to(torch.uint8).numpy()


def labels(images: np.ndarray) -> np.ndarray:
    return (images.mean((1, 2, 3)) > 128).astype(np.int64)


def write_npz(path: Path, images: np.ndarray, save=np.savez) -> Path:
    save(path, arr_0=images, arr_1=labels(images))
    return path


def write_folder(path: Path, images: np.ndarray) -> Path:
    for i, image in enumerate(images):
        file = path / f"part{i % 3}" / f"{i:05d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(file)
    return path


def spans(n: int, batch_size: int) -> list[range]:
    return [range(i, min(i + batch_size, n)) for i in range(0, n, batch_size)]


def read(side: Side, batch_size: int = 7) -> Tensor:
    return torch.cat([fields["image"] for fields in side.read(spans(side.size, batch_size), ["image"])])


def as_set(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


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


def test_grey_images_among_coloured_ones_are_repeated(tmp_path):
    write_folder(tmp_path / "images", pixels(1, 3, 3))
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path / "images" / "a.png")
    assert read(resolve(str(tmp_path / "images")))[0].unique().tolist() == [9]


def test_a_preset_split_is_read_with_its_labels(tmp_path):
    side = resolve("digits:test")
    first = next(side.read([range(50)], ["image", "label"]))
    assert first["image"].shape == (50, 1, 28, 28)
    assert len(first["label"]) == 50
    assert side.classes == tuple("0123456789")
    assert side.name == "digits:test"


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_equal_sides_score_perfectly_whatever_they_are_stored_as(tmp_path, kind):
    images = pixels(1, 60)
    real = resolve(str(write_npz(tmp_path / "real.npz", images)))
    write = {
        "npz": lambda: write_npz(tmp_path / "b.npz", images),
        "folder": lambda: write_folder(tmp_path / "b", images),
    }
    report = score(real, resolve(str(write[kind]())), ["fid", "precision", "recall"], Toy(), batch_size=16)
    assert report.scores == pytest.approx({"fid": 0, "precision": 1, "recall": 1}, abs=1e-5)
    assert (report.reference.n, report.samples.n) == (60, 60)


def test_every_metric_at_once_and_worse_where_images_differ(tmp_path):
    real = resolve(str(write_npz(tmp_path / "real.npz", pixels(1, 80))))
    alike = resolve(str(write_npz(tmp_path / "alike.npz", pixels(2, 80))))
    other = resolve(str(write_npz(tmp_path / "other.npz", pixels(3, 80) // 3)))
    good, bad = (score(real, fake, ALL, Toy()).scores for fake in (alike, other))
    assert list(good) == ["fid", "kid", "kid_std", "is", "is_std", "precision", "recall", "accuracy"]
    assert bad["fid"] > 5 * good["fid"]
    assert bad["recall"] < good["recall"] - 0.3
    assert good["accuracy"] == 1


def test_the_batch_size_does_not_change_a_score(tmp_path):
    real, fake = (resolve(str(write_npz(tmp_path / f"{i}.npz", pixels(i, 50)))) for i in (1, 2))
    one, two = (score(real, fake, ALL, Toy(), batch_size=b, cache=tmp_path / str(b)) for b in (50, 7))
    assert one.scores == pytest.approx(two.scores, abs=1e-9)


def test_progress_is_shown_and_details_are_kept(tmp_path):
    seen: list[tuple[str, int, int | None]] = []
    real, fake = (resolve(str(write_npz(tmp_path / f"{i}.npz", pixels(i, 40)))) for i in (1, 2))
    details = {"sampler": "ddim", "nfe": 50}
    watch = lambda *state: seen.append(state)  # noqa: E731
    report = score(real, fake, ["fid"], Toy(), batch_size=16, watch=watch, details=details)
    assert [done for name, done, _ in seen if name == fake.name] == [16, 32, 40]
    assert {total for _, _, total in seen} == {40}
    assert seen[0][0] == str(tmp_path / "1.npz")
    assert report.as_dict()["sampler"] == "ddim"
    assert any(line.split() == ["nfe", "50"] for line in report.lines())


def test_statistics_stand_for_the_images_they_came_from(tmp_path):
    real, fake = (resolve(str(write_npz(tmp_path / f"{i}.npz", pixels(i, 50)))) for i in (1, 2))
    summary = Summary([MOMENTS])
    summary.update(Toy()({"image": read(real)}, range(50)))
    summary.statistics()._replace(features="toy", layer="quarters").save(tmp_path / "stats.npz")
    from_images = score(real, fake, ["fid"], Toy()).scores["fid"]
    stats = resolve(str(tmp_path / "stats.npz"))
    report = score(stats, fake, ["fid"], Toy())
    assert report.scores["fid"] == pytest.approx(from_images, rel=1e-9)
    assert report.warnings == []
    assert score(stats, stats, ["fid"], None).scores["fid"] == pytest.approx(0, abs=1e-6)
    assert score(stats, stats, ["fid"], None).as_dict()["features"] == "toy"


def test_foreign_statistics_work_and_say_what_is_assumed(tmp_path):
    np.savez(tmp_path / "foreign.npz", mu=np.zeros(4), sigma=np.eye(4))
    fake = resolve(str(write_npz(tmp_path / "a.npz", pixels(1, 50))))
    report = score(resolve(str(tmp_path / "foreign.npz")), fake, ["fid"], Toy())
    assert report.scores["fid"] > 0
    assert any("toy is assumed" in w for w in report.warnings)
    assert any("do not say of how many images" in w for w in report.warnings)
    assert "an unknown number of images" in "\n".join(report.lines())


def test_the_reference_is_cached_and_scores_the_same(tmp_path, cache):
    real, fake = (resolve(str(write_npz(tmp_path / f"{i}.npz", pixels(i, 50)))) for i in (1, 2))
    extractor = Toy()
    first = score(real, fake, ALL, extractor)
    second = score(real, fake, ALL, extractor)
    assert extractor.seen == 150
    assert first.scores == second.scores
    assert (first.reference.cached, second.reference.cached) == (False, True)
    assert [p.name.split("-")[0] for p in cache.iterdir()] == ["toy"]
    score(real, fake, ["fid"], extractor)  # needs less than is there
    assert extractor.seen == 200


def test_a_cached_reference_that_lacks_a_part_is_gathered_again(tmp_path):
    real, fake = (resolve(str(write_npz(tmp_path / f"{i}.npz", pixels(i, 50)))) for i in (1, 2))
    score(real, fake, ["fid"], Toy())
    assert not score(real, fake, ["fid", "recall"], Toy()).reference.cached
    assert score(real, fake, ["fid", "recall"], Toy()).reference.cached


@pytest.mark.parametrize("damage", ["truncated", "garbled", "empty", "foreign"])
def test_a_damaged_cache_is_ignored_and_rebuilt(tmp_path, cache, damage):
    real, fake = (resolve(str(write_npz(tmp_path / f"{i}.npz", pixels(i, 50)))) for i in (1, 2))
    once = score(real, fake, ["fid"], Toy())
    (file,) = cache.iterdir()
    whole = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(whole[: len(whole) // 2])
    elif damage == "garbled":
        whole[150:180] = bytes(30)
        file.write_bytes(whole)
    elif damage == "empty":
        file.write_bytes(b"")
    else:
        np.savez(file, n=np.array(50), mu=np.zeros(3), sigma=np.eye(3))
    again = score(real, fake, ["fid"], Toy())
    assert again.scores == once.scores
    assert not again.reference.cached
    assert score(real, fake, ["fid"], Toy()).reference.cached


def test_changed_images_and_another_extractor_are_not_taken_from_the_cache(tmp_path):
    path, fake = tmp_path / "real.npz", resolve(str(write_npz(tmp_path / "fake.npz", pixels(2, 50))))
    score(resolve(str(write_npz(path, pixels(1, 50)))), fake, ["fid"], Toy())
    assert not score(resolve(str(write_npz(path, pixels(3, 50)))), fake, ["fid"], Toy()).reference.cached
    other = Toy()
    other.name = "another"
    assert not score(resolve(str(path)), fake, ["fid"], other).reference.cached


def test_a_folder_with_another_file_has_another_fingerprint(tmp_path):
    folder = write_folder(tmp_path / "images", pixels(1, 4))
    before = fingerprint(folder)
    assert fingerprint(folder) == before
    os.utime(folder / "part0" / "00000.png", ns=(1, 1))
    assert fingerprint(folder) != before


def test_a_cache_that_cannot_be_written_costs_a_warning_only(tmp_path):
    (tmp_path / "file").write_text("in the way")
    real, fake = (resolve(str(write_npz(tmp_path / f"{i}.npz", pixels(i, 50)))) for i in (1, 2))
    report = score(real, fake, ["fid"], Toy(), cache=tmp_path / "file" / "cache")
    assert any("could not be cached" in w for w in report.warnings)


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("DIFFCLI_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/diffcli")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "diffcli"


def test_the_report_names_everything_that_a_score_depends_on(tmp_path):
    real = resolve(str(write_npz(tmp_path / "real.npz", pixels(1, 50))))
    fake = resolve(str(write_npz(tmp_path / "fake.npz", pixels(2, 30, size=16))))
    report = score(real, fake, ["fid", "kid"], Toy())
    text = "\n".join(report.lines())
    for said in ("toy, layer quarters", "fake.npz, 30 images of 16x16x1", "real.npz, 50 images of 8x8x1", " +- "):
        assert said in text
    assert any("sides differ in size (16x16x1, 8x8x1)" in w for w in report.warnings)
    parsed = json.loads(json.dumps(report.as_dict()))
    assert parsed["scores"].keys() == {"fid", "kid", "kid_std"}
    assert parsed["reference"] == {"name": str(tmp_path / "real.npz"), "n": 50}
    assert parsed["features"] == "toy"


def refused(*args, **kwargs) -> UserError:
    with pytest.raises(UserError) as error:
        score(*args, **kwargs)
    assert error.value.hint
    return error.value


def test_sides_that_cannot_be_scored_so_are_refused_before_anything_is_read(tmp_path):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(4), sigma=np.eye(4))
    np.savez(tmp_path / "unlabelled.npz", arr_0=pixels(1, 5))
    stats, plain = resolve(str(tmp_path / "stats.npz")), resolve(str(tmp_path / "unlabelled.npz"))
    toy, blind, foreign = Toy(), Toy(), Toy()
    blind.gives = {"features": (4,)}
    foreign.classes = None
    assert "'fdi' is not a metric" in refused(plain, plain, ["fdi"], toy).problem
    assert "--metrics kid: needs images" in refused(stats, plain, ["kid"], toy).problem
    assert "there is no feature extractor" in refused(plain, stats, ["fid"], None).problem
    assert "is no classifier" in refused(plain, plain, ["is"], blind).problem
    assert "has no labels" in refused(plain, plain, ["accuracy"], toy).problem
    assert "are not those of the images" in refused(plain, plain, ["accuracy"], foreign).problem
    fields = {**plain.fields, "label": FieldSpec("classes")}
    named = dataclasses.replace(plain, name="pets", fields=fields, classes=("cat", "dog"))
    assert "has the classes cat, dog" in refused(plain, named, ["accuracy"], toy).problem
    assert toy.seen == blind.seen == foreign.seen == 0


def test_statistics_of_other_features_are_refused(tmp_path):
    fake = resolve(str(write_npz(tmp_path / "a.npz", pixels(1, 5))))
    Statistics(torch.zeros(4), torch.eye(4), 50, "another", "quarters").save(tmp_path / "named.npz")
    Statistics(torch.zeros(3), torch.eye(3), 50).save(tmp_path / "small.npz")
    named, small = (resolve(str(tmp_path / f"{n}.npz")) for n in ("named", "small"))
    assert "statistics of another, quarters, not of toy" in refused(named, fake, ["fid"], Toy()).problem
    assert "statistics of 3 features, but toy has 4" in refused(small, fake, ["fid"], Toy()).problem
    assert "different features, another (4) and unnamed (3)" in refused(named, small, ["fid"], None).problem


def test_too_few_images_are_refused(tmp_path):
    many = resolve(str(write_npz(tmp_path / "many.npz", pixels(1, 9))))
    one, three = (resolve(str(write_npz(tmp_path / f"{n}.npz", pixels(2, n)))) for n in (1, 3))
    assert "1 image cannot be scored by fid" in refused(many, one, ["fid"], Toy()).problem
    assert "1 image cannot be scored by fid" in refused(one, many, ["fid"], Toy()).problem
    error = refused(many, three, ["fid", "recall"], Toy())
    assert "3 images cannot be scored by recall" in error.problem
    assert "at least 4 images" in error.hint


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
    folder = write_folder(tmp_path / "images", pixels(1, 3))
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(folder / "z.png")
    with pytest.raises(UserError, match=r"sizes differ: 00000\.png and z\.png are 8x8 and 8x9") as error:
        read(resolve(str(folder)))
    assert "--size 8" in error.value.hint


def test_a_corrupt_image_is_named(tmp_path):
    folder = write_folder(tmp_path / "images", pixels(1, 3))
    (folder / "z.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(UserError, match=r"z\.png"):
        read(resolve(str(folder)))


def test_reading_ahead_keeps_the_order_and_a_bounded_distance():
    begun: list[int] = []

    def square(i: int) -> int:
        begun.append(i)
        return i * i

    results = read_ahead(square, range(100), workers=2)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert len(begun) <= 8
    assert list(results) == [i * i for i in range(3, 100)]


class ToyTask:
    """The two methods of a classifier task; features are a grey 4x4 image's pixels."""

    def features(self, x: Tensor) -> Tensor:
        assert x.shape[1:] == (1, 4, 4)
        return x.flatten(1)

    def logits(self, features: Tensor) -> Tensor:
        return features[:, :3]


def test_a_classifier_gets_images_in_its_own_range_shape_and_channels():
    extractor = ClassifierFeatures(ToyTask(), "toy", ImageShape(1, 4, 4), None)
    assert (extractor.gives, extractor.classes) == ({"features": (16,), "logits": (3,)}, ("0", "1", "2"))
    ramp = torch.tensor([0, 255, 51, 204] * 4, dtype=torch.uint8).reshape(1, 1, 4, 4)

    def features(images: Tensor) -> Tensor:
        return extractor({"image": images}, range(len(images)))["features"]

    torch.testing.assert_close(features(ramp)[0, :4], torch.tensor([-1.0, 1.0, -0.6, 0.6]))
    assert extractor.notes == []
    torch.testing.assert_close(features(ramp.repeat(1, 3, 1, 1)), features(ramp))
    stripes = torch.tensor([0, 255], dtype=torch.uint8).repeat(1, 1, 16, 8)
    resized = features(stripes).reshape(4, 4)
    torch.testing.assert_close(resized[:, 1:3], torch.zeros(4, 2), rtol=0, atol=1e-5)  # antialiased: grey, no stripes
    features(stripes)
    assert extractor.notes == [
        "images of 4x4x3 were converted to the 4x4x1 of toy",
        "images of 16x16x1 were converted to the 4x4x1 of toy",
    ]


def test_features_that_are_neither_extractor_nor_run_are_refused(tmp_path):
    with pytest.raises(UserError, match="did you mean 'inception'"):
        extractor_for("incepton")
    with pytest.raises(UserError, match="brings its own"):
        extractor_for(str(tmp_path), weights=tmp_path / "w.pth")


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


DIFFUSION = """
kind: diffusion
target: v
schedule: {kind: cosine, steps: 1000}
network: {kind: unet, width: 32, mult: [1], blocks: [res], attend_at: [], head_dim: 32}
conditioners: [{kind: class, num_classes: 10, dim: 8}]
"""


def save_run(path: Path, task: str) -> Path:
    """A run directory of preset digits with an untrained task of this kind."""
    import yaml

    from diffcli import checkpoint, preset

    tree = {"name": "tiny", "data": {"kind": "digits"}, "task": yaml.safe_load(task), "train": {"steps": 1}}
    built = preset.build(tree, "test")
    with torch.random.fork_rng():
        weights = built.task.build(built.data.shape).state_dict()
    record = {"preset": built.model_dump(mode="json"), "classes": list("0123456789"), "version": "0"}
    checkpoint.save(path / "checkpoints", 7, {"ema": weights, "task": weights, "optimizer": {}}, record)
    return path


def test_a_classifier_run_scores_images(tmp_path):
    run = save_run(tmp_path / "run", "{kind: classifier, num_classes: 10, network: {width: 4}}")
    extractor = extractor_for(str(run))
    assert extractor.name.startswith("tiny-step7-")
    assert (extractor.layer, extractor.gives) == ("penultimate", {"features": (16,), "logits": (10,)})
    assert extractor.classes == tuple("0123456789")
    side = dataclasses.replace(resolve("digits:test"), size=200)
    report = score(side, side, ["fid", "accuracy", "precision"], extractor, batch_size=100)
    assert report.scores["precision"] == 1
    assert 0 < report.scores["accuracy"] < 0.5  # untrained, but labels and logits do meet
    assert report.as_dict()["features"] == extractor.name


def test_a_run_that_is_no_classifier_is_refused_as_features(tmp_path):
    run = save_run(tmp_path / "run", DIFFUSION)
    with pytest.raises(UserError, match="is a run of a diffusion task") as error:
        extractor_for(str(run))
    assert "digits-classifier" in error.value.hint
    with pytest.raises(UserError, match="is a run or a checkpoint"):
        resolve(str(run))


def test_images_drawn_from_a_checkpoint_are_a_side(tmp_path):
    from diffcli.engine.draw.sample import SampleOptions, draw, load_model, request
    from diffcli.engine.score.generated import samples

    model = load_model(save_run(tmp_path / "run", DIFFUSION), torch.device("cpu"))
    req = request(model, SampleOptions(n=10, batch_size=4, steps=1))
    side = samples(req)
    drawn = torch.cat([batch.images for batch in draw(req, ALONE)])
    assert torch.equal(read(side, 4), drawn)
    assert torch.equal(next(side.read([range(7, 9)], ["image"]))["image"], drawn[7:9])
    run = save_run(tmp_path / "judge", "{kind: classifier, num_classes: 10, network: {width: 4}}")
    report = score(resolve("digits:test"), side, ["fid", "accuracy"], extractor_for(str(run)))
    assert str(report.samples) == f"samples of {model.path}, 10 images of 28x28x1"
    assert report.scores["fid"] > 0
    assert report.scores["accuracy"] in {k / 10 for k in range(11)}


def test_a_prepared_set_is_a_side(tmp_path):
    from diffcli.prep.prepare import prepare

    folder = write_folder(tmp_path / "images", pixels(1, 12, 3))
    list(prepare("folder", folder, tmp_path / "set", size=8, workers=1))
    source = resolve(str(tmp_path / "set"))
    assert as_set(read(source)) == as_set(read(resolve(str(folder))))
    assert resolve(f"{tmp_path / 'set'}:train").fingerprint == source.fingerprint


def test_no_command_of_a_checkpoint_is_run_to_score_it(trained: Path, tmp_path: Path) -> None:
    from diffcli.data.stream.stream import Stream
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
