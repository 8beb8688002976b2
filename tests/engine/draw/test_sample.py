"""Images from a checkpoint: the same seed is the same image however it is computed, and a sidecar says how to draw it again."""

import json
from collections.abc import Callable
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffcli import __version__
from diffcli.diffusion.samplers import Ddim
from diffcli.digest import sha256
from diffcli.engine.distributed import Group, join
from diffcli.engine.draw.sample import SampleOptions, class_id, load_model, request
from diffcli.engine.draw.sample import draw as finished
from diffcli.engine.draw.sheets.arrangement import GAP
from diffcli.engine.records.record_files import sidecar
from diffcli.noise import Noise
from tests.conftest import Cli, in_ranks, in_subprocess

LAST = "checkpoints/step-00000004"


@pytest.fixture
def draw(cli: Cli, trained: Path, tmp_path: Path) -> Callable[..., np.ndarray]:
    """Samples of the trained run as (N, 8, 8) uint8."""

    def run(*options: object, ckpt: Path = trained) -> np.ndarray:
        out = tmp_path / "drawn.npz"
        done = cli("sample", "--ckpt", ckpt, "--out", out, *options)
        assert done.code == 0, done.err
        return np.load(out)["arr_0"][..., 0]

    return run


def off_by_at_most_one_level(one: np.ndarray, other: np.ndarray) -> None:
    """Batches of other sizes sum in another order: float32 rounding may move a pixel over the edge of a level."""
    assert one.shape == other.shape
    difference = np.abs(one.astype(int) - other.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_the_same_seed_is_the_same_image_to_the_byte(draw: Callable[..., np.ndarray]) -> None:
    first = draw("--n", 5, "--seed", 3)
    assert np.array_equal(first, draw("--n", 5, "--seed", 3))
    assert not np.array_equal(first, draw("--n", 5, "--seed", 4))


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "heun", "dpmpp_2m"])
def test_images_do_not_depend_on_the_batch_size(draw: Callable[..., np.ndarray], sampler: str) -> None:
    options = ["--n", 7, "--sampler", sampler, "--steps", 4]
    whole = draw(*options)
    assert len({image.tobytes() for image in whole}) == 7
    for batch_size in (1, 3, 7):
        off_by_at_most_one_level(draw(*options, "--batch-size", batch_size), whole)


def test_image_i_depends_on_its_seed_alone(draw: Callable[..., np.ndarray]) -> None:
    five = draw("--n", 5, "--class", 7, "--sampler", "ddpm")
    off_by_at_most_one_level(draw("--n", 2, "--class", 7, "--sampler", "ddpm", "--seed", 3), five[3:])


def test_seeds_go_on_past_the_first_batch_of_64(trained: Path) -> None:
    """No two images of a request share a seed, and image i is image 0 of a request whose seed is i higher."""
    model = load_model(trained, torch.device("cpu"))

    def images(n: int, seed: int = 3) -> torch.Tensor:
        options = SampleOptions(n=n, seed=seed, labels="7", sampler="ddpm", steps=2)
        return torch.cat([part.images for part in finished(request(model, options), Group(0, 1, torch.device("cpu")))])

    many = images(131)
    assert len({image.numpy().tobytes() for image in many}) == 131
    assert request(model, SampleOptions(n=131, seed=3)).seeds(range(131)) == list(range(3, 134))
    for i in (64, 70, 130):
        off_by_at_most_one_level(images(1, seed=3 + i).numpy(), many[i : i + 1].numpy())


@pytest.mark.parametrize("launched", [in_ranks, pytest.param(in_subprocess, marks=pytest.mark.slow)])
def test_images_do_not_depend_on_the_number_of_processes(
    draw: Callable[..., np.ndarray], trained: Path, tmp_path: Path, launched: Cli
) -> None:
    """To the byte: each process computes batches of the same size as one process would."""
    options = ["--n", 7, "--batch-size", 2, "--class", "random", "--sampler", "ddpm", "--precision", "fp32"]
    out = tmp_path / "two.npz"
    done = launched("sample", "--ckpt", trained, "--out", out, "--nproc", 2, *options)
    assert done.code == 0, done.err
    assert done.out == f"{out}\n"
    assert done.err == ""
    two = np.load(out)
    assert np.array_equal(two["arr_0"][..., 0], draw(*options))
    assert two["arr_1"].shape == (7,)


