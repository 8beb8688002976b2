"""`sample --prompt` of a model of image embeddings: through a prior, by the identity, or not at all; with a tiny CLIP."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffcli.encoders.encoder import EncoderConfig
from tests.conftest import Cli, changed
from tests.data.making import prepared
from tests.encoders.making import POOLED, WIDTH, tiny_clip
from tests.engine.one_level import SMALL
from tests.engine.score.test_prior_scores import DIFFUSION, PRIOR

CAPTIONS = ["a red cat", "the blue dog", "one green bird", "a fish", "two mice", "some ants"]


def trained_on(tree: dict[str, Any], folder: Path) -> Path:
    from diffcli import preset as presets
    from diffcli.engine.distributed import join
    from diffcli.engine.run.runlog import RunDir
    from diffcli.engine.run.train import train

    run = RunDir(folder)
    run.claim()
    with join("cpu") as group:
        for _ in train(presets.build(tree, "made"), run, group):
            pass
    return run.path


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny CLIP, a set of its embeddings, a model of image embeddings, and priors of several kinds."""
    root = tmp_path_factory.mktemp("house")
    clip = tiny_clip(root / "clip")
    encoder = EncoderConfig(model=str(clip)).build()
    text = encoder.texts(CAPTIONS).pooled
    assert text is not None
    image = np.random.default_rng(0).standard_normal((len(CAPTIONS), POOLED))
    columns = {"text": [[c] for c in CAPTIONS], "clip_text": text.numpy(), "clip_image": image}
    prepared(root / "set", {"train": columns, "test": columns}, encoder=str(clip), digest=encoder.digest)
    prepared(root / "other", {"train": columns}, encoder="another", digest="b" * 64)
    narrow = columns | {"clip_text": text.numpy()[:, :4], "clip_image": image[:, :4]}
    prepared(root / "narrow", {"train": narrow})
    told = {"kind": "embedding", "field": "clip_image", "width": POOLED, "dim": 8, "encoder": {"model": str(clip)}}
    model = changed(
        SMALL, data={"kind": "shards", "size": 8, "root": str(root / "set")}, task__conditioners=[told],
        train__steps=3, train__batch_size=4, train__optimizer__lr=0.05,
    )  # fmt: skip
    trained_on(model, root / "model")
    for name, network, data, dim in (
        ("mlp", PRIOR["task"]["network"], "set", POOLED),
        ("diffusion", DIFFUSION, "set", POOLED),
        ("foreign", DIFFUSION, "other", POOLED),
        ("small", DIFFUSION, "narrow", 4),
    ):
        tree = changed(PRIOR, data__root=str(root / data), task__network=network, task__dim=dim, train__steps=8)
        trained_on(changed(tree, train__batch_size=4, train__ema=0.5, train__every__save=0), root / name)
    return root


def drawn(cli: Cli, house: Path, out: Path, *flags: object) -> tuple[np.ndarray, dict[str, Any]]:
    """All pixels, and the sidecar."""
    done = cli("sample", "--ckpt", house / "model", "--out", out, "--device", "cpu", *flags)
    assert done.code == 0, done.err
    return np.asarray(Image.open(out)).astype(int), json.loads(Path(f"{out}.json").read_text())


PROMPTS = ("--prompt", "a red cat", "--prompt", "a fish", "--n", 4)


@pytest.mark.parametrize("kind", ["mlp", "diffusion"])
def test_a_prompt_reaches_a_model_of_image_embeddings_through_a_prior(
    kind: str, house: Path, tmp_path: Path, cli: Cli
) -> None:
    flags = (*PROMPTS, "--prior", house / kind)
    images, told = drawn(cli, house, tmp_path / "a.png", *flags)
    assert told["prompts"] == ["a red cat", "a fish", "a red cat", "a fish"]
    assert told["prior"]["checkpoint"].startswith(str(house / kind))
    assert len(told["prior"]["weights_sha256"]) == 64
    again, _ = drawn(cli, house, tmp_path / "b.png", *flags, "--batch-size", 1)
    assert np.abs(images - again).max() <= 1, "an image depends on its batch"
    other, _ = drawn(cli, house, tmp_path / "c.png", *PROMPTS, "--prior", "none")
    assert np.abs(images - other).max() > 1, "the prior says nothing"
    swapped, _ = drawn(cli, house, tmp_path / "d.png", "--prompt", "a fish", "--prompt", "a red cat", *flags[4:])
    assert np.abs(images - swapped).max() > 1, "the prompt says nothing"


def test_without_a_prior_both_ways_are_named(house: Path, cli: Cli) -> None:
    done = cli("sample", "--ckpt", house / "model", *PROMPTS, "--device", "cpu")
    done.refused("embeddings of images", "--prior RUN", "--prior none", "clip-prior")


def test_the_identity_is_told_in_the_sidecar(house: Path, tmp_path: Path, cli: Cli) -> None:
    _, told = drawn(cli, house, tmp_path / "a.png", *PROMPTS, "--prior", "none")
    assert told["prior"] == "none"


