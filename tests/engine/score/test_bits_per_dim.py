"""`fid --metrics bpd`: a bound that follows from model, images and seed alone, and what it is refused for."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffcli.data.prepared import Shards
from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.guidance import clip_x0
from diffcli.diffusion.likelihood import bits_per_dim
from diffcli.engine.draw.sample import SampleOptions, load_model, request
from diffcli.engine.score.bound import VariationalBound
from diffcli.noise import Noise
from diffcli.prep.prepare import prepare
from tests.conftest import Cli, in_ranks
from tests.engine.one_level import SMALL
from tests.engine.score.making import pixels, write_folder, write_npz

STEPS = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few diffusion steps, with a learned variance."""
    return train(tmp_path_factory, {"kind": "cosine", "steps": STEPS}, learn_variance=True)


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory, {"kind": "flow"}, learn_variance=False)


def train(factory: pytest.TempPathFactory, schedule: dict, learn_variance: bool) -> Path:
    from diffcli import preset as presets
    from diffcli.engine.distributed import join
    from diffcli.engine.run.runlog import RunDir
    from diffcli.engine.run.train import train
    from tests.conftest import changed

    tree = changed(SMALL, task__schedule=schedule, task__learn_variance=learn_variance, train__steps=2)
    found = RunDir(factory.mktemp("bits") / "run")
    found.claim()
    with join("cpu") as group:
        for _ in train(presets.build(tree, "tiny.yaml"), found, group):
            pass
    return found.path


def bpd(cli: Cli, run: Path, *more: object) -> dict:
    done = cli("fid", "--ckpt", run, "--metrics", "bpd", "--n", 10, "--device", "cpu", "--json", *more)
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_the_terms_add_up_to_the_bound_and_say_what_they_are_of(run: Path, cli: Cli) -> None:
    told = bpd(cli, run)
    assert len(told["terms"]) == STEPS + 1
    assert sum(told["terms"]) == pytest.approx(told["scores"]["bpd"], rel=1e-6)
    assert told["scores"]["bpd_std"] > 0
    assert told["reference"] == {"name": "tiny:train", "n": 10}
    assert (told["variance"], told["evaluations"], told["seed"]) == ("learned", STEPS, 0)
    lines = cli("fid", "--ckpt", run, "--metrics", "bpd", "--n", 10, "--device", "cpu").out.splitlines()
    assert lines[0].split()[:2] == ["bpd", f"{told['scores']['bpd']:.6g}"]


def test_the_bound_follows_from_the_seed_whatever_the_batch_size(run: Path, cli: Cli) -> None:
    one, other = bpd(cli, run, "--batch-size", 3), bpd(cli, run)
    assert one["terms"] == pytest.approx(other["terms"], rel=1e-4, abs=1e-6)
    assert bpd(cli, run)["scores"] == other["scores"]
    assert bpd(cli, run, "--seed", 1)["scores"] != other["scores"]


def test_a_prepared_set_of_another_size_is_resized_as_in_training(run: Path, cli: Cli, tmp_path: Path) -> None:
    large = pixels(0, 10, size=12)
    for number, image in enumerate(large):
        write_folder(tmp_path / "images" / f"{number}", image[None])
    list(prepare("folder", tmp_path / "images", tmp_path / "set"))
    told = bpd(cli, run, "--ref", tmp_path / "set")
    data = Shards(root=tmp_path / "set", size=8, channels=1).build("train").read(torch.arange(10))
    np.savez(tmp_path / "small.npz", arr_0=data["image"].permute(0, 2, 3, 1).numpy(), arr_1=data["label"].numpy())
    assert told["terms"] == pytest.approx(bpd(cli, run, "--ref", tmp_path / "small.npz")["terms"], rel=1e-5)
    asked = ("fid", "--ckpt", run, "--metrics", "bpd", "--device", "cpu", "--n", 4)
    cli(*asked, "--ref", write_npz(tmp_path / "large.npz", large)).refused("12", "the model's own size")


@pytest.mark.slow
def test_two_processes_tell_the_images_of_one(run: Path, cli: Cli) -> None:
    told = in_ranks("fid", "--ckpt", run, "--metrics", "bpd", "--n", 5, "--json", "--nproc", 2, "--device", "cpu")
    assert told.code == 0, told.err
    alone = bpd(cli, run, "--n", 5)
    assert json.loads(told.out)["terms"] == pytest.approx(alone["terms"], rel=1e-4, abs=1e-6)


