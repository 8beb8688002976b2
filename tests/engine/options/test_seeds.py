"""Several seeds are one image each: each is the image that its seed gives alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import diffcli
from diffcli.config import UserError
from diffcli.engine.distributed import Group
from diffcli.engine.draw.masks.segmenting import check_options
from diffcli.engine.draw.pictured.cascade import of_next
from diffcli.engine.draw.reconstruction import reconstruction
from diffcli.engine.draw.sample import SampleOptions, draw, load_model, request
from diffcli.engine.options.seeds import Seeds, check_seeds, nth_seed, read_seeds
from diffcli.noise import Noise
from tests.conftest import Cli
from tests.engine.draw.making import encoding, made

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("5", 5),
        ("1,5,9", (1, 5, 9)),
        ("0-3", (0, 1, 2, 3)),
        ("0-2,7", (0, 1, 2, 7)),
        (" 9, 3 - 4", (9, 3, 4)),
        ("3-3", (3,)),
    ],
)
def test_a_text_names_a_seed_a_list_or_ranges_with_both_ends(text: str, seeds: Seeds) -> None:
    assert read_seeds(text) == seeds


@pytest.mark.parametrize(
    ("options", "found", "remedy"),
    [
        (["--seed", "9-3"], "9-3", "3-9"),
        (["--seed", "1,5,1"], "1", "once"),
        (["--seed", "0-3,2"], "2", "once"),
        (["--seed", "1,,5"], "1,,5", "--seed 0-15"),
        (["--seed", ""], "--seed", "--seed 5"),
        (["--seed", "1.5"], "1.5", "whole number"),
        (["--seed=-2"], "-2", "whole number"),
        (["--seed", "0-9999999999"], "0-9999999999", "--seed 0 --n N"),
        (["--seed", 2**64], "18446744073709551616", "whole number"),
        (["--seed", f"0-3,{2**63}"], "9223372036854775808", "whole number"),
        (["--seed", "1,5", "--n", 3], "--n 3", "leave --n out"),
        (["--seed", "1,5,9", "--interpolate", 4], "--interpolate 4", "name two seeds"),
    ],
)
def test_what_is_no_seed_is_refused_before_the_checkpoint_is_looked_for(
    cli: Cli, tmp_path: Path, options: list[object], found: str, remedy: str
) -> None:
    done = cli("sample", tmp_path / "nowhere", *options, "--out", tmp_path / "new" / "a.png")
    done.refused(found, remedy)
    assert list(tmp_path.iterdir()) == []


def test_past_the_last_of_several_seeds_the_numbers_go_on() -> None:
    assert [nth_seed((4, 9), i) for i in range(4)] == [4, 9, 10, 11]
    assert [nth_seed(4, i) for i in range(3)] == [4, 5, 6]
    check_seeds((1, 5), 2, None)
    check_seeds(1, 9, 3)


def test_each_of_several_seeds_gives_the_image_that_it_gives_alone_and_the_record_repeats_them(
    cli: Cli, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    how = ["--class", "random", "--sampler", "ddpm", "--steps", 2]  # class and noise follow from the seed
    assert cli("sample", trained, "--seed", "1,5,9", *how, "--out", "a.npz").code == 0
    assert json.loads(Path("a.npz.json").read_text())["seeds"] == [1, 5, 9]
    several = np.load("a.npz")
    for place, seed in enumerate((1, 5, 9)):
        assert cli("sample", trained, "--seed", seed, "--n", 1, *how, "--out", "one.npz").code == 0
        one = np.load("one.npz")
        assert one["arr_1"].tolist() == several["arr_1"][place : place + 1].tolist()
        assert np.abs(one["arr_0"].astype(int) - several["arr_0"][place : place + 1]).max() <= 1
    for again in (["--like", "a.npz", "--batch-size", 2], [trained, "--seed", "1,5,9", "--n", 3, *how]):
        assert cli("sample", *again, "--out", "b.npz").code == 0
        assert np.abs(np.load("b.npz")["arr_0"].astype(int) - several["arr_0"]).max() <= 1


def test_a_range_is_what_the_first_seed_and_a_number_of_images_are(trained: Path) -> None:
    model = load_model(trained, CPU)
    reqs = [
        request(model, SampleOptions(**o, labels="all", steps=1)) for o in ({"seed": (3, 4, 5)}, {"seed": 3, "n": 3})
    ]
    one, other = ([part.images for part in draw(req, Group(0, 1, CPU))] for req in reqs)
    assert torch.equal(torch.cat(one), torch.cat(other))
    assert reqs[0].describe() == reqs[1].describe()
    assert reqs[0].labels is not None
    assert reqs[0].labels.tolist() == [0, 1, 2]
    assert reqs[0].seeds(range(1, 3)) == [4, 5]  # what another process or a later batch computes


def test_fewer_seeds_than_classes_that_are_named_are_refused_unless_the_number_is(trained: Path) -> None:
    model = load_model(trained, CPU)
    with pytest.raises(UserError, match=r"2 seeds.*3") as told:
        request(model, SampleOptions(seed=(4, 8), labels=(1, 2, 3)))
    assert "--n 2" in told.value.hint
    assert request(model, SampleOptions(seed=(4, 8), labels=(1, 2, 3), n=2)).n == 2
    assert request(model, SampleOptions(seed=(4, 8, 2), labels=(1, 2))).n == 3


def test_an_interpolation_goes_from_one_named_seed_to_the_other(trained: Path) -> None:
    model = load_model(trained, CPU)
    req = request(model, SampleOptions(labels="3", seed=(5, 40), interpolate=4))
    ends = request(model, SampleOptions(labels="3", seed=(5, 40))).walk(range(2))[0]
    assert torch.equal(req.walk(range(4))[0][[0, -1]], ends)
    assert req.describe()["seeds"] == [5, 40]
    with pytest.raises(UserError, match="--image"):
        SampleOptions(seed=(5, 40), interpolate=4, images=(Path("a.png"), Path("b.png"))).check()


def test_a_later_stage_has_the_seeds_of_the_first() -> None:
    later = of_next(made(), SampleOptions(seed=(3, 8)), 2, None)
    assert (later.seed, later.n) == ((3, 8), 2)
    assert of_next(made(), SampleOptions(seed=(3, 8), interpolate=5), 5, None).seed == 3


def test_a_first_stage_draws_latents_of_the_seeds_that_are_named() -> None:
    model = encoding()
    req = reconstruction(model, SampleOptions(seed=(7, 2)))
    assert req.describe()["seeds"] == [7, 2]
    latents = req.source.latents(req.stage, range(2))  # type: ignore[attr-defined]
    assert torch.equal(latents, Noise([7, 2], CPU)(latents))


def test_where_nothing_follows_from_a_seed_several_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--seed"):
        check_options(SampleOptions(seed=(1, 2)))
    with pytest.raises(UserError, match="--seed"):
        reconstruction(encoding(), SampleOptions(seed=(1, 2), images=(tmp_path / "a.png",)))


def test_an_animation_shows_an_image_of_each_seed(cli: Cli, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.gif"
    assert cli("gif", trained, "--seed", "4,2", "--steps", 1, "--out", out).code == 0
    told = json.loads((tmp_path / "a.gif.json").read_text())
    assert (told["n"], told["seeds"]) == (2, [4, 2])


def test_python_takes_a_seed_or_several(trained: Path) -> None:
    model = diffcli.load(trained, device="cpu")
    for seeds in ([6, 1], range(6, 8), np.array([3, 4])):
        images = model.sample(seed=seeds, label=1, steps=1)  # type: ignore[arg-type]
        assert images.record["seeds"] == [int(seed) for seed in seeds]
    for wrong, word in (([1, -1], "-1"), ([2, 2], "2"), ([], "empty"), ([1, True], "True")):
        with pytest.raises(UserError, match=word):
            model.sample(seed=wrong)
    with pytest.raises(UserError, match="n 3") as told:
        model.sample(n=3, seed=[1, 2])
    assert told.value.hint == "leave n out, or give the first seed alone"