def test_a_preset_may_name_the_prior(house: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(house)
    tree = json.loads((house / "model/checkpoints/step-00000003/checkpoint.json").read_text())["preset"]
    run = trained_on(changed(tree, prior="mlp", train__steps=1), tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    done = cli("sample", "--ckpt", run, *PROMPTS, "--out", tmp_path / "a.png", "--device", "cpu")
    assert done.code == 0, done.err
    told = json.loads((tmp_path / "a.png.json").read_text())
    assert told["prior"]["checkpoint"].startswith(str(house / "mlp"))
    (house / "mlp").rename(house / "moved")
    done = cli("sample", "--ckpt", run, *PROMPTS, "--out", tmp_path / "a.png", "--device", "cpu")
    (house / "moved").rename(house / "mlp")
    done.refused("prior, of the preset of", str(house / "mlp"), "--prior RUN")


@pytest.mark.parametrize("more", [("--dry-run",), ()])
def test_a_prior_that_is_not_there_is_told_before_training(
    more: tuple[str, ...], house: Path, tmp_path: Path, cli: Cli
) -> None:
    preset = ("--preset", house / "model/preset.yaml", "--set", "prior=nowhere")
    done = cli("train", *preset, "--run-dir", tmp_path / "run", "--device", "cpu", *more)
    done.refused("prior: ", "nowhere", "leave prior out")
    assert not (tmp_path / "run").exists()


def test_an_unconditional_draw_needs_no_prior(house: Path, tmp_path: Path, cli: Cli) -> None:
    _, told = drawn(cli, house, tmp_path / "a.png", "--n", 2, "--guidance", 0)
    assert told["prior"] is None
    assert told["prompts"] is None


def test_on_the_way_between_two_seeds_the_embedding_stays(house: Path, tmp_path: Path, cli: Cli) -> None:
    flags = ("--prompt", "a fish", "--prior", house / "diffusion")
    way, _ = drawn(cli, house, tmp_path / "a.png", *flags, "--interpolate", 3)
    first, _ = drawn(cli, house, tmp_path / "b.png", *flags)
    assert np.abs(way[2:10, 2:10] - first).max() <= 1


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        ("foreign", ("another", "bbbbbbbbbbbb")),
        ("small", ("4 values", "16")),
        ("model", ("was trained as a diffusion", "clip-prior")),
        ("nowhere", ("--prior: ", "nowhere", "--prior none")),
    ],
)
def test_a_prior_that_does_not_fit_is_refused(prior: str, words: tuple[str, ...], house: Path, cli: Cli) -> None:
    done = cli("sample", "--ckpt", house / "model", *PROMPTS, "--prior", house / prior, "--device", "cpu")
    done.refused(*words)


SCALED_DOWN = (
    "data.more=[]", "data.size=8", "train.steps=2", "train.batch_size=4", "train.workers=0", "train.curve.warmup=0",
    "train.precision=fp32", "train.every={log: 1, preview: 2, save: 2, validate: 2}",
)  # fmt: skip
SMALL_NET = (
    "task.network.width=8", "task.network.mult=[1, 2]", "task.network.attend_at=[4]", "task.network.head_dim=8",
    "sampler.steps=2",
)  # fmt: skip


def scaled_down(cli: Cli, house: Path, run: Path, preset: str, *overrides: str) -> Path:
    changes = [f for item in (*SCALED_DOWN, f"data.validation={house / 'set'}", *overrides) for f in ("--set", item)]
    where = ("--data", house / "set", "--run-dir", run, "--device", "cpu")
    done = cli("train", "--preset", preset, *where, *changes)
    assert done.code == 0, done.err
    *_, last = (json.loads(line) for line in (run / "log.jsonl").read_text().splitlines())
    assert last["val_loss"] > 0
    return run


def test_the_shipped_presets_scaled_down_train_and_draw_what_a_prompt_says(
    house: Path, tmp_path: Path, cli: Cli
) -> None:
    clip = f"task.conditioners.0.encoder.model={house / 'clip'}"
    image = scaled_down(
        cli, house, tmp_path / "image", "cc3m-64", *SMALL_NET, clip, f"task.conditioners.0.width={POOLED}"
    )
    widths = (f"task.conditioners.0.width={WIDTH}", f"task.conditioners.0.pooled_width={POOLED}")
    text = scaled_down(cli, house, tmp_path / "text", "cc3m-64-text", *SMALL_NET, clip, *widths)
    small = (f"task.dim={POOLED}", "task.network.width=8", "task.network.depth=1", "sampler.steps=2")
    prior = scaled_down(cli, house, tmp_path / "prior", "clip-prior", *small)
    for run, more in ((image, ("--prior", prior)), (text, ())):
        out = tmp_path / f"{run.name}.png"
        done = cli("sample", "--ckpt", run, "--prompt", "a red cat", *more, "--out", out, "--device", "cpu")
        assert done.code == 0, done.err
        assert json.loads(Path(f"{out}.json").read_text())["prompts"] == ["a red cat"]


def test_a_model_that_reads_no_image_embeddings_takes_no_prior(house: Path, trained: Path, cli: Cli) -> None:
    done = cli("sample", "--ckpt", trained, "--prior", house / "mlp", "--device", "cpu")
    done.refused("--prior", "leave --prior out")


def test_a_preset_whose_model_reads_no_image_embeddings_names_no_prior(tiny: Any, cli: Cli) -> None:
    cli("train", "--preset", tiny(prior="runs/prior"), "--dry-run").refused("prior", "clip_image")


def test_a_prior_without_a_second_branch_is_not_guided(cli: Cli) -> None:
    for change in ("kind=mlp", "drop_condition=0"):
        done = cli("train", "--preset", "clip-prior", "--set", f"task.network.{change}", "--dry-run")
        done.refused("guidance is 2.0", "never drops its text", "set guidance to 1")
