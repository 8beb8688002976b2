"""The words under the images of a preview."""

from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import torch

from diffcli import preset as presets
from diffcli.engine.run.showing.preview_words import captions
from diffcli.engine.run.state import build_on_meta
from tests.conftest import Cli, changed
from tests.engine.one_level import SMALL

CLASSES = list("0123456789")


def test_images_of_classes_have_their_names_and_unconditional_ones_nothing() -> None:
    fields = {"label": torch.tensor([3, 0]), "text": ["a", "b"]}
    assert captions(build_on_meta(presets.build(SMALL, "")), fields, CLASSES, 2) == ["3", "0"]
    assert captions(build_on_meta(presets.build(SMALL, "")), fields, None, 2) == ["3", "0"]
    free = presets.build(changed(SMALL, task__conditioners=[], task__drop_condition=0.0, guidance=1.0), "")
    assert captions(build_on_meta(free), fields, CLASSES, 2) is None


def test_texts_stand_beside_classes() -> None:
    both = [{"kind": "class", "num_classes": 10, "dim": 8}, {"kind": "text", "width": 8, "depth": 1, "heads": 2}]
    tree = changed(SMALL, task__conditioners=both, task__network__middle=["cross_attention"], guidance=1.0)
    task = build_on_meta(presets.build(tree, ""))
    assert captions(task, {"label": torch.tensor([1]), "text": ["a cat"]}, CLASSES, 1) == ["a cat / 1"]


def test_the_newest_preview_and_the_curves_stand_in_the_run_folder(cli: Cli, tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = cli("train", "--preset", tiny(train__every={"log": 1, "preview": 2, "save": 4}), "--run-dir", run)
    assert done.code == 0, done.err
    newest = imageio.imread(run / "preview.png")
    assert np.array_equal(newest, imageio.imread(run / "previews" / "step-00000004.png"))
    assert newest.shape[1] == 2 * (96 + 2) + 2  # labelled, so wide enough to read
    assert imageio.imread(run / "loss.png").shape == (400, 800, 3)
