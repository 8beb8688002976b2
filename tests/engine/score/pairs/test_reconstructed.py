"""Scores of first stages: pairs and features in one pass, floors of the data at hand, and what is refused."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffcli.config import ImageShape, UserError
from diffcli.engine.draw.sample import SampleOptions
from diffcli.engine.model import Model
from diffcli.engine.score.evaluate import evaluate
from diffcli.engine.score.floor_scores import Size, floors, planned
from diffcli.engine.score.job import Scoring
from diffcli.engine.score.pairs.pair_scores import PairScores
from diffcli.engine.score.pairs.reconstructed import (
    floors_beside,
    originals,
    reconstructions,
    training_split,
)
from diffcli.engine.score.report import Report
from diffcli.engine.score.sides import Side, npz_side, resolve, spread
from diffcli.engine.stage import StageModel
from diffcli.fields import to_float, to_levels
from diffcli.metrics.nearness import psnr_of_bytes, ssim_of_bytes
from diffcli.metrics.scores import metrics_by_name
from diffcli.networks.lpips import Lpips, find_files
from diffcli.noise import Noise
from diffcli.prep.prepare import prepare
from tests.conftest import Cli, in_ranks
from tests.engine.draw.making import encoding
from tests.engine.score.making import (
    ALONE,
    DIFFUSION,
    FIRST_STAGE,
    Toy,
    pixels,
    read,
    save_run,
    write_folder,
    write_npz,
)


def scored(model: Model, reference: Side, names: list[str], **more: Any) -> Report:
    metrics = metrics_by_name(names)
    extractors = {"reconstruction": PairScores(metrics, torch.device("cpu")), **more.pop("extractors", {})}
    sides = {"reference": reference, "samples": reconstructions(StageModel(model), reference)}
    report = evaluate(metrics, sides, extractors, ALONE, **more)
    assert report is not None
    return report


def images(folder: Path, n: int = 20, size: int = 12, seed: int = 0) -> Side:
    return npz_side(write_npz(folder / f"{seed}-{n}.npz", pixels(seed, n, size=size)))


def test_scores_are_those_of_each_image_and_its_reconstruction_as_bytes(tmp_path: Path) -> None:
    model, reference = encoding(size=12), images(tmp_path)
    found = scored(model, reference, ["psnr", "ssim"], batch_size=7).scores
    original = read(reference)
    made = to_levels(model.task.reconstruct(to_float(original)))
    assert found["psnr"] == pytest.approx(psnr_of_bytes(made, original).mean().item(), abs=1e-4)
    assert found["psnr_std"] == pytest.approx(psnr_of_bytes(made, original).std(correction=0).item(), abs=1e-4)
    assert found["ssim"] == pytest.approx(ssim_of_bytes(made, original).mean().item(), abs=1e-5)


def test_every_image_is_reconstructed_once_however_many_look_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, reference = encoding(size=12), images(tmp_path)
    counted, reconstruct = [], StageModel.reconstruct

    def counting(self: StageModel, x: Tensor, vector: Tensor | None = None) -> Tensor:
        counted.append(len(x))
        return reconstruct(self, x, vector)

    monkeypatch.setattr(StageModel, "reconstruct", counting)
    report = scored(
        model, reference, ["psnr", "fid", "precision"], extractors={"features": Toy()}, batch_size=8, cache=tmp_path
    )
    assert counted == [8, 8, 4]
    assert report.scores["fid"] > 0
    assert report.samples is not None
    assert report.samples.n == report.reference.n == 20


def test_without_a_number_all_images_are_scored(tmp_path: Path) -> None:
    run, ref = save_run(tmp_path / "run", FIRST_STAGE), write_npz(tmp_path / "a.npz", pixels(0, 9, size=12))
    asked = Scoring((), run, str(ref), SampleOptions(), ["psnr"], None, None, True, floors=False)
    report = asked.run(ALONE)
    assert report is not None
    assert report.reference.n == 9
    assert not report.warnings


def test_a_reference_of_fewer_images_than_asked_for_is_a_note(tmp_path: Path) -> None:
    run, ref = save_run(tmp_path / "run", FIRST_STAGE), write_npz(tmp_path / "a.npz", pixels(0, 9, size=12))
    asked = Scoring((), run, str(ref), SampleOptions(n=25), ["psnr"], None, None, True, floors=False)
    report = asked.run(ALONE)
    assert report is not None
    assert report.warnings == [f"--n 25: {ref} has 9 images; all of them are scored"]


def test_where_its_data_have_no_test_split_the_hint_is_a_reference_that_can_be_scored(tmp_path: Path) -> None:
    write_folder(tmp_path / "my images", pixels(0, 4))
    list(prepare("folder", tmp_path / "my images", tmp_path / "my set"))
    model = encoding(size=8)
    for data in (
        {"kind": "shards", "root": tmp_path / "my set", "size": 8, "channels": 1},
        {"kind": "folder", "root": tmp_path / "my images", "size": 8, "channels": 1},
    ):
        own = model.preset.model_validate(model.preset.model_dump() | {"data": data})
        with pytest.raises(UserError, match="has no split 'test'") as refused:
            originals(replace(model, preset=own), None)
        named = shlex.split(refused.value.hint.split("--ref ")[1].replace(",", " "))[0]
        assert resolve(named).size == 4


def test_embeddings_of_the_reference_are_told_where_it_has_them(tmp_path: Path) -> None:
    model = encoding(size=12, embedding={"width": 3})
    plain = images(tmp_path)
    vectors = Noise(range(20), torch.device("cpu"))(torch.empty(20, 3))

    def with_vectors(spans, fields):
        for span, found in zip(spans, plain.read(spans, fields), strict=True):
            yield {**found, "clip_image": vectors[span.start : span.stop]}

    spec = model.task.reads["clip_image"]
    told = Side("told", 20, {**plain.fields, "clip_image": spec}, with_vectors)
    with_them, without = (read(reconstructions(StageModel(model), side)) for side in (told, plain))
    assert not with_them.equal(without)
    wrong = Side("told", 20, {**plain.fields, "clip_image": spec._replace(shape=(4,))}, with_vectors)
    with pytest.raises(UserError, match="clip_image"):
        reconstructions(StageModel(model), wrong)


SIZES = [  # image, downscale, channels, bits; kind, cell, k
    (Size(ImageShape(3, 32, 32), 4, 3, None), ("linear", (32, 32), 192)),
    (Size(ImageShape(3, 256, 256), 8, 4, None), ("linear", (8, 8), 4)),
    (Size(ImageShape(3, 32, 32), 4, 3, 9.0), ("table", (4, 4), 512)),
    (Size(ImageShape(1, 28, 28), 4, 2, np.log2(20)), ("table", (4, 4), 20)),
]


@pytest.mark.parametrize(("size", "expected"), SIZES)
def test_a_floor_has_as_many_numbers_or_codes_as_the_latent(size: Size, expected: tuple[str, Any, int]) -> None:
    plan = planned(size, Side("many", 10**6, {}))
    assert not isinstance(plan, str)
    assert (plan.kind, plan.cell, plan.k) == expected
    assert plan.images <= 65_536
    assert plan.images * np.prod(size.image) <= 2**28


def test_there_is_no_floor_where_nothing_is_left_out_or_too_little_is_known() -> None:
    many, few = Side("many", 10**6, {}), Side("few", 10, {})
    assert "64 numbers, an image 64" in str(planned(Size(ImageShape(1, 8, 8), 1, 1, None), many))
    assert "too many for k-means" in str(planned(Size(ImageShape(3, 256, 256), 4, 3, 18.0), many))
    assert "too many for k-means" in str(planned(Size(ImageShape(3, 8, 8), 4, 3, 9.0), few))
    assert "too few for 12" in str(planned(Size(ImageShape(1, 16, 16), 4, 12, None), Side("one", 0, {})))


def low_rank(folder: Path, seed: int, n: int = 40) -> Side:
    """Images that need three numbers each, up to their rounding to bytes."""
    basis = Noise([99], torch.device("cpu"))(torch.empty(1, 3, 8 * 8))[0]
    numbers = Noise(range(1000 * seed, 1000 * seed + n), torch.device("cpu"))(torch.empty(n, 3))
    levels = (128 + 12 * numbers @ basis).round().clamp(0, 255).to(torch.uint8)
    return npz_side(write_npz(folder / f"low{seed}.npz", levels.view(n, 8, 8, 1).numpy()))


def test_the_linear_floor_of_images_of_three_numbers_is_their_rounding(tmp_path: Path) -> None:
    training, reference = low_rank(tmp_path, 0), low_rank(tmp_path, 1)
    cpu = torch.device("cpu")

    def floor(channels: int) -> float:
        size = Size(ImageShape(1, 8, 8), 8, channels, None)
        (found,), notes = floors(size, training, reference, cpu, tmp_path / str(channels))
        assert not notes
        assert found["numbers"] == channels
        assert found["images"] == 40
        return found["psnr"]

    assert floor(3) > 55
    assert floor(2) < 45


def test_a_floor_that_is_known_is_not_measured_again(tmp_path: Path) -> None:
    training, reference = low_rank(tmp_path, 0), low_rank(tmp_path, 1)
    size, cpu, cache = Size(ImageShape(1, 8, 8), 4, 2, 3.0), torch.device("cpu"), tmp_path / "cache"
    once, _ = floors(size, training, reference, cpu, cache)

    def unread(spans, fields):
        raise AssertionError("it was read again")

    again, _ = floors(size, replace(training, read=unread), replace(reference, read=unread), cpu, cache)
    assert again == once
    (file,) = cache.glob("floor-*.json")
    file.write_text("{")
    assert floors(size, training, reference, cpu, cache)[0] == once
    with pytest.raises(AssertionError, match="read again"):
        floors(size._replace(bits=2.0), training, replace(reference, read=unread), cpu, cache)


def test_a_table_of_cells_is_no_better_than_the_cells_need(tmp_path: Path) -> None:
    """Images of two kinds of cells need one bit a cell."""
    dark, light = (np.full((4, 4), level, np.uint8) for level in (40, 200))
    rows = [
        np.block([[[dark, light][b >> i & 1] for i in (0, 1)], [[dark, light][b >> i & 1] for i in (2, 3)]])
        for b in range(16)
    ]
    side = npz_side(write_npz(tmp_path / "cells.npz", np.stack(rows)[..., None]))
    (found,), _ = floors(Size(ImageShape(1, 8, 8), 4, 2, 1.0), side, side, torch.device("cpu"), tmp_path)
    assert found["psnr"] == 100
    assert found["codes"] == 2


def test_floors_are_fitted_to_the_training_split_of_the_set_that_is_scored(tmp_path: Path) -> None:
    model = encoding(size=8)
    assert training_split(model, None).name == "encoding:train"
    assert training_split(model, "digits:test").name == "digits:train"
    folder = write_folder(tmp_path / "plain", pixels(0, 4))
    assert training_split(model, str(folder)).name == "encoding:train"


def test_a_training_split_that_cannot_be_read_is_told_and_no_other_takes_its_place(tmp_path: Path) -> None:
    model, images = encoding(size=8), tmp_path / "images"
    for split in ("train", "test"):
        write_folder(images / split, pixels(0, 4))
    list(prepare("folder", images, tmp_path / "set"))
    write_folder(tmp_path / "few" / "test", pixels(0, 4))
    list(prepare("folder", tmp_path / "few", tmp_path / "lone"))
    ref = f"{tmp_path / 'set'}:test"
    assert training_split(model, ref).name == f"{tmp_path / 'set'}:train"
    assert training_split(model, str(tmp_path / "set")).name == f"{tmp_path / 'set'}:train"
    assert training_split(model, f"{tmp_path / 'lone'}:test").name == "encoding:train"
    for shard in (tmp_path / "set").glob("train-*"):
        shard.unlink()
    found, notes = floors_beside(
        StageModel(model), ref, resolve(ref), ImageShape(1, 8, 8), tmp_path / "cache", watch=None
    )
    assert not found
    assert "train-" in " ".join(notes)


def test_a_cache_that_cannot_be_written_is_a_note_and_other_images_have_no_floor(tmp_path: Path) -> None:
    (file := tmp_path / "file").touch()
    model = encoding(size=8)
    stage, reference = StageModel(model), spread(originals(model, None), 50)
    (found,), notes = floors_beside(stage, None, reference, ImageShape(1, 8, 8), file / "cache", None)
    assert found["images"] == 9000
    assert "could not be cached" in " ".join(notes)
    none, notes = floors_beside(stage, None, images(tmp_path), ImageShape(1, 12, 12), tmp_path, None)
    assert not none
    assert "no floor" in " ".join(notes)


def test_the_command_prints_scores_beside_their_floor(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFCLI_CACHE", str(tmp_path / "cache"))
    run = save_run(tmp_path / "run", FIRST_STAGE)
    asked = ("fid", "--ckpt", run, "--n", 40, "--device", "cpu")
    told = json.loads(cli(*asked, "--metrics", "psnr,ssim", "--json").out)
    assert told["reference"] == {"name": "tiny:test", "n": 40}
    assert told["latent"] == [1, 7, 7]
    (floor,) = told["floors"]
    assert floor["numbers"] == 49
    assert floor["psnr"] > 15
    lines = cli(*asked, "--metrics", "psnr").out
    assert "dB by principal components of whole images, 49 numbers" in lines
    without = cli(*asked, "--metrics", "psnr", "--no-floors").out
    assert "principal components" not in without
    assert "psnr" in without


def test_what_does_not_fit_a_first_stage_is_refused(tmp_path: Path, cli: Cli) -> None:
    run, other = save_run(tmp_path / "run", FIRST_STAGE), save_run(tmp_path / "other", DIFFUSION)
    cpu = ("--device", "cpu")
    cli("fid", "digits:train", "digits:test", "--metrics", "psnr", *cpu).refused(
        "--metrics psnr needs a model", "--ckpt"
    )
    cli("fid", "--ckpt", other, "--metrics", "psnr,fid", *cpu).refused("is a diffusion model, no first stage")
    judge = save_run(tmp_path / "judge", "{kind: classifier, num_classes: 10, network: {width: 4}}")
    cli("fid", "--ckpt", judge, "--metrics", "psnr", *cpu).refused("judge", "is a classifier, no first stage")
    cli("fid", "--ckpt", run, "--metrics", "bpd", *cpu).refused("is a first stage, no diffusion model")
    cli("fid", "--ckpt", run, "--metrics", "psnr,bpd", *cpu).refused(
        "bpd is of a diffusion model, psnr of a first stage"
    )
    cli("fid", "--ckpt", run, "--metrics", "psnr", "--steps", 3, *cpu).refused("--steps 3", "first stage")
    cli("fid", "--ckpt", run, "--metrics", "psnr", "--features", "inception", *cpu).refused("--features inception")
    statistics = tmp_path / "statistics.npz"
    np.savez(statistics, mu=np.zeros(4), sigma=np.eye(4))
    cli("fid", "--ckpt", run, "--ref", statistics, "--metrics", "psnr", *cpu).refused("statistics", "reconstructed")
    odd = write_folder(tmp_path / "odd", pixels(0, 4, size=10))
    cli("fid", "--ckpt", run, "--ref", odd, "--metrics", "psnr", *cpu).refused(
        "10x10 pixels (HxW), which its downscale 4", f"diffcli prep-data folder {odd} --out DIR --size 8"
    )
    coloured = write_folder(tmp_path / "coloured", pixels(0, 4, channels=3))
    cli("fid", "--ckpt", run, "--ref", coloured, "--metrics", "psnr", *cpu).refused("3 channels", "takes 1")
    small = write_folder(tmp_path / "small", pixels(0, 4, size=8))
    cli("fid", "--ckpt", run, "--ref", small, "--metrics", "ssim", *cpu).refused("images of 8 pixels, fewer than 11")


def test_lpips_without_its_weights_says_where_they_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"--metrics holds lpips, but .*vgg16") as refused:
        PairScores(metrics_by_name(["psnr", "lpips"]), torch.device("cpu"))
    assert "metrics.lpips.weights=FILE" in refused.value.hint
    with pytest.raises(UserError, match=r"here\.pth is not there"):
        PairScores(metrics_by_name(["lpips"], {"lpips": {"weights": tmp_path / "here.pth"}}), torch.device("cpu"))


def test_lpips_of_a_pair_is_that_of_its_network_in_all_three_channels(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Lpips().requires_grad_(False)
    file = tmp_path / "vgg.pth"
    torch.save({f"features.{name}": value for name, value in network.features.state_dict().items()}, file)
    scores = PairScores(metrics_by_name(["lpips"], {"lpips": {"weights": file}}), torch.device("cpu"))
    image, other = (torch.from_numpy(pixels(seed, 2, size=16)).permute(0, 3, 1, 2) for seed in (0, 1))
    found = scores({"image": torch.stack([image[0], other[1]]), "original": image}, range(2))["lpips"]
    network.load(find_files(file))
    assert found[0] == 0
    x, y = (to_float(levels[1:]).expand(-1, 3, -1, -1) for levels in (other, image))
    assert found[1].item() == pytest.approx(network(x, y).item(), rel=1e-5)
    assert found[1] > 0


@pytest.mark.slow
def test_two_processes_find_the_scores_of_one(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", FIRST_STAGE)
    asked = ("fid", "--ckpt", run, "--n", 30, "--batch-size", 8, "--metrics", "psnr,ssim", "--device", "cpu", "--json")
    told = []
    for processes in (1, 2):
        done = in_ranks(*asked, "--nproc", processes, DIFFCLI_CACHE=str(tmp_path / str(processes)))
        assert done.code == 0, done.err
        told.append(json.loads(done.out))
    assert told[0]["scores"] == pytest.approx(told[1]["scores"], rel=1e-6)
    assert told[0]["floors"] == told[1]["floors"]
