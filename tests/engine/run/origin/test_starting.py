"""Runs that start from another model: their first loss, what they keep of it in their checkpoints, and what they need no more."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffcli import checkpoint
from diffcli import preset as presets
from diffcli.engine.distributed import join
from diffcli.engine.model import load_model
from diffcli.engine.run.loop import Loop
from diffcli.engine.run.runlog import RunDir
from diffcli.engine.run.train import begun
from diffcli.tasks.codecs.latent import LatentCodec
from diffcli.tasks.diffusion import DiffusionTask
from tests.conftest import Cli, changed
from tests.engine.one_level import SMALL
from tests.engine.run.origin.layout import as_in_training
from tests.latents import latent_tree, stage_checkpoint
from tests.tasks.autoencoder.stages import ADVERSARIAL, NETWORK

CPU = torch.device("cpu")
Check = Callable[[Loop], None]


def at_start(path: Path, tree: dict[str, Any], check: Check) -> dict[str, str]:
    """Opens a run of a preset and looks at it before its first step; returns what it says that it took."""
    with join("cpu") as group, begun(presets.build(tree, "tiny.yaml"), RunDir(path), group) as beginning:
        assert beginning.first == 0
        check(beginning.loop)
        return dict(beginning.taken)


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_the_first_loss_is_that_of_the_source_to_the_bit_and_all_else_begins_anew(
    trained: Path, tmp_path: Path, weights: str
) -> None:
    source = as_in_training(load_model(trained, CPU, use_ema=weights == "ema").task).train()

    def check(loop: Loop) -> None:
        _, batch = next(loop.feed.batches(0))
        found, expected = (task.train()(batch, "main", 1)["loss"] for task in (loop.state.task, source))
        assert torch.equal(found, expected)
        assert not any(optimizer.state for optimizer in loop.state.optimizers.values())
        averaged, trained = loop.state.averaged.state_dict(), loop.state.task.state_dict()
        assert all(torch.equal(value, trained[name]) for name, value in averaged.items())

    tree = changed(SMALL, seed=7, **{"from": {"path": str(trained), "weights": weights}})
    taken = at_start(tmp_path / "run", tree, check)
    assert taken["taken"].startswith("10,257 of 10,257")
    assert set(taken) == {"taken"}


@pytest.fixture(scope="module")
def source(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a run that may be removed."""
    path = tmp_path_factory.mktemp("source") / "source"
    shutil.copytree(trained, path)
    return path


def test_a_run_names_its_source_by_digest_and_goes_on_without_it(
    tiny: Callable[..., Path], cli: Cli, source: Path, tmp_path: Path
) -> None:
    preset, run = tiny(train__log=[]), tmp_path / "run"
    shutil.copytree(source, tmp_path / "source")
    begins = cli("train", "--preset", preset, "--from", tmp_path / "source", "--run-dir", run, "--steps", 2)
    assert begins.code == 0, begins.err
    assert "10,257 of 10,257" in begins.err
    shutil.rmtree(tmp_path / "source")
    resumed = cli("resume", run, "--steps", 4)
    assert resumed.code == 0, resumed.err
    straight = cli("train", "--preset", preset, "--from", source, "--run-dir", tmp_path / "straight")
    assert straight.code == 0, straight.err
    kept = checkpoint.checkpoints(run / "checkpoints")[-1]
    other = checkpoint.checkpoints(tmp_path / "straight/checkpoints")[-1]
    for part in checkpoint.PARTS:
        one, two = (load_file(path / f"{part}.safetensors") for path in (kept, other))
        assert one.keys() == two.keys()
        assert all(torch.equal(value, two[name]) for name, value in one.items()), part
    named = checkpoint.read_record(kept)["from"]
    newest = checkpoint.checkpoints(source / "checkpoints")[-1]
    digest = json.loads((newest / "checkpoint.json").read_text())["sha256"]["ema.safetensors"]
    assert (named["sha256"], named["step"], named["weights"]) == (digest, 4, "ema")
    assert named["path"].endswith("step-00000004")
    told = cli("info", run).out
    assert digest[:12] in told
    assert "10,257 of 10,257" in told
    assert json.loads(cli("info", run, "--json").out)["from"] == named
    assert cli("sample", run, "--n", 1, "--out", tmp_path / "a.png").code == 0


