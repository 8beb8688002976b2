"""fid of a model that tells masks: every score is the one of its masks, image by image, whatever the batch."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from diffcli.data.cluttered import DigitsSegmentation
from diffcli.engine.draw.given import Value
from diffcli.engine.draw.masks.segmenting import segmenter
from diffcli.engine.draw.sample import SampleOptions, load_model
from tests.conftest import Cli
from tests.engine.draw.masks.mask_runs import SIZE, trained
from tests.engine.draw.masks.mask_runs import tree as mask_tree

ALL = "dice,iou,ged,hm_iou,ece"
N = 6


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("scored")
    return {kind: trained(folder, kind) for kind in ("diffusion", "segmentation")}


def scores(cli: Cli, *arguments: object) -> dict:
    done = cli("fid", "--json", "--n", N, *arguments)
    assert done.code == 0, done.err
    return json.loads(done.out)


def overlap(a: torch.Tensor, b: torch.Tensor) -> float:
    union = (a | b).sum()
    return 1.0 if union == 0 else float((a & b).sum() / union)


@pytest.mark.parametrize(("kind", "ensemble"), [("diffusion", 3), ("segmentation", 1)])
def test_scores_are_those_of_the_masks_that_sample_tells(runs: dict[str, Path], kind: str, ensemble: int, cli: Cli):
    how = ("--ensemble", ensemble) if kind == "diffusion" else ()
    report = scores(cli, "--ckpt", runs[kind], "--metrics", ALL, "--seed", 4, *how)
    rows = DigitsSegmentation(size=SIZE).build("test")
    rows = rows.read(torch.arange(N) * len(rows) // N)
    model = load_model(runs[kind], torch.device("cpu"))
    told = segmenter(model, SampleOptions(seed=4), Value(rows["image"], []), N, ensemble).segment(range(N))
    mask, samples = told.probability[:, 1] > 0.5, told.samples.bool()
    truth, annotators = rows["mask"][:, 0].bool(), rows["masks"].bool()
    dice, iou, ged = [], [], []
    for i in range(N):
        both, sizes = (mask[i] & truth[i]).sum(), mask[i].sum() + truth[i].sum()
        dice.append(1.0 if sizes == 0 else float(2 * both / sizes))
        iou.append(overlap(mask[i], truth[i]))
        means = [
            sum(1 - overlap(a, b) for a, b in product(one, other)) / (len(one) * len(other))
            for one, other in ((samples[i], annotators[i]), (samples[i], samples[i]), (annotators[i], annotators[i]))
        ]
        ged.append(2 * means[0] - means[1] - means[2])
    found = report["scores"]
    assert found["dice"] == pytest.approx(sum(dice) / N, abs=1e-5)
    assert found["iou"] == pytest.approx(sum(iou) / N, abs=1e-5)
    assert found["ged"] == pytest.approx(sum(ged) / N, abs=1e-5)
    assert 0 <= found["hm_iou"] <= 1
    assert 0 <= found["ece"] <= 1
    assert (report["threshold"], report["ensemble"], report["compared"]) == (0.5, ensemble, ["mask", "masks"])
    assert report["reference"]["n"] == N
    assert sum(share for share, _, _ in report["calibration"]) == pytest.approx(1)


def test_batches_do_not_change_scores(runs: dict[str, Path], cli: Cli):
    one, other = (
        scores(cli, "--ckpt", runs["diffusion"], "--metrics", ALL, "--ensemble", 3, "--batch-size", size)["scores"]
        for size in (64, 4)
    )
    assert one == pytest.approx(other, abs=1e-5)


def test_a_mask_of_values_that_are_no_classes_is_refused_where_it_is_trained_on_and_scored(
    runs: dict[str, Path], tmp_path: Path, cli: Cli
):
    """Beside 255, which may mark what has no class, the set cannot tell how many classes there are."""
    source, prepared = tmp_path / "in", tmp_path / "set"
    for i in range(2):
        mask = np.full((SIZE, SIZE), 255, np.uint8)
        mask[0, 0] = 70 * i
        for kind, levels in (("images", mask), ("masks", mask)):
            (source / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(levels).save(source / kind / f"x{i}.png")
    assert cli("prep-data", "pairs", source, "--out", prepared, "--workers", 1).code == 0
    told = "holds the class 70"
    done = cli("fid", "--ckpt", runs["segmentation"], "--metrics", "dice", "--ref", prepared)
    done.refused(told, "the model knows the classes 0 to 1", "prep-data")
    tree = mask_tree("segmentation") | {"data": {"kind": "shards", "root": str(prepared), "size": SIZE, "channels": 1}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(tree))
    run = ["--run-dir", tmp_path / "run", "--device", "cpu", "--steps", 2]
    cli("train", "--preset", tmp_path / "own.yaml", *run).refused(told)


def test_what_cannot_be_scored_is_refused(runs: dict[str, Path], cli: Cli):
    run = runs["diffusion"]
    cli("fid", "--ckpt", run, "--metrics", "dice,fid").refused(
        "fid does not look at masks", "dice, iou, ged, hm_iou, ece"
    )
    cli("fid", "--ckpt", run, "--metrics", "ged", "--ensemble", 4).refused("--ensemble 4", "--ensemble 5")
    cli("fid", "digits:train", "digits:test", "--metrics", "dice").refused("needs a model that tells masks")
    cli("fid", "--ckpt", run, "--metrics", "fid", "--ensemble", 3).refused("--ensemble 3 with --metrics fid")
    cli("fid", "--ckpt", run, "--metrics", "dice", "--ref", "digits:test").refused("'mask'", "image, label")
    cli("fid", "--ckpt", run, "--metrics", "dice", "--ref", "digits-segmentation:test").refused("8x8 and 32x32")
    cli("fid", "--ckpt", runs["segmentation"], "--metrics", "dice", "--steps", 3).refused("--steps 3", "one step")
