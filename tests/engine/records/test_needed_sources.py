"""Runs that need a checkpoint of another: it is marked, its run keeps it when it goes on, and it is found where it was moved."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffcli import checkpoint
from diffcli import preset as presets
from diffcli.engine.records.needed_sources import needed_sources
from diffcli.lookup.dependents import FILE, dependents
from tests.conftest import Cli, Outcome, changed, in_ranks
from tests.engine.one_level import SMALL
from tests.engine.run.personal.personal_runs import of_texts, personal_tree, thing, trained_to
from tests.engine.words.test_word_training import WORD

LORA = {"rank": 2, "targets": ["all"]}
FIRST = "step-00000004"  # the checkpoint that others are begun from


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of texts, 4 steps. Do not change it."""
    return of_texts(tmp_path_factory.mktemp("needed") / "texts")


@pytest.fixture
def base(trained: Path, tmp_path: Path) -> Path:
    """A run of its own, 4 steps, saved at 2 and 4."""
    return copied(trained, tmp_path / "runs" / "base")


def copied(run: Path, to: Path) -> Path:
    """A copy of a run without the marks of other tests."""
    return Path(shutil.copytree(run, to, ignore=shutil.ignore_patterns(FILE)))


def lora(base: Path, run: Path, steps: int = 2, **keys: Any) -> Path:
    """A run of changes of a model, saved at its end."""
    every = {"train__steps": steps, "train__every__save": 2, "train__log": []}
    return trained_to(run, changed(SMALL, train__lora=LORA, **{"from": str(base), **every, **keys}))


def kept(run: Path) -> list[int]:
    return [int(path.name[5:]) for path in checkpoint.checkpoints(run / "checkpoints")]


def gone_on(cli: Cli, run: Path, steps: int, *more: object) -> Outcome:
    """What a resumed run says that saves at every second step and keeps one checkpoint."""
    done = cli("resume", run, "--steps", steps, "--set", "train.keep_last=1", *more)
    assert done.code == 0, done.err
    return done


def sampled(cli: Cli, run: Path, out: Path, *more: object) -> Outcome:
    return cli("sample", run, "--n", 1, "--steps", 2, "--out", out / "x.npz", *more)


def test_a_base_that_goes_on_keeps_what_a_lora_needs_until_the_mark_is_deleted(
    base: Path, cli: Cli, tmp_path: Path
) -> None:
    run = lora(base, tmp_path / "runs" / "lora")
    digest = checkpoint.read_record(checkpoint.locate(run))["base"]["sha256"]
    marked = base / "checkpoints" / FIRST
    assert json.loads((marked / FILE).read_text()) == [{"role": "train.lora", "path": str(run), "sha256": digest}]
    assert checkpoint.is_whole(marked)
    told = gone_on(cli, base, 8).err
    assert kept(base) == [4, 8]
    assert told.count(f"is kept beside the newest 1: needed by {run} (train.lora)") == 1
    assert sampled(cli, run, tmp_path).code == 0
    gone_on(cli, run, 4)
    assert len(json.loads((marked / FILE).read_text())) == 1
    shutil.rmtree(run)  # or moved, who knows
    told = gone_on(cli, base, 10).err
    assert kept(base) == [4, 10]
    assert f"not found there any more; delete {marked / FILE}" in told
    (marked / FILE).unlink()
    gone_on(cli, base, 12)
    assert kept(base) == [12]


def test_a_base_that_goes_on_keeps_what_a_word_needs(texts: Path, cli: Cli, tmp_path: Path) -> None:
    base = copied(texts, tmp_path / "runs" / "texts")
    tree = personal_tree(base, thing(tmp_path / "own"), **WORD, train__steps=2)
    run = trained_to(tmp_path / "runs" / "word", tree)
    assert [str(each) for each in dependents(base / "checkpoints" / FIRST)] == [f"{run} (train.embedding)"]
    assert f"{run} (train.embedding)" in gone_on(cli, base, 8).err
    assert kept(base) == [4, 8]
    assert sampled(cli, run, tmp_path, "--prompt", "a <own>").code == 0
    gone_on(cli, run, 4)


