"""Cached latents: what is stored is what training would have computed, and it is tied to its first stage."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from diffcli import preset as presets
from diffcli.cli.options import Device
from diffcli.cli.preparing import encoding
from diffcli.config import UserError
from diffcli.data.latent_data import LatentImages
from diffcli.data.pixels import to_image, to_png
from diffcli.data.prepared import Shards
from diffcli.data.shards import open_shards
from diffcli.engine import stage_reading
from diffcli.engine.distributed import join
from diffcli.engine.run.runlog import RunDir, read_log
from diffcli.engine.run.train import train
from diffcli.fields import to_float
from diffcli.prep.items import SourceOptions
from diffcli.prep.prepare import prepare
from tests.conftest import Cli
from tests.latents import latent_tree, stage_checkpoint
from tests.prep.reading import skipped, texts

N = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first stage, and a prepared set of twelve grey 8x8 images of two classes with captions and masks. Do not change it."""
    made, rng = tmp_path_factory.mktemp("latents"), np.random.default_rng(0)
    for number in range(N):
        folder = made / "images" / "train" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        levels = np.kron(rng.integers(0, 256, (1, 4, 4)), np.ones((1, 2, 2))).astype(np.uint8)
        (folder / f"{number:02d}.png").write_bytes(to_png(to_image(levels)))
        (folder / f"{number:02d}.txt").write_text(f"picture {number}\nor so")
    list(prepare("folder", made / "images", made / "set", images_per_shard=5))
    stage_checkpoint(made / "stage")
    return made


def cached(cli: Cli, root: Path, out: Path, *flags: object, stage: str = "stage") -> Path:
    done = cli(
        "prep-data", "latents", root / "set", "--first-stage", root / stage, "--out", out, "--workers", 1, *flags
    )
    assert done.code == 0, done.err
    return out


def tree_of(root: Path, data: Path, **keys: Any) -> dict[str, Any]:
    return latent_tree(
        **{
            "data": {"kind": "shards", "root": str(data), "size": 8, "channels": 1},
            "task__codec": {"kind": "latent", "from": str(root / "stage")},
            "task__conditioners": [{"kind": "class", "num_classes": 2, "dim": 8}],
            "train__batch_size": 4,
            **keys,
        }
    )


def losses(tree: dict[str, Any], folder: Path) -> list[float]:
    """Of six steps, two epochs."""
    run = RunDir(folder)
    run.claim()
    with join("cpu") as group:
        list(train(presets.build(tree | {"train": tree["train"] | {"steps": 6}}, "tree"), run, group))
    return [line["loss"] for line in read_log(folder)]


def test_captions_and_classes_are_carried_over_and_images_are_not(cli: Cli, root: Path, tmp_path: Path) -> None:
    out = cached(cli, root, tmp_path / "out")
    made, before = open_shards(out, "out"), open_shards(root / "set", "set")
    assert (made.count, made.classes, made.size, made.channels) == (N, before.classes, (8, 8), 1)
    assert texts(out) == texts(root / "set")
    data = Shards(root=out, size=8, channels=1).build("train")
    assert data.specs.keys() == {"latent", "label", "text"}
    images = Shards(root=root / "set", size=8, channels=1).build("train")
    assert data.labels is not None
    assert data.labels.equal(images.labels)
    with pytest.raises(UserError, match="holds latents, no images"):
        data.select({"image"}).read(torch.arange(2))