def test_averaged_weights_are_the_default_and_can_be_switched_off(draw: Callable[..., np.ndarray]) -> None:
    averaged = draw("--n", 2)
    assert np.array_equal(averaged, draw("--n", 2, "--ema"))
    assert not np.array_equal(averaged, draw("--n", 2, "--no-ema"))


def test_a_run_a_checkpoint_folder_and_its_one_file_draw_the_same(
    draw: Callable[..., np.ndarray], trained: Path, tmp_path: Path
) -> None:
    expected = draw("--n", 2)
    assert np.array_equal(draw("--n", 2, ckpt=trained / LAST), expected)
    file = tmp_path / "exported.safetensors"
    file.write_bytes((trained / LAST / "ema.safetensors").read_bytes())
    assert np.array_equal(draw("--n", 2, ckpt=file), expected)
    assert not np.array_equal(draw("--n", 2, ckpt=trained / "checkpoints/step-00000002"), expected)


def test_arrays_are_nhwc_bytes_with_labels(cli: Cli, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.npz"
    assert cli("sample", "--ckpt", trained, "--out", out, "--n", 12).code == 0
    arrays = np.load(out)
    assert sorted(arrays) == ["arr_0", "arr_1"]
    assert (arrays["arr_0"].dtype, arrays["arr_0"].shape) == (np.uint8, (12, 8, 8, 1))
    assert arrays["arr_1"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        (["--class", "all"], list(range(10))),
        (["--class", "all", "--n", "3"], [0, 1, 2]),
        (["--class", "4", "--n", "3"], [4, 4, 4]),
        (["--n", "2"], [0, 1]),
        ([], [i % 10 for i in range(16)]),
    ],
)
def test_classes_come_in_the_order_asked(
    cli: Cli, trained: Path, tmp_path: Path, options: list[str], labels: list[int]
) -> None:
    out = tmp_path / "a.npz"
    assert cli("sample", "--ckpt", trained, "--out", out, *options).code == 0
    assert np.load(out)["arr_1"].tolist() == labels
    assert json.loads((tmp_path / "a.npz.json").read_text())["labels"] == labels


def test_random_classes_follow_from_the_seed(cli: Cli, trained: Path, tmp_path: Path) -> None:
    drawn = []
    for i, (seed, n) in enumerate([(0, 40), (0, 40), (5, 35)]):
        out = tmp_path / f"{i}.npz"
        assert cli("sample", "--ckpt", trained, "--out", out, "--class", "random", "--seed", seed, "--n", n).code == 0
        drawn.append(np.load(out)["arr_1"].tolist())
        assert json.loads(sidecar(out).read_text())["labels"] == drawn[-1]
    assert drawn[0] == drawn[1]
    assert drawn[0][5:] == drawn[2]  # label i depends on seed i, as the image does
    assert set(drawn[0]) <= set(range(10))
    assert len(set(drawn[0])) > 5


def test_a_class_is_found_by_name_whatever_its_case_and_by_number() -> None:
    names = ("cat", "Dog", "7")
    assert [class_id(which, names, 3) for which in ("cat", "dog", "DOG", "7", "2", "0")] == [0, 1, 1, 2, 2, 0]
    assert class_id("1", None, 3) == 1
    assert class_id("caf\u00e9", ("bar", "cafe\u0301"), 2) == 1  # as another system stores the same name
    assert [class_id(which, ("1", "0"), 2) for which in ("1", 1)] == [0, 1]  # a number is one whatever the names are