def test_a_plan_says_what_would_be_taken_and_reads_no_weights(
    tiny: Callable[..., Path], cli: Cli, source: Path, tmp_path: Path
) -> None:
    few = tiny(task__conditioners=[{"kind": "class", "num_classes": 12, "dim": 8}], task__target="eps")
    damaged = tmp_path / "damaged"
    shutil.copytree(source, damaged)
    plan = cli("train", "--preset", few, "--from", damaged, "--dry-run")
    assert plan.code == 0, plan.err
    assert "# taken: 10,257 of 10,273 parameters" in plan.out
    assert "taken for 0, 1" in plan.out
    assert "new for 10, 11" in plan.out
    assert "task.target=v" in plan.out
    assert not (tmp_path / "runs").exists()


def test_a_source_that_cannot_be_is_refused_before_anything_is_written(
    tiny: Callable[..., Path], cli: Cli, source: Path, tmp_path: Path
) -> None:
    run, preset = tmp_path / "new", tiny()
    wide = tiny("wide", task__network__width=16)
    average = checkpoint.checkpoints(source / "checkpoints")[-1] / "ema.safetensors"
    cases: list[tuple[list[Any], list[str]]] = [
        (["--from", tmp_path / "nowhere"], ["nowhere"]),
        (["--from-weights", "raw"], ["--from-weights raw", "--from RUN"]),
        (["--from", average, "--from-weights", "raw"], ["average only", "--from-weights ema"]),
        (["--set", f"from={tmp_path / 'digits'}"], ["from", "diffcli train --preset digits"]),
        (["--preset", wide, "--from", source], ["time.0.weight is 64x16, there 32x8", "presets new"]),
    ]
    for flags, words in cases:
        cli("train", "--preset", preset, "--run-dir", run, *flags).refused(*words)
        assert not run.exists()


def test_a_model_of_latents_keeps_first_stage_and_scale_of_its_source(tmp_path: Path) -> None:
    """What is measured of the data is measured once: other data would give the network other latents."""
    stage = stage_checkpoint(tmp_path / "stage")
    tree = latent_tree(train__steps=1, train__every={"log": 0, "preview": 0, "save": 1}, train__log=[])
    first = changed(tree, task__codec={"kind": "latent", "from": str(stage)})
    with join("cpu") as group, begun(presets.build(first, "a"), RunDir(tmp_path / "a"), group) as beginning:
        list(beginning.loop.steps(0))
    shutil.rmtree(stage)
    known = load_model(tmp_path / "a", CPU).task
    assert isinstance(known, DiffusionTask)

    def check(loop: Loop) -> None:
        task = loop.state.task
        assert isinstance(task, DiffusionTask)
        assert isinstance(task.codec, LatentCodec)
        assert (task.codec.scale != 1).all()
        assert all(torch.equal(v, known.state_dict()[name]) for name, v in task.state_dict().items())
        assert loop.record["first_stage"]["from"] == str(tmp_path / "a")

    other = changed(tree, **{"from": str(tmp_path / "a"), "data__split": None, "train__seed": None, "seed": 3})
    at_start(tmp_path / "b", other, check)
    another = stage_checkpoint(tmp_path / "another", seed=5)

    def unlike(loop: Loop) -> None:
        task = loop.state.task
        assert isinstance(task, DiffusionTask)
        assert not torch.equal(task.codec.get_buffer("scale"), known.codec.get_buffer("scale"))

    at_start(tmp_path / "c", changed(other, task__codec={"kind": "latent", "from": str(another)}), unlike)


def test_a_first_stage_goes_on_with_codebook_and_discriminator(tmp_path: Path) -> None:
    """k-means does not set the codebook again; what only training needs comes from the file of the trained weights."""
    stage = {"kind": "autoencoder", "network": NETWORK, "bottleneck": {"kind": "vq", "codes": 8}}
    keys = {"guidance": 1, "task": stage | {"adversarial": ADVERSARIAL | {"start": 1}}, "train__log": []}
    tree = changed(SMALL, **keys, train__steps=2)
    with join("cpu") as group, begun(presets.build(tree, "a"), RunDir(tmp_path / "a"), group) as beginning:
        list(beginning.loop.steps(0))
        known = {name: value.clone() for name, value in beginning.loop.state.averaged.state_dict().items()}

    def check(loop: Loop) -> None:
        inside = loop.state.task.keys_of(network.name for network in loop.state.task.networks)
        assert any("codebook" in name for name in inside)
        assert any("discriminator" in name for name in inside)
        for name, value in loop.state.task.state_dict().items():
            assert name not in inside or torch.equal(value, known[name]), name

    at_start(tmp_path / "b", changed(tree, seed=5, **{"from": str(tmp_path / "a")}), check)