def test_a_control_needs_no_checkpoint_and_is_drawn_from_without_one(
    base: Path, tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "led"
    keys = {"data__derived": [{"kind": "edges"}], "task__control": [{"from": str(base), "field": "edges"}]}
    assert cli("train", "--preset", tiny(**keys, train__steps=2), "--run-dir", run).code == 0
    told = sampled(cli, base / "checkpoints" / "step-00000002", tmp_path, "--control", run).refused("--control")
    assert f"give --ckpt {base / 'checkpoints' / FIRST}, " in told
    gone_on(cli, base, 8)
    assert kept(base) == [8]
    alone = sampled(cli, base, tmp_path, "--control", run).refused("--control")
    assert f"give --ckpt {run}, and leave --control {run} out" in alone
    gone_on(cli, run, 4)


def test_two_processes_mark_a_base_once(base: Path, tiny: Callable[..., Path], cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "lora"
    preset = tiny(train__lora=LORA, train__steps=2, **{"from": str(base)})
    done = in_ranks("train", "--preset", preset, "--run-dir", run, "--nproc", 2)
    assert done.code == 0, done.err
    assert [each.path for each in dependents(base / "checkpoints" / FIRST)] == [run]
    told = in_ranks("resume", base, "--steps", 8, "--set", "train.keep_last=1", "--nproc", 2)
    assert told.code == 0, told.err
    assert kept(base) == [4, 8]


def test_a_base_that_cannot_be_written_is_noted_and_the_run_goes_on(
    base: Path, tiny: Callable[..., Path], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marked = base / "checkpoints" / FIRST
    write = Path.write_text

    def refused(path: Path, *text: Any, **how: Any) -> int:
        if path.parent == marked:
            raise PermissionError(13, "Permission denied", str(path))
        return write(path, *text, **how)

    monkeypatch.setattr(Path, "write_text", refused)
    preset = tiny(train__lora=LORA, train__steps=2, **{"from": str(base)})
    done = cli("train", "--preset", preset, "--run-dir", tmp_path / "lora")
    assert done.code == 0, done.err
    assert done.err.count(f"{marked} cannot be marked as needed by {tmp_path / 'lora'} (Permission denied)") == 1
    assert not (marked / FILE).exists()


def test_a_base_that_was_removed_while_its_run_began_is_refused(
    base: Path, tiny: Callable[..., Path], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffcli.engine.lora import lora_runs

    def read_and_removed(*given: Any) -> dict[str, Any]:
        found = begun(*given)
        shutil.rmtree(base / "checkpoints" / FIRST)
        return found

    begun = lora_runs.begun
    monkeypatch.setattr(lora_runs, "begun", read_and_removed)
    preset = tiny(train__lora=LORA, train__steps=2, **{"from": str(base)})
    cli("train", "--preset", preset, "--run-dir", tmp_path / "lora").refused("train.lora", FIRST, "type the same again")
    assert not (tmp_path / "lora" / "preset.yaml").exists()


def test_a_base_that_is_set_aside_or_renamed_is_found_by_its_digest(base: Path, cli: Cli, tmp_path: Path) -> None:
    """The run goes on from an earlier step with other weights, so that another checkpoint takes the place of the base."""
    run = lora(base, tmp_path / "runs" / "lora")
    told = gone_on(cli, base, 4, "--from", 2, "--set", "train.optimizer.lr=0.1").err
    aside = base / "checkpoints" / "superseded" / FIRST
    assert f"{base / 'checkpoints' / FIRST} is moved to {aside}" in told
    assert f"{run} (train.lora)" in told
    assert sampled(cli, run, tmp_path).code == 0
    assert json.loads((tmp_path / "x.npz.json").read_text())["base"]["path"] == str(aside)
    assert f"now {aside}" in cli("info", run).out
    moved = base.rename(tmp_path / "runs" / "renamed")
    assert sampled(cli, run, tmp_path).code == 0
    gone_on(cli, run, 4)
    entry = checkpoint.read_record(checkpoint.locate(run))["base"]
    assert entry["path"] == str(moved / aside.relative_to(base))


def test_a_base_without_marks_is_found_among_the_checkpoints_of_its_run(base: Path, cli: Cli, tmp_path: Path) -> None:
    """As of a run that an earlier version has begun."""
    run = lora(base, tmp_path / "runs" / "lora")
    (base / "checkpoints" / FIRST / FILE).unlink()
    (base / "checkpoints" / FIRST).rename(base / "checkpoints" / "good")
    assert sampled(cli, run, tmp_path).code == 0
    shutil.rmtree(base / "checkpoints" / "good")
    told = sampled(cli, run, tmp_path).refused("--base PATH", "which is not there", "step 4")
    assert str(base / "checkpoints" / FIRST) in told
    other = sampled(cli, base, tmp_path, "--lora", run).refused("--lora")
    assert f"--ckpt PATH, as {base / 'checkpoints' / FIRST} is not there any more" in other
    assert f"{FIRST}, which is not there" in cli("info", run).out


def test_the_best_checkpoint_is_set_aside_where_it_is_needed(base: Path, cli: Cli, tmp_path: Path) -> None:
    best = copied(base / "checkpoints" / FIRST, base / "checkpoints" / "best")
    run = lora(best, tmp_path / "runs" / "lora")
    other = base / "checkpoints" / "step-00000002"
    record = checkpoint.read_record(other)
    body = {key: value for key, value in record.items() if key not in ("format", "sha256", "step")}
    parts = {part: checkpoint.read_part(other, part, record) for part in checkpoint.PARTS}
    checkpoint.save(base / "checkpoints", 6, parts, body, "best")
    assert checkpoint.read_record(best)["step"] == 6
    assert not (best / FILE).exists()
    assert [each.path for each in dependents(base / "checkpoints" / "superseded" / "best")] == [run]
    assert sampled(cli, run, tmp_path).code == 0


def test_an_average_of_a_lora_needs_its_base_as_well(base: Path, cli: Cli, tmp_path: Path) -> None:
    run = lora(base, tmp_path / "runs" / "lora", train__ema=[0.9, 0.5])
    assert cli("ema", run, "--rate", "0.5", "--out", tmp_path / "made").code == 0
    shutil.rmtree(run)
    (made,) = (each.path for each in dependents(base / "checkpoints" / FIRST))
    assert made.parent == tmp_path / "made"
    gone_on(cli, base, 8)
    assert sampled(cli, made, tmp_path).code == 0


def test_a_model_that_a_preset_names_is_needed_where_a_checkpoint_is_named_and_no_run(base: Path) -> None:
    place = base / "checkpoints" / "step-00000002"
    for path, found in ((place, [("guide.weaker", place)]), (base, [])):
        named = presets.build(changed(SMALL, guide={"weaker": str(path)}), "tiny.yaml")
        assert [(each.role, each.path) for each in needed_sources(named, {})] == found


def test_what_guides_a_run_stays(base: Path, cli: Cli, tmp_path: Path) -> None:
    place, run = base / "checkpoints" / "step-00000002", tmp_path / "runs" / "guided"
    trained_to(run, changed(SMALL, train__steps=2, train__log=[], guide={"weaker": str(place)}))
    gone_on(cli, base, 6)
    assert kept(base) == [2, 6]


def test_info_tells_who_needs_a_checkpoint_and_a_run(base: Path, cli: Cli, tmp_path: Path) -> None:
    assert json.loads(cli("info", base, "--json").out)["needed_by"] == []
    assert "needed by" not in cli("info", base).out
    run, place = lora(base, tmp_path / "runs" / "lora"), base / "checkpoints" / FIRST
    expected = [{"path": str(run), "role": "train.lora", "checkpoint": str(place)}]
    for path, line in ((base, f"{run} (train.lora, {FIRST})"), (place, f"{run} (train.lora)")):
        assert json.loads(cli("info", path, "--json").out)["needed_by"] == expected
        assert f"needed by: {line}" in " ".join(cli("info", path).out.split())
    assert json.loads(cli("info", base / "checkpoints" / "step-00000002", "--json").out)["needed_by"] == []
