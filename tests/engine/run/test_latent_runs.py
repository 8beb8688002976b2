"""Latent models from the first step to the last image: where their first stage comes from, what it becomes, what travels."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from diffcli import checkpoint
from diffcli import preset as presets
from diffcli.data.datasets import Digits
from diffcli.engine import stage_reading
from diffcli.engine.distributed import join
from diffcli.engine.model import load_model
from diffcli.engine.run.runlog import RunDir
from diffcli.engine.run.train import train
from diffcli.fields import to_float
from diffcli.noise import Domain, Noise
from diffcli.tasks.codecs.latent import LatentCodec
from diffcli.tasks.diffusion import DiffusionTask
from tests.conftest import Cli, changed, in_ranks
from tests.engine.run.test_exact_resume import bytes_of
from tests.latents import latent_tree, random_stage, stage_checkpoint

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the tiny latent preset over a random first stage, with changes."""
    stage = stage_checkpoint(tmp_path / "stage")

    def written(name: str = "latent", **keys: Any) -> Path:
        tree = latent_tree(task__codec={"kind": "latent", "from": str(stage)})
        path = tmp_path / f"{name}.yaml"
        path.write_text("# for tests\n" + yaml.safe_dump(changed(tree, name=name, **keys), sort_keys=False))
        return path

    return written


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps, saved at 2 and 4; its first stage is gone. Do not change it."""
    root = tmp_path_factory.mktemp("latent")
    tree = latent_tree(task__codec={"kind": "latent", "from": str(stage_checkpoint(root / "stage"))})
    made = RunDir(root / "run")
    made.claim()
    with join("cpu") as group:
        assert len(list(train(presets.build(tree, "latent.yaml"), made, group))) == 4
    shutil.rmtree(root / "stage")
    return made.path


def codec_of(path: Path) -> LatentCodec:
    task = load_model(path, torch.device("cpu")).task
    assert isinstance(task, DiffusionTask)
    assert isinstance(task.codec, LatentCodec)
    return task.codec


def test_a_run_resumes_without_its_first_stage_to_the_byte(cli: Cli, run: Path, tmp_path: Path) -> None:
    resumed = Path(shutil.copytree(run, tmp_path / "resumed"))
    shutil.rmtree(resumed / "checkpoints" / "step-00000004")
    assert cli("resume", resumed).code == 0
    assert bytes_of(resumed) == bytes_of(run)


def test_a_checkpoint_alone_in_an_empty_folder_samples(cli: Cli, run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "elsewhere" / "model.safetensors"
    alone.parent.mkdir()
    shutil.copy(checkpoint.locate(run) / "ema.safetensors", alone)
    for path, out in ((run, "a.npz"), (alone, "b.npz")):
        assert cli("sample", "--ckpt", path, "--n", 3, "--out", tmp_path / out).code == 0
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_the_first_stage_is_frozen_and_stands_once_in_the_file_to_sample_from(run: Path, tmp_path: Path) -> None:
    found = checkpoint.locate(run)
    ema, task, optimizer = (load_file(found / f"{part}.safetensors") for part in ("ema", "task", "optimizer"))
    stage = {key for key in ema if key.startswith("codec.first_stage.")}
    assert stage
    assert not any("codec." in key for key in [*task, *optimizer])
    again = load_file(stage_checkpoint(tmp_path / "again") / "ema.safetensors")
    assert all(ema[key].equal(again[key]) for key in stage), "neither trained nor averaged"


def test_scale_and_shift_are_those_of_the_training_set(run: Path) -> None:
    codec, images = codec_of(run), Digits(size=8).build("train").read(torch.arange(9000))["image"]
    noise = Noise(range(9000), torch.device("cpu"), Domain.POSTERIOR)
    z = codec.encode(to_float(images), noise)
    assert (z.mean(dim=(0, 2, 3))).abs().max() < 0.01
    assert (z.std(dim=(0, 2, 3)) - 1).abs().max() < 0.01


@pytest.mark.slow
def test_two_processes_measure_what_one_does(cli: Cli, write: Write, tmp_path: Path) -> None:
    preset, one, two = write(train__batch_size=7), tmp_path / "one", tmp_path / "two"
    assert cli("train", "--preset", preset, "--run-dir", one, "--steps", 1).code == 0
    done = in_ranks("train", "--preset", preset, "--run-dir", two, "--steps", 1, "--nproc", 2)
    assert done.code == 0, done.err
    for name in ("shift", "scale"):
        assert torch.allclose(getattr(codec_of(one), name), getattr(codec_of(two), name), rtol=1e-6, atol=1e-6)


def test_the_record_says_which_first_stage_it_is_wherever_that_lies(run: Path, tmp_path: Path) -> None:
    told = checkpoint.read_record(checkpoint.locate(run))["first_stage"]
    assert told["from"] == str(run.parent / "stage")
    moved = stage_checkpoint(tmp_path / "moved")
    assert stage_reading.read(moved).digest == told["sha256"]
    assert stage_reading.read(run).digest == told["sha256"], "a latent model gives its first stage on"
    assert stage_reading.read(stage_checkpoint(tmp_path / "other", seed=1)).digest != told["sha256"]


def test_another_latent_model_begins_with_the_first_stage_of_this_one(
    cli: Cli, write: Write, run: Path, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    tree = latent_tree(task__codec={"kind": "latent", "from": str(run)}, name="second")
    (tmp_path / "second.yaml").write_text(yaml.safe_dump(tree))
    assert cli("train", "--preset", tmp_path / "second.yaml", "--run-dir", second).code == 0
    assert stage_reading.read(second).digest == stage_reading.read(run).digest


def test_a_dry_run_counts_the_first_stage_as_frozen_and_writes_nothing(cli: Cli, write: Write, tmp_path: Path) -> None:
    done = cli("train", "--preset", write(), "--run-dir", tmp_path / "dry", "--dry-run")
    assert done.code == 0, done.err
    count = sum(p.numel() for p in random_stage().parameters())
    assert f"codec {count:,} (frozen)" in done.out
    assert "first_stage:" in done.out
    assert not (tmp_path / "dry").exists()


@pytest.mark.parametrize("dry", [True, False], ids=["dry", "real"])
@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("runs/mnist", ("task.codec.from", "runs/mnist", "diffcli train --preset mnist --run-dir runs/mnist")),
        ("nowhere", ("task.codec.from", "nowhere", "run of an autoencoder")),
        (None, ("task.codec is latent", "task.codec.from")),
    ],
    ids=["a preset's run", "nothing", "unnamed"],
)
def test_a_first_stage_that_is_not_there_is_told_before_anything_is_written(
    cli: Cli, write: Write, tmp_path: Path, source: str | None, words: tuple[str, ...], dry: bool
) -> None:
    flags = ["--dry-run"] if dry else []
    done = cli("train", "--preset", write(task__codec__from=source), "--run-dir", tmp_path / "run", *flags)
    done.refused(*words)
    assert not (tmp_path / "run").exists()


def test_what_is_no_autoencoder_is_refused_by_name(cli: Cli, write: Write, trained: Path, tmp_path: Path) -> None:
    done = cli("train", "--preset", write(task__codec__from=str(trained)), "--run-dir", tmp_path / "run")
    done.refused("task.codec.from", str(trained), "was trained as a diffusion", "mnist-vae")
    assert not (tmp_path / "run").exists()


def test_a_first_stage_for_other_images_is_refused_before_the_run_is_made(
    cli: Cli, write: Write, tmp_path: Path
) -> None:
    for keys, words in (({"channels": 3}, ("channels", "data.channels=1")), ({"size": 9}, ("9x9", "data.size=8"))):
        changes = {f"data__{key}": value for key, value in keys.items()}
        cli("train", "--preset", write(**changes), "--run-dir", tmp_path / "run").refused(*words)
        assert not (tmp_path / "run").exists()


def test_a_preset_that_describes_another_first_stage_than_it_names_is_refused(
    cli: Cli, write: Write, run: Path, tmp_path: Path
) -> None:
    stage_checkpoint(tmp_path / "wide", network__width=16)
    tree = yaml.safe_load((run / "preset.yaml").read_text())
    tree["task"]["codec"]["from"] = str(tmp_path / "wide")
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(tree))
    done = cli("train", "--preset", tmp_path / "again.yaml", "--run-dir", tmp_path / "again")
    done.refused("task.codec.from", "another first stage", "task.codec.first_stage=null")


def test_bits_per_dimension_of_a_latent_model_are_refused(cli: Cli, run: Path) -> None:
    small = f"{run / 'preset.yaml'}:test"
    done = cli("fid", "--ckpt", run, "--ref", small, "--metrics", "bpd", "--n", 4)
    done.refused("bpd", "latents")


def test_the_run_of_an_autoencoder_is_a_first_stage_with_its_averaged_weights(
    cli: Cli, write: Write, tmp_path: Path
) -> None:
    network = {"width": 8, "mult": [1, 2], "depth": 1, "groups": 4, "latent": 3}
    tree = changed(latent_tree(), name="vae", guidance=None, train__batch_size=4)
    tree["task"] = {"kind": "autoencoder", "network": network, "bottleneck": {"kind": "kl"}}
    (tmp_path / "vae.yaml").write_text(yaml.safe_dump(tree))
    assert cli("train", "--preset", tmp_path / "vae.yaml", "--run-dir", tmp_path / "vae").code == 0
    found = stage_reading.read(tmp_path / "vae")
    ema = load_file(checkpoint.locate(tmp_path / "vae") / "ema.safetensors")
    assert {f"autoencoder.{name}" for name in found.tensors} == ema.keys()
    assert all(value.equal(ema[f"autoencoder.{name}"]) for name, value in found.tensors.items())
    done = cli("train", "--preset", write(task__codec__from=str(tmp_path / "vae")), "--run-dir", tmp_path / "run")
    assert done.code == 0, done.err
    assert stage_reading.read(tmp_path / "run").digest == found.digest


def test_a_folder_of_diffusers_is_a_first_stage_that_encodes_as_theirs(cli: Cli, write: Write, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    block = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    theirs = diffusers.AutoencoderKL(1, 1, **block, block_out_channels=[8, 16], norm_num_groups=4, latent_channels=3)
    theirs.save_pretrained(tmp_path / "theirs")
    done = cli("train", "--preset", write(task__codec__from=str(tmp_path / "theirs")), "--run-dir", tmp_path / "run")
    assert done.code == 0, done.err
    x = torch.rand(2, 1, 8, 8) * 2 - 1
    codec = codec_of(tmp_path / "run")
    mean = (theirs.encode(x).latent_dist.mean - codec.shift[:, None, None]) / codec.scale[:, None, None]
    assert torch.allclose(codec.encode(x), mean, atol=1e-5)
    assert torch.allclose(codec.decode(mean), theirs.decode(theirs.encode(x).latent_dist.mean).sample, atol=1e-5)
    (tmp_path / "theirs" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    bad = cli("train", "--preset", write(task__codec__from=str(tmp_path / "theirs")), "--run-dir", tmp_path / "bad")
    bad.refused("task.codec.from", "UNet2DModel")
