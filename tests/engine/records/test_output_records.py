"""Each output has a record of its own, which takes no other file's place and from which the output is made again."""

import json
from pathlib import Path

import numpy as np
import pytest

from diffcli.config import UserError
from diffcli.engine.records import output_records as records
from diffcli.engine.records.record_files import read_record
from tests.conftest import Cli

TOLD = {"checkpoint": "c", "version": "0", "n": 1, "seeds": [3]}


def test_outputs_of_one_stem_have_records_of_their_own(cli: Cli, trained: Path, tmp_path: Path) -> None:
    for name, n in (("s.png", 2), ("s.npz", 3)):
        assert cli("sample", trained, "--n", n, "--out", tmp_path / name).code == 0
        record = json.loads((tmp_path / f"{name}.json").read_text())
        assert record["n"] == n
        assert record["command"] == f"diffcli sample {trained} --n {n} --out {tmp_path / name}"
    assert not (tmp_path / "s.json").exists()


@pytest.mark.parametrize("text", ['{"mine": 1}', "[1]", "no json"])
def test_a_strangers_file_is_no_place_for_a_record(cli: Cli, trained: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "data.json").write_text(text)
    cli("sample", trained, "--n", 1, "--out", tmp_path / "data").refused("data.json", "--out")
    assert (tmp_path / "data.json").read_text() == text
    assert [path.name for path in (tmp_path / "data").glob("*")] == []
    (tmp_path / "data.json").write_text(json.dumps(TOLD))
    records.check_record(tmp_path / "data")


def test_like_draws_the_same_to_the_bit_from_another_folder_and_after_the_run_has_gone_on(
    cli: Cli, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained.parent)
    options = ["--n", 3, "--class", 4, "--seed", 11, "--steps", 2, "--guidance", 1.5, "--sampler", "ddpm"]
    assert cli("sample", "--ckpt", trained.name, *options, "--out", tmp_path / "a.npz").code == 0
    monkeypatch.chdir(tmp_path)
    for name in ("a.npz", "a.npz.json"):
        done = cli("sample", "--like", name, "--out", "b.npz", "--batch-size", 1)
        assert done.code == 0, done.err
        assert np.array_equal(np.load("a.npz")["arr_0"], np.load("b.npz")["arr_0"])
    assert cli("sample", "--like", "b.npz", "--out", "c.npz").code == 0
    assert np.array_equal(np.load("a.npz")["arr_0"], np.load("c.npz")["arr_0"])
    cli("sample", "--like", "a.npz", "--n", 4).refused("--n", "leave out")
    cli("sample", "--like", "a.npz", "--out", "a.npz").refused("a.npz", "another --out")


def test_an_animation_is_repeated_by_its_own_command(
    cli: Cli, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    how = ["--seed", "3,8", "--class", 2, "--steps", 2, "--frames", 2, "--fps", 5, "--show", "x0"]
    assert cli("gif", trained, *how, "--out", "a.gif").code == 0
    for name in ("a.gif", "a.gif.json"):
        done = cli("gif", "--like", name, "--out", "b.gif")
        assert done.code == 0, done.err
        assert Path("b.gif").read_bytes() == Path("a.gif").read_bytes()
    cli("sample", "--like", "a.gif", "--out", "b.png").refused("a.gif", "diffcli gif --like a.gif --out NEW.gif")
    cli("gif", "--like", "a.gif", "--frames", 1).refused("--frames", "leave out --frames")


@pytest.mark.parametrize(
    ("more", "typed"),
    [(["--no-ema"], "--no-ema"), (["--class", 1], "--class"), (["--set", "sampler.eta=1"], "--set"), (["r"], "r")],
)
def test_what_may_not_stand_beside_like_is_named_as_it_was_typed(
    cli: Cli, tmp_path: Path, more: list[object], typed: str
) -> None:
    cli("sample", "--like", tmp_path / "a.png", *more).refused(f"with {typed}", f"leave out {typed}")


def test_weights_that_are_others_by_now_are_refused(cli: Cli, trained: Path, tmp_path: Path) -> None:
    assert cli("sample", trained, "--n", 1, "--out", tmp_path / "a.npz").code == 0
    file = tmp_path / "a.npz.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"weights_sha256": "0"}))
    cli("sample", "--like", file, "--out", tmp_path / "b.npz").refused(str(file), "other weights")


def test_a_checkpoint_that_is_gone_is_named_with_what_to_do(cli: Cli, trained: Path, tmp_path: Path) -> None:
    assert cli("sample", trained, "--n", 1, "--out", tmp_path / "a.npz").code == 0
    file, gone = tmp_path / "a.npz.json", tmp_path / "gone"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"checkpoint": str(gone)}))
    cli("sample", "--like", file, "--out", tmp_path / "b.npz").refused(str(gone), "`command` in the record")


def test_records_of_before_are_found_and_say_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps(TOLD))
    found = read_record(tmp_path / "s.png")
    assert found == TOLD
    with pytest.raises(UserError) as told:
        records.repeated(tmp_path / "s.png", found)
    assert "diffcli sample c --n 1 --seed 3" in told.value.hint
    with pytest.raises(UserError, match="no such record"):
        read_record(tmp_path / "t.png")
    gif = TOLD | {"command": "diffcli gif c --out x.gif"}
    with pytest.raises(UserError, match="diffcli gif"):
        records.repeated(tmp_path / "x.gif", gif)


def test_the_stages_of_a_cascade_are_found_in_the_record_of_the_last() -> None:
    first, second = {"checkpoint": "a"}, {"checkpoint": "b"}
    middle = second | {"given": {"low_res": {"stage": first}}}
    last = {"checkpoint": "c", "given": {"low_res": {"stage": middle}}}
    assert [stage["checkpoint"] for stage in records.stages(last)] == ["a", "b", "c"]