def test_the_grid_shows_images_in_the_order_asked_a_row_for_each_round_of_classes(
    cli: Cli, trained: Path, tmp_path: Path, draw: Callable[..., np.ndarray]
) -> None:
    assert cli("sample", "--ckpt", trained, "--out", tmp_path / "g.png", "--n", 20).code == 0
    picture, images = imageio.imread(tmp_path / "g.png"), draw("--n", 20)
    cell = 8 + GAP
    assert picture.shape == (2 * cell + GAP, 10 * cell + GAP)
    for i, image in enumerate(images):
        top, left = GAP + i // 10 * cell, GAP + i % 10 * cell
        assert np.array_equal(picture[top : top + 8, left : left + 8], image), i


def test_a_folder_holds_one_file_an_image(
    cli: Cli, trained: Path, tmp_path: Path, draw: Callable[..., np.ndarray]
) -> None:
    out = tmp_path / "deep" / "folder"
    assert cli("sample", "--ckpt", trained, "--out", out, "--n", 5, "--batch-size", 2).code == 0
    assert sorted(p.name for p in out.iterdir()) == [f"{i:06d}.png" for i in range(5)]
    images = np.stack([imageio.imread(out / f"{i:06d}.png") for i in range(5)])
    assert np.array_equal(images, draw("--n", 5, "--batch-size", 2))
    assert json.loads((tmp_path / "deep" / "folder.json").read_text())["n"] == 5


