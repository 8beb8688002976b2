"""Scores of pairs: samples under the rows of a reference beside their originals, the same for any split, with their floors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffcli import checkpoint
from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.data.datasets import Digits
from diffcli.data.derived import LowRes
from diffcli.engine.draw.sample import SampleOptions, request, sampled
from diffcli.engine.model import Model, load_model
from diffcli.engine.score.evaluate import evaluate
from diffcli.engine.score.job import Scoring
from diffcli.engine.score.pairs.drawn_pairs import DrawnRows, paired, pairs, pictured
from diffcli.engine.score.pairs.followed import Following, enlarged_floor
from diffcli.engine.score.pairs.pair_scores import PairScores
from diffcli.engine.score.report import Report
from diffcli.engine.score.sides import data_side, spread
from diffcli.fields import to_float, to_levels
from diffcli.metrics.adherence import edges_f1
from diffcli.metrics.nearness import psnr_of_bytes, ssim_of_bytes
from diffcli.metrics.scores import metrics_by_name
from tests.conftest import ROOT, Cli, changed, in_ranks
from tests.engine.draw.making import random_model
from tests.engine.one_level import SMALL
from tests.engine.score.making import ALONE

UPSCALER = {
    "data": {"kind": "digits", "size": 16, "derived": [{"kind": "low_res", "factor": 2}]},
    "task__conditioners": [{"kind": "spatial", "channels": 1}],
    "task__drop_condition": 0,
    "guidance": 1,
    "sampler": {"kind": "ddim", "steps": 2},
}
FOLLOWER = UPSCALER | {
    "data": {"kind": "digits", "size": 16, "derived": [{"kind": "edges"}]},
    "task__conditioners": [{"kind": "spatial", "field": "edges", "channels": 1}],
}

REGRESSION = UPSCALER | {
    "task": {"kind": "super_resolution", "network": {"width": 8, "depth": 1}},
    "task__conditioners": None,
    "task__drop_condition": None,
    "sampler": None,
}


def model_of(tree: dict[str, Any]) -> Model:
    return random_model(presets.build(changed(SMALL, **tree), "pairs.yaml"), "pairs")


def save(path: Path, tree: dict[str, Any]) -> Path:
    """A run directory of an untrained model."""
    built = presets.build(changed(SMALL, **tree), "pairs.yaml")
    weights = random_model(built, "pairs").task.state_dict()
    record = {"preset": built.model_dump(mode="json"), "classes": None, "version": "0"}
    checkpoint.save(path / "checkpoints", 7, {"ema": weights, "task": weights, "optimizer": {}}, record)
    return path


def scored(model: Model, names: list[str], n: int = 6, mean_of: int = 1, **more: Any) -> Report:
    metrics, reference = metrics_by_name(names), spread(paired(model, None), n)
    req = request(model, SampleOptions(n=n, seed=3, batch_size=more.get("batch_size", 64)), reference)
    following = Following(model, metrics)
    extractors: dict[str, Any] = {"reconstruction": PairScores(metrics, torch.device("cpu"))}
    extractors |= {"condition": following} if following.derived else {}
    sides = {"reference": reference, "samples": pairs(DrawnRows(req, mean_of), model, reference, following.fields)}
    report = evaluate(metrics, sides, extractors, ALONE, **more)
    assert report is not None
    return report


def rows(model: Model, n: int = 6) -> dict[str, Tensor]:
    data = spread(paired(model, None), n).data
    assert data is not None
    return data.read(torch.arange(n))  # type: ignore[return-value]


def lowered(images: Tensor, side: int) -> Tensor:
    """Through Pillow, one by one."""
    small = [Image.fromarray(i[0].numpy()).resize((side, side), Image.Resampling.BICUBIC) for i in images]
    return torch.from_numpy(np.stack([np.asarray(i) for i in small]))[:, None]


def test_scores_are_those_of_each_sample_and_the_original_of_its_condition() -> None:
    model = model_of(UPSCALER)
    found = scored(model, ["psnr", "ssim", "consistency"]).scores
    req = request(model, SampleOptions(n=6, seed=3), spread(paired(model, None), 6))
    made, fields = sampled(req, range(6)), rows(model)
    assert found["psnr"] == pytest.approx(psnr_of_bytes(made, fields["image"]).mean().item(), abs=1e-4)
    assert found["ssim"] == pytest.approx(ssim_of_bytes(made, fields["image"]).mean().item(), abs=1e-5)
    assert found["consistency"] == pytest.approx(
        psnr_of_bytes(lowered(made, 8), fields["low_res"]).mean().item(), abs=1e-4
    )


def test_scores_do_not_depend_on_the_batch_size() -> None:
    model, names = model_of(FOLLOWER), ["psnr", "follows"]
    whole, split = scored(model, names, batch_size=64).scores, scored(model, names, batch_size=4).scores
    assert split == pytest.approx(whole, abs=0.05)  # a level may round the other way


def test_originals_follow_their_conditions_and_are_consistent_with_them() -> None:
    """An extractor that is shown the originals themselves; under the edges of another image they follow less."""
    for tree, kind, best in ((UPSCALER, "consistency", 100), (FOLLOWER, "follows", 1)):
        model = model_of(tree)
        reference = spread(paired(model, None), 6)
        following = Following(model, metrics_by_name([kind]))
        req = request(model, SampleOptions(n=6), reference)
        side = pairs(DrawnRows(req, 1), model, reference, following.fields)
        assert side.read is not None
        (fields,) = side.read([range(6)], side.fields.keys())
        found = following({**fields, "image": fields["original"]}, range(6))
        assert found[kind].tolist() == pytest.approx([best] * 6)
        if kind == "follows":
            edges = rows(model)["edges"] >= 128
            assert torch.equal(found["shuffled"], edges_f1(edges, edges.roll(-3, 0)))
            assert found["shuffled"].mean() < 0.9


def test_the_mean_of_samples_is_scored_as_bytes() -> None:
    model = model_of(UPSCALER)
    reference, count = spread(paired(model, None), 6), 3
    found = scored(model, ["psnr"], mean_of=count)
    samples = [sampled(request(model, SampleOptions(n=6, seed=3 + 6 * k), reference), range(6)) for k in range(count)]
    mean = torch.stack(samples).double().mean(0).round().to(torch.uint8)
    assert found.scores["psnr"] == pytest.approx(psnr_of_bytes(mean, rows(model)["image"]).mean().item(), abs=1e-4)
    assert found.samples is not None
    assert "means of 3 samples" in found.samples.name


def test_the_floor_is_pillows_bicubic_enlargement() -> None:
    model = model_of(UPSCALER)
    reference = spread(paired(model, None), 6)
    floor = enlarged_floor(model.preset.data.derived[0], reference, ["psnr", "ssim", "consistency"])
    fields = rows(model)
    large = lowered(fields["low_res"], 16)
    assert floor["psnr"] == pytest.approx(psnr_of_bytes(large, fields["image"]).mean().item())
    assert floor["ssim"] == pytest.approx(ssim_of_bytes(large, fields["image"]).mean().item())
    assert floor["consistency"] == pytest.approx(psnr_of_bytes(lowered(large, 8), fields["low_res"]).mean().item())


def test_conditions_are_derived_of_a_reference_that_has_images_alone() -> None:
    model = model_of(UPSCALER)
    with pytest.raises(UserError, match="differ in shape"):
        paired(model, "digits:test")
    large = model_of(UPSCALER | {"data__size": 28})
    side = paired(large, "digits:test")
    assert side.fields["low_res"].shape == (1, 14, 14)
    assert side.data is not None
    assert torch.equal(
        side.data.read(torch.arange(3))["low_res"], paired(large, None).data.read(torch.arange(3))["low_res"]
    )


def test_a_folder_of_pictures_of_any_size_is_a_reference_of_a_model_told_what_is_made_of_them(tmp_path: Path) -> None:
    for number, size in enumerate([(40, 30), (16, 16), (64, 20)]):
        Image.new("RGB", size, (40 * number, 9, 200)).save(tmp_path / f"{number}.png")
    model = model_of(UPSCALER)
    side = paired(model, str(tmp_path))
    assert side.size == 3
    assert side.fields["image"].shape == (1, 16, 16)
    assert side.data is not None
    read = side.data.read(torch.arange(3))
    assert torch.equal(read["low_res"], lowered(read["image"], 8))


def test_the_distance_of_images_is_measured_under_the_pictures_of_a_folder(cli: Cli, tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (20 + number, 30), (80 * number, 9, 200)).save(tmp_path / f"{number}.png")
    run, features = save(tmp_path / "run", UPSCALER), ("--features", ROOT / "tests/fixtures/format1/classifier")
    done = cli("fid", "--ckpt", run, "--ref", tmp_path, "--n", 3, "--device", "cpu", "--json", *features)
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["reference"] == {"name": str(tmp_path), "n": 3}
    assert told["conditions"].startswith(f"low_res of {tmp_path}")


def test_the_command_reports_scores_floors_and_protocols(cli: Cli, tmp_path: Path) -> None:
    run = save(tmp_path / "run", UPSCALER)
    asked = ["fid", "--ckpt", run, "--n", 5, "--metrics", "psnr,ssim,consistency", "--device", "cpu"]
    done = cli(*asked, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["scores"].keys() == {f"{kind}{std}" for kind in ("psnr", "ssim", "consistency") for std in ("", "_std")}
    assert "factor 2, kernel bicubic" in told["consistency_protocol"]
    (floor,) = told["floors"]
    assert floor["what"] == "bicubic enlargement (Pillow) of 'low_res', which is smaller by 2 (bicubic)"
    assert told["reference"] == {"name": "tiny:test", "n": 5}
    assert (told["sampler"], told["nfe"], told["mean_of"]) == ("ddim", 2, 1)
    lines = cli(*asked, "--mean-of", 2).out
    assert "dB by bicubic enlargement" in lines
    assert "means of 2 samples" in lines
    assert "bicubic enlargement" not in cli(*asked, "--no-floors").out
    follower = save(tmp_path / "follower", FOLLOWER)
    lines = cli("fid", "--ckpt", follower, "--n", 4, "--metrics", "psnr,follows", "--device", "cpu").out
    assert "against the condition of another image" in lines
    assert "F1 of edges within 1 pixel: edges of the image (sigma 1.0, low 0.05, high 0.12)" in lines


def test_a_network_of_one_step_is_scored_by_the_same_pairs(cli: Cli, tmp_path: Path) -> None:
    run = save(tmp_path / "run", REGRESSION)
    asked = ["fid", "--ckpt", run, "--n", 5, "--device", "cpu"]
    done = cli(*asked, "--metrics", "psnr,consistency", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    task, fields = model_of(REGRESSION).task, rows(model_of(REGRESSION), 5)
    made = to_levels(task.enlarged(to_float(fields["low_res"])))
    assert told["scores"]["psnr"] == pytest.approx(psnr_of_bytes(made, fields["image"]).mean().item(), abs=1e-4)
    assert "bicubic enlargement" in told["floors"][0]["what"]
    assert told["images"]["name"].startswith("enlargements by")
    for options, words in (
        (["--metrics", "psnr", "--steps", 3], "--steps 3"),
        (["--metrics", "psnr", "--mean-of", 3], "--mean-of 3"),
        (["--metrics", "psnr", "--project"], "--project: "),
    ):
        cli(*asked, *options).refused(words, "in one step")


def test_pairs_are_drawn_in_tiles_and_under_noise_as_sample_draws_them(tmp_path: Path) -> None:
    noised = UPSCALER | {"task__conditioners": [{"kind": "spatial", "channels": 1, "augment": 0.4}]}
    run = save(tmp_path / "run", noised)
    found = {}
    for name, how in (("plain", {}), ("tiles", {"tile": 8}), ("noise", {"augment": 0.4})):
        scoring = Scoring((), run, None, SampleOptions(n=3, **how), ["psnr"], None, None, True, floors=False)
        report = scoring.run(ALONE)
        assert report is not None
        reference = spread(paired(load_model(run, torch.device("cpu")), None), 3)
        req = request(load_model(run, torch.device("cpu")), SampleOptions(n=3, **how), reference)
        drawn = psnr_of_bytes(sampled(req, range(3)), rows(model_of(noised), 3)["image"]).mean().item()
        found[name] = report.scores["psnr"]
        assert found[name] == pytest.approx(drawn, abs=1e-4)
        assert report.details["rows"].startswith("3 spread evenly over")
    assert len({round(score, 3) for score in found.values()}) == 3


def test_options_of_large_pictures_are_refused_where_none_are_drawn(cli: Cli, trained: Path, tmp_path: Path) -> None:
    cli("fid", "digits:train", "digits:test", "--tile", 8).refused("--tile 8 with two sides")
    cli("fid", trained, "--metrics", "bpd", "--exact-tiles").refused("--exact-tiles", "the bound")
    cli("fid", save(tmp_path / "run", UPSCALER), "--metrics", "psnr", "--augment", 0.2).refused("--augment 0.2")


@pytest.mark.slow
def test_scores_are_the_same_on_two_processes(tmp_path: Path) -> None:
    run = save(tmp_path / "run", UPSCALER)
    asked = [
        "fid",
        "--ckpt",
        run,
        "--n",
        7,
        "--batch-size",
        2,
        "--metrics",
        "psnr,consistency",
        "--device",
        "cpu",
        "--json",
    ]
    one, two = (in_ranks(*asked, "--nproc", n) for n in (1, 2))
    assert two.code == 0, two.err
    assert json.loads(two.out)["scores"] == pytest.approx(json.loads(one.out)["scores"], abs=1e-9)


def test_what_cannot_be_scored_in_pairs_is_refused(cli: Cli, tmp_path: Path, trained: Path) -> None:
    run, follower = save(tmp_path / "run", UPSCALER), save(tmp_path / "follower", FOLLOWER)
    for options, words in (
        (["--ckpt", run, "--metrics", "follows"], ["none of edges, sketch, colour, grey", "score consistency"]),
        (["--ckpt", follower, "--metrics", "consistency"], ["none of low_res", "score follows"]),
        (["--ckpt", trained, "--metrics", "consistency"], ["draws under no picture"]),
        (["--ckpt", run, "--metrics", "psnr,fid", "--mean-of", 2], ["--mean-of 2", "smoother"]),
        (["--ckpt", trained, "--metrics", "fid", "--mean-of", 2], ["--mean-of 2", "psnr, ssim or lpips"]),
        (["digits:train", "digits:test", "--metrics", "consistency"], ["needs a model"]),
        (["--ckpt", run, "--metrics", "psnr", "--ref", tmp_path / "a.npz"], ["originals", "NAME:SPLIT"]),
    ):
        np.savez(tmp_path / "a.npz", arr_0=np.zeros((3, 16, 16, 1), np.uint8))
        cli("fid", *options, "--device", "cpu").refused(*words)


def test_a_model_that_no_picture_conditions_has_no_pairs(trained: Path) -> None:
    assert pictured(model_of(UPSCALER)) == ["low_res"]
    assert pictured(model_of({})) == []
    scoring = Scoring((), trained, None, SampleOptions(n=4), ["psnr"], None, None, True)
    with pytest.raises(UserError, match="no first stage, and draws under no picture"):
        scoring.run(ALONE)


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "psnr", "ssim"), [(2, 19.67, 0.828), (4, 14.45, 0.394)])
def test_the_floor_of_the_test_images_of_mnist_is_the_known_one(factor: int, psnr: float, ssim: float) -> None:
    config = Digits(derived=(LowRes(factor=factor),))
    held, most = (data_side(split, config, split) for split in ("test", "train"))
    few, many = (enlarged_floor(config.derived[0], side, ["psnr", "ssim"]) for side in (held, most))
    assert few["images"] + many["images"] == 10_000
    assert 0.1 * few["psnr"] + 0.9 * many["psnr"] == pytest.approx(psnr, abs=0.005)
    assert 0.1 * few["ssim"] + 0.9 * many["ssim"] == pytest.approx(ssim, abs=0.0005)
