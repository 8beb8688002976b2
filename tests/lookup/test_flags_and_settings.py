from pathlib import Path

import pytest

from diffcli.config import UserError
from diffcli.lookup.flags_and_settings import SAMPLING, TRAINING, check_agreement
from tests.conftest import Cli


@pytest.mark.parametrize(
    ("typed", "flag", "setting"),
    [
        (["sample", "RUN", "--steps", 7, "--set", "sampler.steps=5"], "--steps 7", "sampler.steps=5"),
        (["sample", "RUN", "--sampler", "heun", "--set", "sampler.kind=ddim"], "--sampler heun", "sampler.kind=ddim"),
        (["gif", "RUN", "--ddim-eta", 0.5, "--set", "sampler.eta=0"], "--ddim-eta 0.5", "sampler.eta=0"),
        (["fid", "RUN", "--steps", 7, "--set", "sampler.steps=5"], "--steps 7", "sampler.steps=5"),
        (["train", "--preset", "digits", "--steps", 5, "--set", "train.steps=3"], "--steps 5", "train.steps=3"),
        (["train", "--preset", "digits", "--seed", 5, "--set", "seed=3"], "--seed 5", "seed=3"),
        (["train", "--preset", "digits", "--data", "a", "--set", "data.root=b"], "--data a", "data.root=b"),
        (["train", "--preset", "digits", "--from", "RUN", "--set", "from=b"], "--from", "from=b"),
        (["resume", "RUN", "--steps", 9, "--set", "train.steps=8"], "--steps 9", "train.steps=8"),
    ],
)
def test_a_flag_and_a_setting_of_one_key_with_two_values_are_refused(
    cli: Cli, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: list[str], flag: str, setting: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli(*(trained if word == "RUN" else word for word in typed))
    done.refused(flag, f"--set {setting}", "two values for one key", "leave one of them out")
    assert list(tmp_path.iterdir()) == []


def test_a_flag_and_a_setting_that_say_the_same_are_fine(cli: Cli, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    done = cli(
        "sample", trained, "--n", 1, "--steps", 2, "--set", "sampler.steps=5", "--set", "sampler.steps=2", "--out", out
    )
    assert done.code == 0, done.err
    check_agreement(["sampler.eta=0.5"], SAMPLING, {"--ddim-eta": 0.5, "--steps": None})
    check_agreement(["data.root=sets/a/"], TRAINING, {"--data": "sets/a"})
    check_agreement([f"data.root={Path('sets/a').absolute()}"], TRAINING, {"--data": "sets/a"})
    check_agreement(["data.root=null"], TRAINING, {"--data": "sets/a"})
    check_agreement(["from.weights=raw", "from={weights: raw}"], TRAINING, {"--from": Path("runs/a")})


def test_of_two_settings_the_last_one_counts() -> None:
    with pytest.raises(UserError, match=r"--steps 2 with --set sampler\.steps=5"):
        check_agreement(["sampler.steps=2", "sampler.steps=5"], SAMPLING, {"--steps": 2})