@pytest.mark.parametrize("memory", [True, False], ids=["in memory", "on disk"])
@pytest.mark.parametrize(("flags", "close"), [(["--no-half"], 1e-6), ([], 1e-3)], ids=["float32", "float16"])
def test_what_is_stored_is_what_the_first_stage_gives(
    cli: Cli, root: Path, tmp_path: Path, flags: list[str], close: float, memory: bool
) -> None:
    out = cached(cli, root, tmp_path / "out", *flags)
    data = Shards(root=out, size=8, channels=1, in_memory=memory).build("train")
    images = Shards(root=root / "set", size=8, channels=1).build("train").read(torch.arange(N))["image"]
    expected = stage_reading.read(root / "stage").build(torch.device("cpu")).encode(to_float(images))
    stored = data.read(torch.arange(N).flip(0))["latent"].flip(0)
    assert stored.dtype == (torch.float32 if flags else torch.float16)
    assert torch.allclose(stored.float(), expected, atol=close, rtol=close)
    assert isinstance(data, LatentImages)
    assert data.latents.bytes_in_memory == stored.nbytes
    assert memory == (data.latents.stacked is not None)


def test_sets_of_float16_and_of_float32_are_held_together_without_a_loss(cli: Cli, root: Path, tmp_path: Path) -> None:
    half, single = cached(cli, root, tmp_path / "half"), cached(cli, root, tmp_path / "single", "--no-half")
    for roots in ([half, single], [single, half]):
        sets = [
            Shards(root=roots[0], more=(roots[1],), size=8, channels=1, in_memory=memory) for memory in (True, False)
        ]
        held, read = (config.build("train").read(torch.arange(2 * N))["latent"] for config in sets)
        assert held.dtype == torch.float32
        assert held.equal(read)


def test_a_stopped_run_goes_on_to_the_same_bytes(root: Path, tmp_path: Path) -> None:
    found: list[dict[str, bytes]] = []
    for stops in (False, True):
        out = tmp_path / f"stops {stops}"
        chosen = encoding("latents", root / "set", root / "stage", None, True, False, Device.cpu)
        work = partial(prepare, "latents", root / "set", out, options=SourceOptions(latents=chosen), images_per_shard=5)
        if stops:
            reports = work()
            assert [next(reports).written for _ in range(2)] == [0, 5]
            reports.close()
        assert [report.written for report in work()] == ([5, 10, 12] if stops else [0, 5, 10, 12])
        found.append({path.name: path.read_bytes() for path in sorted(out.iterdir())})
    assert found[0] == found[1]


@pytest.mark.parametrize(("kind", "flip"), [("kl", True), ("vq", False)], ids=["kl mirrored", "vq"])
def test_training_on_latents_is_training_on_the_images(
    cli: Cli, root: Path, tmp_path: Path, kind: str, flip: bool
) -> None:
    """The same first weights, posterior noise, mirror images and steps: only no image is read."""
    stage = stage_checkpoint(tmp_path / "stage", bottleneck={"kind": kind})
    out = cached(cli, root, tmp_path / "out", "--no-half", *(["--flip-pair"] if flip else []), stage=str(stage))
    changes = {"data__flip": flip, "task__codec__from": str(stage)}
    on_the_fly = losses(tree_of(root, root / "set", **changes), tmp_path / "images")
    stored = losses(tree_of(root, out, **changes), tmp_path / "latents")
    assert stored == pytest.approx(on_the_fly, abs=2e-5)
    assert len(set(stored)) == len(stored)


