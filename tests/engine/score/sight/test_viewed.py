"""Clips as the sides of a comparison: frames under a network of images, motion without any, order under a network of clips."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.data.clips.film_writing import write_frames
from diffcli.data.moving_digits import MovingDigits
from diffcli.engine.score.evaluate import evaluate
from diffcli.engine.score.onepass import Use
from diffcli.engine.score.sides import Side, data_side, resolve
from diffcli.engine.score.sight.viewed import check_named, for_side, over_clips, without_network
from diffcli.fields import FieldSpec
from diffcli.metrics.metric import Metric
from diffcli.metrics.motion.clip_networks import ClipNetwork
from diffcli.metrics.motion.over_frames import OverFrames
from diffcli.metrics.scores import metrics_by_name
from diffcli.metrics.statistics import frechet
from tests.engine.score.making import ALONE, Toy


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFCLI_CACHE", str(tmp_path / "cache"))


class Steps(ClipNetwork):
    """Features of motion: the mean brightness of each frame and its change, by ten rows."""

    name, layer, protocol = "steps", "change", "none"

    def __init__(self) -> None:
        super().__init__("cpu")
        self.gives = {"features": (8,)}

    def values(self, clips: Tensor) -> dict[str, Tensor]:
        rows = clips.mean((1, 4)).unflatten(2, (4, -1)).mean(-1)  # (B, T, 4)
        return {"features": torch.cat([rows.mean(1), rows.diff(dim=1).abs().mean(1)], 1)}


def side(split: str = "test", frames: int = 6, n: int = 60, change: Any = lambda clips: clips) -> Side:
    """Clips of moving digits, 16x16, each batch of clips changed."""
    whole = data_side("moving", MovingDigits(size=16, digit=10, frames=frames), split)

    def read(spans, fields):
        for batch in whole.read(spans, fields):
            yield {**batch, **({"clip": change(batch["clip"])} if "clip" in batch else {})}

    return replace(whole, size=n, read=read, identify=None)


def still(clips: Tensor) -> Tensor:
    return clips[:, :, :1].expand_as(clips)


def shuffled(clips: Tensor) -> Tensor:
    return clips[:, :, torch.randperm(clips.shape[2], generator=torch.Generator().manual_seed(0))]


def scores(samples: Side, names: list[str], network: Any = None, reference: Side | None = None) -> Mapping[str, float]:
    metrics: list[Metric] = metrics_by_name(names)
    sides = {"samples": samples, "reference": reference or side()}
    extractors = without_network({need.extractor for metric in metrics for need in metric.needs})
    if network is not None:
        extractors["features"] = over_clips(network, sides.values())
    report = evaluate(metrics, sides, extractors, ALONE, batch_size=25)
    assert report is not None
    assert report.samples.unit == "clips"
    assert (report.samples.n, report.samples.shape) == (60, (1, 16, 16))
    return report.scores


def test_a_frame_score_does_not_see_the_order_that_a_clip_score_sees():
    other = side(n=60, split="train")
    of_frames = {
        name: scores(s, ["fid"], Toy())["fid"] for name, s in (("same", other), ("mixed", side(change=shuffled)))
    }
    assert of_frames["mixed"] == pytest.approx(0, abs=1e-9)
    assert of_frames["same"] > 0
    of_clips = {
        name: scores(s, ["fvd"], Steps())["fvd"]
        for name, s in {"same": other, "mixed": side(change=shuffled), "still": side(change=still)}.items()
    }
    assert of_clips["mixed"] > 2 * of_clips["same"]
    assert of_clips["still"] > 2 * of_clips["same"]
    assert scores(side(), ["fvd"], Steps())["fvd"] == pytest.approx(0, abs=1e-9)


def test_fvd_is_the_distance_of_the_gaussians_of_the_features_of_clips():
    samples, reference = side(split="train"), side()
    moments = []
    for each in (samples, reference):
        x = Steps()(next(each.read([range(60)], ["clip"])), range(60))["features"].double()
        moments += [x.mean(0), x.T.cov()]
    assert scores(samples, ["fvd"], Steps(), reference)["fvd"] == pytest.approx(frechet(*moments[2:], *moments[:2]))


def test_the_report_says_how_long_clips_are_and_warns_where_the_sides_differ():
    def report(frames: int):
        sides = {"samples": side(frames=frames), "reference": side(frames=6)}
        found = evaluate(metrics_by_name(["fvd"]), sides, {"features": Steps()}, ALONE)
        assert found is not None
        return found

    assert "60 clips of 6 frames of 16x16x1" in str(report(6).reference)
    assert not [warning for warning in report(6).warnings if "frames" in warning]
    assert [warning for warning in report(5).warnings if "5 and 6 frames" in warning]


def test_fvd_refuses_a_network_of_images_and_images_a_network_of_clips():
    with pytest.raises(UserError, match="--metrics fvd: toy sees no clips") as error:
        scores(side(), ["fvd"], Toy())
    assert "r3d_18" in error.value.hint
    with pytest.raises(UserError, match="--metrics fid: steps sees whole clips") as other:
        scores(side(), ["fid"], Steps())
    assert "--metrics fvd" in other.value.hint
    images = replace(side(), fields={"image": side().fields["image"]})
    with pytest.raises(UserError, match="--features steps reads the field 'clip'"):
        scores(images, ["fvd"], Steps())


def test_fvd_without_a_network_of_clips_is_refused_before_anything_is_read():
    check_named(metrics_by_name(["fvd"]), "r3d_18")
    check_named(metrics_by_name(["fid"]), None)
    with pytest.raises(UserError, match="--metrics fvd needs a network of clips") as error:
        check_named(metrics_by_name(["kid", "fvd"]), None)
    assert "--features" in error.value.hint


def test_motion_is_that_of_the_data_and_jitter_is_seen():
    found = scores(side(split="train"), ["motion"])
    assert 0.3 < found["acceleration_ratio"] < 3
    mixed = scores(side(change=shuffled), ["motion"])
    assert mixed["acceleration_ratio"] > 5 > 5 * mixed["acceleration_reference"]
    assert scores(side(change=still), ["motion"])["step"] == 0


class Ink(Toy):
    """Two classes: nothing, and something."""

    def __call__(self, fields, rows):
        found = super().__call__(fields, rows)
        some = (fields["image"].flatten(1).amax(1) > 0).float()
        return {**found, "logits": 10 * torch.stack([1 - some, some], 1)}


def test_a_clip_of_which_a_frame_is_lost_is_not_kept():
    found = scores(side(), ["kept", "frame_similarity"], Ink())
    assert (found["kept"], found["kept_reference"]) == (1, 1)
    assert found["one_thing"] > 0.9
    gap = torch.arange(6).view(1, 1, 6, 1, 1) == 3
    lost = scores(side(change=lambda clips: clips.masked_fill(gap, 0)), ["kept", "frame_similarity"], Ink())
    assert lost["kept"] == 0
    assert lost["one_thing"] == pytest.approx(found["one_thing"] * 5 / 6, abs=0.02)
    assert lost["frame_similarity"] < found["frame_similarity"] - 0.2


def test_several_processes_are_told_the_shape_of_the_values_of_clips():
    each = for_side({"features": OverFrames(Toy()), **without_network({"motion"})}, side(frames=6))
    assert each["features"].gives == {"features": (6, 4), "logits": (6, 2), "similarity": (5,)}
    assert each["motion"].gives == {"places": (6, 2), "pieces": (6,)}
    assert Use(each["features"], None).extractor.describe()["layer"] == "quarters of each frame"  # type: ignore[arg-type]
    assert isinstance(over_clips(Toy(), [replace(side(), fields={"image": side().fields["image"]})]), Toy)


def test_a_folder_of_films_is_a_side_of_clips(tmp_path: Path):
    clips = MovingDigits(size=16, digit=10, frames=6).build("test").read(torch.arange(60))["clip"]
    for number, clip in enumerate(clips.permute(0, 2, 3, 4, 1).expand(-1, -1, -1, -1, 3).numpy()):
        write_frames(tmp_path / f"{number:06d}.webp", clip, fps=10, exact=True)
    found = resolve(str(tmp_path))
    assert found.fields["clip"].shape == (3, 6, 16, 16)
    report = evaluate(
        metrics_by_name(["motion"]), {"samples": found, "reference": side()}, without_network({"motion"}), ALONE
    )
    assert report is not None
    assert report.scores["acceleration_ratio"] == pytest.approx(1, rel=1e-3), "the same clips"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_clips_in_an_npz_are_a_side_of_clips(tmp_path: Path, save: Any):
    clips = MovingDigits(size=16, digit=10, frames=5).build("test").read(torch.arange(9))["clip"]
    save(tmp_path / "clips.npz", arr_0=clips.movedim(1, -1).numpy(), arr_1=np.arange(9))
    found = resolve(str(tmp_path / "clips.npz"))
    assert found.fields["clip"] == FieldSpec("clip", (1, 5, 16, 16))
    parts = list(found.read([range(2, 4), range(7, 9)], ["clip", "label"]))
    assert torch.equal(torch.cat([part["clip"] for part in parts]), clips[[2, 3, 7, 8]])
    assert [part["label"].tolist() for part in parts] == [[2, 3], [7, 8]]
