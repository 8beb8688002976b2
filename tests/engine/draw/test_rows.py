"""Scores of text models: what is drawn is what the rows of the reference say, in their order; or the score is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffcli.engine.draw.rows import choose_rows
from diffcli.engine.draw.sample import SampleOptions, load_model, request
from diffcli.engine.draw.translation import choose_prior
from diffcli.engine.score.sides import resolve
from tests.conftest import Cli, changed
from tests.data.making import prepared
from tests.encoders.making import POOLED
from tests.engine.draw.test_prior import CAPTIONS, house, trained_on  # noqa: F401  a fixture
from tests.engine.one_level import SMALL

TEXT_MODEL = changed(
    SMALL,
    task__conditioners=[{"kind": "text", "width": 8, "depth": 1, "heads": 2, "length": 24, "gives": "vector"}],
    task__schedule={"kind": "cosine", "steps": 8},
    train__steps=2,
)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of six captions, each with another for an epoch to draw, and a model trained on it."""
    root = tmp_path_factory.mktemp("texts")
    prepared(root / "set", {"train": {"text": [[c, f"{c} again"] for c in CAPTIONS]}})
    trained_on(changed(TEXT_MODEL, data={"kind": "shards", "size": 8, "root": str(root / "set")}), root / "run")
    return root


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of RGB images, for its features."""
    tree = changed(
        SMALL, data__channels=3, task={"kind": "classifier", "num_classes": 10, "network": {"width": 4}},
        sampler=None, guidance=None, train__steps=1,
    )  # fmt: skip
    return trained_on(tree, tmp_path_factory.mktemp("features") / "run")


def fid(cli: Cli, run: Path, features: Path, *flags: object) -> dict[str, Any]:
    asked = ("--features", features, "--device", "cpu", "--json")
    done = cli("fid", "--ckpt", run, *asked, *flags)
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_images_are_drawn_of_the_captions_of_the_reference_in_order_and_over_again(
    texts: Path, features: Path, cli: Cli
) -> None:
    told = fid(cli, texts / "run", features, "--n", 9)
    assert told["conditions"] == "text of tiny:train, row by row"
    assert any("6 rows" in warning for warning in told["warnings"])
    model = load_model(texts / "run", torch.device("cpu"))
    req = request(model, SampleOptions(n=9), resolve(f"{texts / 'set'}:train"))
    assert req.batch(range(4, 9))["text"] == [*CAPTIONS[4:], *CAPTIONS[:3]]
    assert "warnings" in told
    fits = fid(cli, texts / "run", features, "--n", 6, "--ref", f"{texts / 'set'}:train")
    assert not any("rows" in warning for warning in fits["warnings"])


def test_drawing_by_rows_is_drawing_by_the_same_prompts(texts: Path) -> None:
    model = load_model(texts / "run", torch.device("cpu"))
    by_rows = request(model, SampleOptions(n=6), resolve(str(texts / "set")))
    by_prompts = request(model, SampleOptions(n=6, prompts=tuple(CAPTIONS)))
    with torch.no_grad():
        one, other = (list(req.walk(range(6))[1])[-1].x for req in (by_rows, by_prompts))
    assert torch.equal(one, other)


def test_a_reference_that_says_nothing_is_refused_unless_nobody_asks(
    texts: Path, features: Path, tmp_path: Path, cli: Cli
) -> None:
    prepared(tmp_path / "dumb", {"train": {"clip_text": np.ones((4, 3))}})
    flags = ("--ref", tmp_path / "dumb", "--n", 4, "--device", "cpu", "--features", features)
    cli("fid", "--ckpt", texts / "run", *flags).refused("'text'", "clip_text", "--guidance 0")
    samples = tmp_path / "samples.npz"
    np.savez(samples, arr_0=np.zeros((4, 8, 8, 3), np.uint8))
    done = cli("fid", "--ckpt", texts / "run", "--ref", samples, "--n", 4, "--device", "cpu", "--features", features)
    done.refused("images alone")
    assert "conditions" not in fid(cli, texts / "run", features, "--n", 4, "--guidance", 0)


def test_the_bound_of_a_text_model_is_told_the_images_own_captions(texts: Path, cli: Cli) -> None:
    asked = ("fid", "--ckpt", texts / "run", "--metrics", "bpd", "--n", 6, "--device", "cpu", "--json")
    told, again, blind = (json.loads(cli(*asked, *more).out) for more in ((), ("--batch-size", 2), ("--guidance", 0)))
    assert told["condition"] == "text of tiny:train, row by row"
    assert again["terms"] == pytest.approx(told["terms"], rel=1e-4)
    assert blind["condition"] == "none"
    assert blind["scores"] != told["scores"]


def test_a_model_of_image_embeddings_is_told_those_of_the_reference_or_what_a_prior_makes_of_its_texts(
    house: Path,  # noqa: F811
    features: Path,
    cli: Cli,
) -> None:
    own = fid(cli, house / "model", features, "--n", 6)
    assert own["conditions"] == "clip_image of tiny:train, row by row"
    through = fid(cli, house / "model", features, "--n", 6, "--prior", house / "mlp")
    assert through["conditions"] == "clip_text of tiny:train, row by row, through the prior"
    assert through["prior"]["checkpoint"].startswith(str(house / "mlp"))
    model = load_model(house / "model", torch.device("cpu"))
    source = resolve(str(house / "set"))
    prior = choose_prior(model, str(house / "mlp"), needed=False)
    assert prior is not None
    rows = choose_rows(model, source, prior, labelled=False)
    fields = rows.fields(range(5, 8), [5, 6, 7])
    assert fields["clip_image"].shape == (3, POOLED)
    assert torch.equal(fields["clip_image"], prior(rows.data.read(torch.tensor([5, 0, 1]))["clip_text"], [5, 6, 7]))


def test_labels_of_the_rows_go_with_their_captions(tmp_path: Path) -> None:
    captioned = {"templates": ["a {name}"]}
    both = [*TEXT_MODEL["task"]["conditioners"], {"kind": "class", "num_classes": 10, "dim": 8}]
    run = trained_on(changed(TEXT_MODEL, data__captions=captioned, task__conditioners=both), tmp_path / "run")
    model = load_model(run, torch.device("cpu"))
    from diffcli.engine.score.sides import data_side

    req = request(model, SampleOptions(n=5), data_side("digits:test", model.preset.data, "test"))
    batch = req.batch(range(5))
    assert batch["text"] == [f"a {model.classes[label]}" for label in batch["label"].tolist()]


def test_where_the_rows_have_no_labels_classes_come_in_turn(texts: Path, tmp_path: Path) -> None:
    both = [*TEXT_MODEL["task"]["conditioners"], {"kind": "class", "num_classes": 10, "dim": 8}]
    captioned = {"templates": ["a {name}"]}
    run = trained_on(changed(TEXT_MODEL, data__captions=captioned, task__conditioners=both), tmp_path / "run")
    req = request(load_model(run, torch.device("cpu")), SampleOptions(n=12), resolve(str(texts / "set")))
    batch = req.batch(range(12))
    assert batch["text"] == [*CAPTIONS, *CAPTIONS]
    assert batch["label"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