def test_it_is_the_bound_of_the_plain_conditional_denoiser(run: Path, cli: Cli) -> None:
    """Not guided, as the run's samples are, but clipped as they are."""
    model = load_model(run, torch.device("cpu"))
    fields = model.preset.data.build("train").read(torch.arange(10))
    x0 = fields["image"].float() / 127.5 - 1
    keep = torch.ones(10, dtype=torch.bool)
    cond = model.task.condition({"label": fields["label"]}, keep, x0)
    noise = Noise(range(10), torch.device("cpu"))
    schedule = model.task.denoiser.schedule
    denoise = clip_x0(lambda x, t: model.task.denoiser(x, t, cond), schedule)
    terms = [float(term.bits.mean()) for term in bits_per_dim(denoise, schedule, x0, noise, "learned")]
    assert model.preset.guidance == 2
    assert bpd(cli, run)["terms"] == pytest.approx(terms, rel=1e-4, abs=1e-6)
    without = bpd(cli, run, "--guidance", 0)
    assert without["condition"] == "none"
    assert without["scores"] != bpd(cli, run)["scores"]


def test_a_compiled_network_sees_batches_of_one_size(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(run, torch.device("cpu"))
    sizes: list[int] = []
    forward = Denoiser.forward

    def watched(self: Denoiser, x: torch.Tensor, *more: Any) -> Any:
        sizes.append(len(x))
        return forward(self, x, *more)

    monkeypatch.setattr(Denoiser, "forward", watched)
    told = []
    for compiled in (False, True):
        req = request(dataclasses.replace(model, compiled=compiled), SampleOptions(n=10))
        bound, fields = VariationalBound(req, None), model.preset.data.build("train").read(torch.arange(10))
        parts = [
            bound({name: fields[name][4 * i : 4 * i + 4] for name in fields}, range(4 * i, min(4 * i + 4, 10)))
            for i in range(3)
        ]
        told.append(torch.cat([part["bits"] for part in parts]))
    assert sorted(set(sizes[: 3 * STEPS])) == [2, 4]
    assert set(sizes[3 * STEPS :]) == {4}
    torch.testing.assert_close(*told)


def test_the_variance_is_that_of_the_ancestral_sampler_asked_for(run: Path, cli: Cli) -> None:
    ddpm = "--sampler", "ddpm"
    told = {v: bpd(cli, run, *ddpm, "--set", f"sampler.variance={v}") for v in ("small", "large", "auto")}
    assert [told[v]["variance"] for v in told] == ["small", "large", "learned"]
    assert len({t["scores"]["bpd"] for t in told.values()}) == 3


def test_more_images_than_there_are_is_told(run: Path, cli: Cli, tmp_path: Path) -> None:
    import numpy as np

    few = tmp_path / "few.npz"
    np.savez(few, arr_0=np.zeros((3, 8, 8, 1), dtype=np.uint8), arr_1=np.arange(3))
    told = bpd(cli, run, "--ref", few)
    assert told["reference"]["n"] == 3
    assert told["warnings"] == [f"{few} has 3 images, fewer than the 10 of --n"]


def test_what_has_no_bound_is_refused_with_its_remedy(run: Path, flow: Path, cli: Cli, tmp_path: Path) -> None:
    import numpy as np

    def refused(*arguments: object) -> str:
        return cli("fid", *arguments, "--device", "cpu").refused()

    assert "continuous" in refused("--ckpt", flow, "--metrics", "bpd", "--n", 4)
    assert "--ckpt RUN" in refused("digits:train", "digits:test", "--metrics", "bpd")
    assert "--guidance 3" in refused("--ckpt", run, "--metrics", "bpd", "--guidance", 3)
    assert "--class 1" in refused("--ckpt", run, "--metrics", "bpd", "--class", 1)
    (weights := tmp_path / "w.pt").touch()
    for flags in (
        ("--sampler", "ddim"),
        ("--steps", 5),
        ("--ddim-eta", 0.5),
        ("--set", "guide.rescale=0.5"),
        ("--features", "inception"),
        ("--weights", weights),
    ):
        assert f"{flags[0]} {flags[1]} with --metrics bpd" in refused("--ckpt", run, "--metrics", "bpd", *flags)
    learned = "--sampler", "ddpm", "--set", "sampler.variance=learned"
    assert "task.learn_variance is false" in refused("--ckpt", flow, "--metrics", "bpd", *learned)
    for name, arrays, words in (
        ("unlabelled", {"arr_0": np.zeros((4, 8, 8, 1), dtype=np.uint8)}, "have no labels"),
        ("large", {"arr_0": np.zeros((4, 9, 8, 1), dtype=np.uint8), "arr_1": np.zeros(4, dtype=int)}, "1x9x8"),
    ):
        np.savez(tmp_path / f"{name}.npz", **arrays)
        assert words in refused("--ckpt", run, "--metrics", "bpd", "--ref", tmp_path / f"{name}.npz", "--n", 4)