def test_a_folder_never_mixes_two_requests(cli: Cli, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "folder"
    assert cli("sample", "--ckpt", trained, "--out", out, "--n", 3).code == 0
    assert cli("sample", "--ckpt", trained, "--out", out, "--n", 3, "--seed", 5).code == 0  # the same names: replaced
    cli("sample", "--ckpt", trained, "--out", out, "--n", 2).refused("--out", "000002.png")


def test_the_sidecar_says_all_that_draws_the_images_again(cli: Cli, trained: Path, tmp_path: Path) -> None:
    options = ["--n", 3, "--seed", 9, "--ddim-eta", 0.5, "--steps", 2, "--guidance", 1.5, "--class", 4]
    assert cli("sample", "--ckpt", trained, "--out", tmp_path / "s.png", *options).code == 0
    told = json.loads((tmp_path / "s.png.json").read_text())
    weights = trained / LAST / "ema.safetensors"
    expected = {
        "checkpoint": str(trained / LAST),
        "step": 4,
        "ema": True,
        "weights_sha256": sha256(weights),
        "n": 3,
        "seeds": [9, 10, 11],
        "sampler": {"kind": "ddim", "steps": 2, "eta": 0.5, "spacing": "uniform", "ends": "clean"},
        "steps": 2,
        "nfe": 2,
        "guidance": 1.5,
        "labels": [4, 4, 4],
        "version": __version__,
    }
    assert expected.items() <= told.items()


def test_without_options_the_run_decides_sampler_steps_and_guidance(cli: Cli, trained: Path, tmp_path: Path) -> None:
    assert cli("sample", "--ckpt", trained, "--out", tmp_path / "s.png").code == 0
    told = json.loads((tmp_path / "s.png.json").read_text())
    assert (told["sampler"]["kind"], told["steps"], told["guidance"], told["n"]) == ("ddim", 3, 2, 16)


@pytest.mark.parametrize(("sampler", "nfe"), [("ddpm", 5), ("ddim", 5), ("heun", 9), ("dpmpp_2m", 5)])
def test_nfe_counts_the_evaluations_of_the_network(trained: Path, sampler: str, nfe: int) -> None:
    with join("cpu") as group:
        model = load_model(trained, group.device)
        req = request(model, SampleOptions(n=1, sampler=sampler, steps=5, guidance=2.0))
        calls = []
        req.task.denoiser.network.register_forward_hook(lambda *args: calls.append(1))
        list(req.walk(range(1))[1])
    assert (req.sampler.nfe, len(calls)) == (nfe, nfe)


def test_ddim_eta_implies_ddim_and_keeps_the_runs_steps(trained: Path) -> None:
    model = load_model(trained, torch.device("cpu"))
    assert request(model, SampleOptions(eta=0.3)).sampler == Ddim(steps=3, eta=0.3)
    assert request(model, SampleOptions(sampler="heun")).sampler.steps == 3


def test_guidance_of_one_is_the_conditional_model_and_of_zero_the_unconditional(
    draw: Callable[..., np.ndarray],
) -> None:
    null = draw("--n", 3, "--guidance", 0, "--class", 1)
    assert np.array_equal(null, draw("--n", 3, "--guidance", 0, "--class", 8))
    one, eight = (draw("--n", 3, "--guidance", 1, "--class", c) for c in (1, 8))
    assert not np.array_equal(one, eight)
    assert not np.array_equal(null, one)


def test_loading_draws_nothing_from_the_global_random_state(trained: Path) -> None:
    before = torch.get_rng_state()
    load_model(trained, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loaded_model_holds_the_weights_of_the_file(trained: Path) -> None:
    model = load_model(trained, torch.device("cpu"), use_ema=False)
    saved = load_file(trained / LAST / "task.safetensors")
    assert saved.keys() == model.task.state_dict().keys()
    assert all(torch.equal(saved[name], value) for name, value in model.task.state_dict().items())


def test_an_unconditional_model_draws_without_labels(tiny: Callable[..., Path], cli: Cli, tmp_path: Path) -> None:
    preset = tiny(task__conditioners=[], task__drop_condition=0, guidance=1)
    assert cli("train", "--preset", preset, "--run-dir", tmp_path / "run", "--steps", 1).code == 0
    assert cli("sample", "--ckpt", tmp_path / "run", "--out", tmp_path / "s.npz", "--n", 3).code == 0
    assert sorted(np.load(tmp_path / "s.npz")) == ["arr_0"]
    assert json.loads((tmp_path / "s.npz.json").read_text())["labels"] is None
    cli("sample", "--ckpt", tmp_path / "run", "--class", 3).refused("--class 3", "not class-conditional")
    cli("sample", "--ckpt", tmp_path / "run", "--guidance", 2).refused("--guidance", "2.0", "unconditional")


def test_shares_of_ranks_cover_everything_once() -> None:
    for n in (1, 2, 5, 7):
        for world in (1, 2, 3):
            shares = Group(0, world, torch.device("cpu")).shares(n)
            assert [i for share in shares for i in share] == list(range(n))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_noise_of_a_seed_starts_every_sampler(trained: Path) -> None:
    """The contract of seeds across samplers: image i starts from the first draw of stream seed + i."""
    model = load_model(trained, torch.device("cpu"))
    req = request(model, SampleOptions(n=2, seed=11, guidance=1.0))
    seen = []
    req.task.denoiser.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    next(req.walk(range(2))[1])
    assert torch.equal(seen[0], Noise([11, 12], torch.device("cpu"))(torch.empty(2, 1, 8, 8)))


def test_set_changes_any_key_of_the_sampler(cli: Cli, trained: Path, tmp_path: Path) -> None:
    images = {}
    for variance in ("small", "large"):
        out = tmp_path / f"{variance}.npz"
        options = "--sampler", "ddpm", "--steps", 5, "--set", f"sampler.variance={variance}"
        assert cli("sample", "--ckpt", trained, "--n", 2, "--out", out, *options).code == 0
        assert json.loads(Path(f"{out}.json").read_text())["sampler"]["variance"] == variance
        images[variance] = np.load(out)["arr_0"]
    assert not np.array_equal(images["small"], images["large"])


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("task.target=eps", ["task.target=eps", "sampler.*", "guide.*"]),
        ("sampler.variance=learned", ["learn_variance"]),
        ("sampler.varianse=small", ["varianse", "did you mean 'variance'"]),
    ],
)
def test_set_refuses_what_sampling_cannot_change(
    cli: Cli, trained: Path, tmp_path: Path, item: str, words: list[str]
) -> None:
    outcome = cli("sample", "--ckpt", trained, "--sampler", "ddpm", "--set", item, "--out", tmp_path / "a.png")
    outcome.refused(*words)
