"""The presets of medical sets train and score end to end, on small sets in the layouts of their publishers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.prep.sets.test_lidc import patient
from tests.prep.sets.test_medical import cvc, isic

SMALL = ["task.network.width=8", "task.network.mult=[1, 2]", "task.network.blocks=[res]", "task.network.attend_at=[]"]
SMALL += ["task.network.middle=[res]", "data.size=16", "train.batch_size=4", "train.every.preview=0", "train.workers=0"]


def lidc(root: Path) -> Path:
    pytest.importorskip("pydicom")
    for number in range(1, 11):
        patient(root, number)
    return root


@pytest.mark.parametrize(
    ("preset", "kind", "make"),
    [
        ("lidc", "lidc", lidc),
        ("lidc-unet", "lidc", lidc),
        ("isic", "isic", isic),
        ("isic-unet", "isic", isic),
        ("cvc-clinic", "cvc-clinic", cvc),
        ("cvc-clinic-unet", "cvc-clinic", cvc),
    ],
)
def test_a_medical_set_is_prepared_trained_on_and_scored(
    preset: str, kind: str, make: Callable[[Path], Path], tmp_path: Path, cli: Cli
):
    source, data, run = make(tmp_path / "in"), tmp_path / "data", tmp_path / "run"
    assert cli("prep-data", kind, source, "--out", data, "--size", 16, "--workers", 1).code == 0
    small = [argument for item in SMALL for argument in ("--set", item)]
    done = cli("train", "--preset", preset, "--data", data, "--run-dir", run, "--steps", 2, "--device", "cpu", *small)
    assert done.code == 0, done.err
    quick = [] if preset.endswith("-unet") else ["--steps", 2, "--ensemble", 3]
    done = cli("fid", "--ckpt", run, "--metrics", "dice,iou,ged,hm_iou,ece", "--json", "--n", 4, *quick)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert set(report["scores"]) >= {"dice", "iou", "ged", "hm_iou", "ece"}
    assert report["compared"] == (["mask", "masks"] if kind == "lidc" else ["mask"])