def test_a_model_of_cached_latents_draws_and_resumes(cli: Cli, root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    losses(tree_of(root, cached(cli, root, tmp_path / "out")), run)
    assert cli("resume", run, "--steps", 8).code == 0
    assert cli("sample", "--ckpt", run, "--n", 2, "--out", tmp_path / "x.png").code == 0


def refused(cli: Cli, tree: dict[str, Any], folder: Path, *words: str) -> None:
    (folder / "bad.yaml").write_text(yaml.safe_dump(tree))
    cli("train", "--preset", folder / "bad.yaml", "--run-dir", folder / "bad").refused(*words)
    assert not (folder / "bad" / "checkpoints").exists()


def test_latents_of_another_first_stage_are_told_before_the_data_are_read(
    cli: Cli, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*given: object) -> None:
        raise AssertionError("the data were read")

    monkeypatch.setattr("diffcli.engine.run.train.measure", read)
    stage_checkpoint(tmp_path / "other", seed=1)
    tree = tree_of(root, cached(cli, root, tmp_path / "out"), task__codec__from=str(tmp_path / "other"))
    refused(cli, tree, tmp_path, "the latents were made by", str(root / "stage"), str(tmp_path / "other"))
    dry = cli("train", "--preset", tmp_path / "bad.yaml", "--run-dir", tmp_path / "bad", "--dry-run")
    dry.refused("the latents were made by", str(root / "stage"), str(tmp_path / "other"), "diffcli prep-data latents")


def test_latents_that_do_not_fit_are_refused_before_a_step(cli: Cli, root: Path, tmp_path: Path) -> None:
    out = cached(cli, root, tmp_path / "out")
    stage_checkpoint(tmp_path / "other", seed=1)
    other = {"kind": "latent", "from": str(tmp_path / "other")}
    refused(cli, tree_of(root, out, task__codec=other), tmp_path, "data", str(root / "stage"), str(tmp_path / "other"))
    refused(cli, tree_of(root, out, data__size=16), tmp_path, "1x8x8", "1x16x16", "--set data.size=8 ", "--size 16")
    refused(cli, tree_of(root, out, data__flip=True), tmp_path, "data.flip", "--flip-pair")
    refused(cli, tree_of(root, out, data__crop="random"), tmp_path, "data.crop", "latents")
    refused(cli, tree_of(root, out, task__codec=None), tmp_path, "task.field", "latent")
    stage_checkpoint(tmp_path / "wide", network__latent=4)
    wide = {"kind": "latent", "from": str(tmp_path / "wide")}
    refused(cli, tree_of(root, out, task__codec=wide), tmp_path, "task.codec", "8 numbers", "6x4x4")


def test_a_first_stage_that_cannot_take_the_set_is_refused_with_nothing_written(
    cli: Cli, root: Path, trained: Path, tmp_path: Path
) -> None:
    stage_checkpoint(tmp_path / "rgb", channels=3)
    other = stage_checkpoint(tmp_path / "other", seed=2)
    whole = stage_checkpoint(tmp_path / "whole", network__whole=[8, 8])
    cases: list[tuple[list[object], tuple[str, ...]]] = [
        ([root / "set"], ("needs a first stage", "--first-stage")),
        ([root / "set", "--first-stage", trained], ("--first-stage", "was trained as a diffusion")),
        ([root / "set", "--first-stage", tmp_path / "rgb"], ("--first-stage", "3 channels", "has 1")),
        ([root / "set", "--first-stage", other, "--size", 9], ("--first-stage", "9x9", "--size 8")),
        ([root / "set", "--first-stage", whole, "--size", 4], ("--first-stage", "4x4", "--size 8")),
        ([root / "images", "--first-stage", root / "stage"], ("SOURCE", "dataset.json")),
    ]
    for arguments, words in cases:
        cli("prep-data", "latents", *arguments, "--out", tmp_path / "out").refused(*words)
        assert not (tmp_path / "out").exists()
    cli("prep-data", "folder", root / "images", "--flip-pair", "--out", tmp_path / "out").refused(
        "--flip-pair", "folder"
    )
    out = cached(cli, root, tmp_path / "done")
    again = ["prep-data", "latents", root / "set", "--first-stage", other, "--out", out]
    cli(*again).refused("holds a set made with another first stage than that of --first-stage")
    again[4] = root / "stage"
    cli(*again, "--flip-pair").refused("holds a set made with --no-flip-pair, not --flip-pair")
    cli(*again, "--no-half").refused("holds a set made with --half, not --no-half")
    cli(*again, "--limit", 3).refused("holds a set made with no --limit, not --limit 3")
    cli("prep-data", "latents", out, "--first-stage", root / "stage", "--out", tmp_path / "b").refused(
        "latents already"
    )


def test_latents_that_are_no_numbers_are_told_when_they_are_made_and_when_they_are_read(
    cli: Cli, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = cached(cli, root, tmp_path / "out")
    monkeypatch.setattr("diffcli.prep.sets.latents.HALF", float("nan"))
    cached(cli, root, tmp_path / "nan")
    with pytest.raises(UserError, match="not all of its numbers are finite"):
        Shards(root=tmp_path / "nan", size=8, channels=1).build("train")
    assert Shards(root=out, size=8, channels=1).build("train")
    monkeypatch.setattr("torch.nn.functional.silu", lambda x: x * float("nan"))
    done = cli("prep-data", "latents", root / "set", "--first-stage", root / "stage", "--out", tmp_path / "b")
    done.refused("--first-stage", "not finite")


def test_the_image_whose_latent_is_no_number_is_named(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffcli.prep.sets.latents.BATCH", 2)
    chosen, seen = encoding("latents", root / "set", root / "stage", None, True, False, Device.cpu), [0]
    whole = chosen.encode

    def sometimes(x: torch.Tensor) -> torch.Tensor:
        made, first = whole(x), seen[0]
        seen[0] += len(x)
        if first <= 3 < seen[0]:
            made[3 - first, 0, 0, 0] = torch.nan
        return made

    options = SourceOptions(latents=chosen.model_copy(update={"encode": sometimes}))
    with pytest.raises(UserError, match=r"--first-stage .*\(image 3\)"):
        list(prepare("latents", root / "set", tmp_path / "out", options=options, images_per_shard=5))


def test_an_image_that_cannot_be_read_is_skipped_and_listed(
    cli: Cli, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffcli.data.pixels import BrokenImage
    from diffcli.prep.sets import latents

    whole = latents.decode

    def sometimes(data: bytes, name: str, *arguments: Any) -> np.ndarray:
        if "image 3)" in name:
            raise BrokenImage(name, "it is truncated")
        return whole(data, name, *arguments)

    monkeypatch.setattr(latents, "decode", sometimes)
    out = cached(cli, root, tmp_path / "out")
    assert list(skipped(out).values()) == ["it is truncated"] * 2, "of the two shards that have so many"
    assert open_shards(out, "out").count == N - 2


def test_an_unfinished_set_is_called_that_with_the_command_that_goes_on(cli: Cli, root: Path, tmp_path: Path) -> None:
    """What a killed prep-data leaves: the request, and no dataset.json."""
    out, place = tmp_path / "half made", f"'{tmp_path / 'half made'}'"
    cached(cli, root, out, "--size", 8)
    request = json.loads((out / "dataset.json").read_text())["request"]
    (out / ".work").mkdir()
    (out / ".work/request.json").write_text(json.dumps(request))
    (out / "dataset.json").unlink()
    words = (
        "has not finished",
        f"`diffcli prep-data latents SOURCE --out {place} --first-stage RUN --size 8`",
        "being set",
    )
    cli("train", "--preset", "mnist-vae", "--data", out, "--run-dir", tmp_path / "run").refused(*words)
    cli("fid", out, out).refused(*words)
    refused(cli, tree_of(root, out), tmp_path, *words)


def test_what_is_refused_before_the_first_step_leaves_no_run(cli: Cli, root: Path, tmp_path: Path) -> None:
    data = cached(cli, root, tmp_path / "data")
    preset = tmp_path / "cut.yaml"
    preset.write_text(yaml.safe_dump(tree_of(root, data)))
    for shard in data.glob("*.tar"):
        shard.write_bytes(shard.read_bytes()[:600])
    cli("train", "--preset", preset, "--run-dir", tmp_path / "runs/cut", "--device", "cpu").refused(str(data))
    assert not (tmp_path / "runs").exists()
    (tmp_path / "own").mkdir()
    cli("train", "--preset", preset, "--run-dir", tmp_path / "own", "--device", "cpu").refused(str(data))
    assert (tmp_path / "own").is_dir()
