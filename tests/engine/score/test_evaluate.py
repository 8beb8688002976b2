"""Scoring with a small extractor: scores, statistics as sides, the report and what is refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diffcli.config import UserError
from diffcli.engine.score.evaluate import evaluate
from diffcli.engine.score.sides import Side, resolve
from diffcli.fields import FieldSpec
from diffcli.metrics.extractor import Extractor
from diffcli.metrics.keepers import MOMENTS
from diffcli.metrics.metric import Role
from diffcli.metrics.scores import metrics_by_name
from diffcli.metrics.statistics import Statistics
from diffcli.metrics.summary import Summary
from tests.engine.score.making import (
    ALL,
    ALONE,
    Toy,
    pixels,
    read,
    score,
    write_folder,
    write_npz,
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DIFFCLI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


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


def test_metrics_whose_extractor_side_or_values_are_not_there_are_refused(tmp_path):
    plain = resolve(str(write_npz(tmp_path / "plain.npz", pixels(1, 5))))

    def refusal(name: str, sides: dict[Role, Side], extractors: dict[str, Extractor]) -> str:
        with pytest.raises(UserError) as error:
            evaluate(metrics_by_name([name]), sides, extractors, ALONE)
        return error.value.problem

    toy = Toy()
    assert "needs the extractor 'bound' of reference; there is features" in refusal(
        "bpd", {"reference": plain}, {"features": toy}
    )
    assert "needs samples, and there are none" in refusal("is", {"reference": plain}, {"features": toy})
    blank = dataclasses.replace(plain, fields={"text": FieldSpec("text")})
    assert "reads the field 'image', but the data has only: text" in refusal(
        "fid", {"samples": plain, "reference": blank}, {"features": toy}
    )
    toy.gives = {"depths": (1,)}
    assert "needs 'features', but toy and" in refusal("fid", {"samples": plain, "reference": plain}, {"features": toy})
    assert toy.seen == 0


def test_statistics_of_other_features_are_refused(tmp_path):
    fake = resolve(str(write_npz(tmp_path / "a.npz", pixels(1, 5))))
    Statistics(torch.zeros(4), torch.eye(4), 50, "another", "quarters").save(tmp_path / "named.npz")
    Statistics(torch.zeros(3), torch.eye(3), 50).save(tmp_path / "small.npz")
    named, small = (resolve(str(tmp_path / f"{n}.npz")) for n in ("named", "small"))
    assert "statistics of another, quarters, not of toy" in refused(named, fake, ["fid"], Toy()).problem
    assert "statistics of 3 features, but toy has 4" in refused(small, fake, ["fid"], Toy()).problem
    Statistics(torch.zeros(4), torch.eye(4), 50, "third", "quarters").save(tmp_path / "third.npz")
    Statistics(torch.zeros(4), torch.eye(4), 50).save(tmp_path / "unnamed.npz")
    third, unnamed = (resolve(str(tmp_path / f"{n}.npz")) for n in ("third", "unnamed"))
    assert "different features, another (4) and third (4)" in refused(named, third, ["fid"], None).problem
    assert score(named, unnamed, ["fid"], None).scores["fid"] == pytest.approx(0, abs=1e-6)
    assert "different features, another (4) and unnamed (3)" in refused(named, small, ["fid"], None).problem


def test_too_few_images_are_refused(tmp_path):
    many = resolve(str(write_npz(tmp_path / "many.npz", pixels(1, 9))))
    one, three = (resolve(str(write_npz(tmp_path / f"{n}.npz", pixels(2, n)))) for n in (1, 3))
    assert "1 image cannot be scored by fid" in refused(many, one, ["fid"], Toy()).problem
    assert "1 image cannot be scored by fid" in refused(one, many, ["fid"], Toy()).problem
    error = refused(many, three, ["fid", "recall"], Toy())
    assert "3 images cannot be scored by recall" in error.problem
    assert "at least 4 images" in error.hint


def reference_batch(path: Path, images: np.ndarray, whole: np.ndarray, **more: np.ndarray) -> Side:
    """As Dhariwal & Nichol publish them: some images, and the statistics of the whole set by the same features."""
    features = Toy()({"image": torch.from_numpy(whole).permute(0, 3, 1, 2)}, range(len(whole)))["features"]
    mean, sigma = features.mean(0).double().numpy(), np.cov(features.double().numpy(), rowvar=False)
    np.savez(path, arr_0=images, **({"mu": mean, "sigma": sigma, "mu_s": mean, "sigma_s": sigma} | more))
    return resolve(str(path))


def test_of_a_reference_batch_fid_takes_the_statistics_and_precision_the_images(tmp_path):
    images, whole = pixels(1, 40), pixels(5, 90)
    batch = reference_batch(tmp_path / "batch.npz", images, whole)
    sides = [resolve(str(write_npz(tmp_path / f"{name}.npz", x))) for name, x in (("images", images), ("whole", whole))]
    fake = resolve(str(write_npz(tmp_path / "fake.npz", pixels(2, 40))))
    alone, all_of_it = (score(side, fake, ["fid", "precision", "recall"], Toy()).scores for side in sides)
    report = score(batch, fake, ["fid", "precision", "recall"], Toy())
    again = score(batch, fake, ["fid", "precision", "recall"], Toy())  # from the cache
    for found in (report, again):
        assert found.scores == pytest.approx({**alone, "fid": all_of_it["fid"]}, abs=1e-6)
        assert found.as_dict()["reference"] == {"name": batch.name, "n": 40, "statistics": "given"}
    assert alone["fid"] != pytest.approx(all_of_it["fid"], rel=0.05)
    assert "in the file" in next(line for line in report.lines() if line.startswith("reference"))


def test_the_images_of_a_reference_batch_are_read_only_where_a_metric_needs_them(tmp_path):
    batch = reference_batch(tmp_path / "batch.npz", pixels(1, 40), pixels(5, 90))
    fake, toy = resolve(str(write_npz(tmp_path / "fake.npz", pixels(2, 30)))), Toy()
    score(batch, fake, ["fid"], toy)
    assert toy.seen == 30


def test_statistics_of_other_features_beside_images_are_passed_over_with_a_warning(tmp_path):
    images = pixels(1, 40)
    batch = reference_batch(tmp_path / "batch.npz", images, images, mu=np.zeros(7), sigma=np.eye(7))
    fake = resolve(str(write_npz(tmp_path / "fake.npz", pixels(2, 40))))
    report = score(batch, fake, ["fid"], Toy())
    alone = score(resolve(str(write_npz(tmp_path / "images.npz", images))), fake, ["fid"], Toy())
    assert report.scores == alone.scores
    assert any("batch.npz" in warning and "images are used" in warning for warning in report.warnings)
