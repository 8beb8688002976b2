"""Runs that keep their class: pictures drawn once before the first step, read again by every resumed run, and what is refused."""

import json
import shutil
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from diffcli import checkpoint
from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.engine.draw.sample import draw
from diffcli.engine.run.personal import class_pictures
from diffcli.engine.run.plan import plan
from diffcli.engine.run.runlog import read_log
from tests.conftest import Cli, changed, in_ranks
from tests.engine.run.personal.personal_runs import last, of_texts, part, personal_tree, thing, trained_to
from tests.engine.run.test_exact_resume import LINEAR, bytes_of

KEPT: dict[str, Any] = {"data__preserve": {"prompts": ["a [seven|7]"], "count": 5}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of texts. Do not change it."""
    return of_texts(tmp_path_factory.mktemp("texts") / "base")


@pytest.fixture(scope="module")
def own(base: Path) -> Path:
    """Pictures of a thing. Do not change them."""
    return thing(base.parent / "own")


@pytest.fixture(scope="module")
def kept(base: Path, own: Path) -> Path:
    """A run of 4 steps, saved at 2 and 4, that keeps its class. Do not change it."""
    return trained_to(base.parent / "kept", personal_tree(base, own, **KEPT))


def test_the_pictures_are_those_that_the_base_draws_under_the_texts(
    base: Path, kept: Path, cli: Cli, tmp_path: Path
) -> None:
    drawn = sorted((kept / "preserved").glob("*.png"))
    assert [path.name for path in drawn] == [f"{i:06d}.png" for i in range(5)]
    out = tmp_path / "out.npz"
    assert cli("sample", base, "--n", 5, "--prompt", "a seven", "--prompt", "a 7", "--seed", 0, "--out", out).code == 0
    assert np.array_equal(np.stack([np.asarray(Image.open(path)) for path in drawn]), np.load(out)["arr_0"][..., 0])


def test_the_record_names_texts_seeds_and_a_digest_of_the_pictures(base: Path, kept: Path) -> None:
    entry = checkpoint.read_record(last(kept))["preserved"]
    assert (entry["count"], entry["prompts"], entry["seeds"]) == (5, ["a seven", "a 7"], [0, 4])
    assert len(entry["sha256"]) == 64
    told = json.loads((kept / "preserved.json").read_text())
    assert (told["seeds"], told["checkpoint"]) == ([0, 1, 2, 3, 4], str(last(base)))
    written = yaml.safe_load((kept / "preset.yaml").read_text())
    assert written["data"]["preserve"]["root"] is None


def test_both_losses_are_logged_and_add_up(kept: Path) -> None:
    for line in read_log(kept / "log.jsonl"):
        assert line["loss"] == pytest.approx(line["own"] + line["preserved"])
        assert line["own"] != line["preserved"]


def test_a_model_that_keeps_its_class_needs_no_picture_of_it_to_draw(kept: Path, cli: Cli, tmp_path: Path) -> None:
    assert cli("sample", kept, "--n", 2, "--prompt", "a sks seven", "--out", tmp_path / "x.npz").code == 0


def test_with_weight_0_it_is_plain_training_to_the_bit_and_nothing_is_drawn(
    base: Path, own: Path, tmp_path: Path
) -> None:
    plain = trained_to(tmp_path / "plain", personal_tree(base, own))
    zero = trained_to(tmp_path / "zero", personal_tree(base, own, task__preservation=0, **KEPT))
    captioned = thing(tmp_path / "captioned")
    for path in captioned.glob("*.png"):
        path.with_suffix(".txt").write_text("a sks seven\na sks 7\n")
    folder = {"kind": "folder", "root": str(captioned), "size": 8, "channels": 1}
    usual = trained_to(tmp_path / "usual", changed(personal_tree(base, own), data=folder))
    files = [{n: f for n, f in bytes_of(run).items() if n.endswith(("task.safetensors", "optimizer.safetensors"))}
             for run in (plain, zero, usual)]  # fmt: skip
    assert len(files[0]) == 4
    assert files[0] == files[1] == files[2]
    assert not (zero / "preserved").exists()
    assert not (plain / "preserved").exists()


def test_a_weight_changes_what_is_learned(kept: Path, base: Path, own: Path, tmp_path: Path) -> None:
    half = trained_to(tmp_path / "half", personal_tree(base, own, task__preservation=0.5, **KEPT))
    assert not all(tensor.equal(part(kept, "task")[name]) for name, tensor in part(half, "task").items())
    first = next(read_log(half / "log.jsonl"))
    assert first["loss"] == pytest.approx(first["own"] + 0.5 * first["preserved"])
    whole = next(read_log(kept / "log.jsonl"))
    assert (first["own"], first["preserved"]) == (whole["own"], whole["preserved"])


def test_a_resumed_run_draws_nothing_and_is_the_run_in_one_go_to_the_byte(
    kept: Path, base: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = tmp_path / "kept"
    shutil.copytree(kept, half)
    shutil.rmtree(half / "checkpoints" / "step-00000004")
    before = bytes_of(half)
    monkeypatch.setattr(
        "diffcli.engine.run.personal.class_pictures.drawn_for", lambda *given: pytest.fail("drawn again")
    )
    trained_to(half, personal_tree(base, own, **KEPT))
    assert {name: data for name, data in bytes_of(half).items() if name in before} == before
    parted, straight = ({n: b for n, b in bytes_of(run).items() if "step-00000004" in n} for run in (half, kept))
    assert len(parted) == 4
    assert parted == straight


def test_pictures_of_a_start_that_ended_early_are_kept_and_others_drawn_anew(
    kept: Path, base: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = tmp_path / "early"
    for name in ("preserved", "preserved.json"):
        (shutil.copytree if "." not in name else shutil.copy)(kept / name, early / name)
    times = (early / "preserved" / "000000.png").stat().st_mtime_ns
    trained_to(early, personal_tree(base, own, **KEPT))
    assert (early / "preserved" / "000000.png").stat().st_mtime_ns == times
    other = tmp_path / "other"
    for name in ("preserved", "preserved.json"):
        (shutil.copytree if "." not in name else shutil.copy)(kept / name, other / name)
    fewer = {"data__preserve": {"prompts": ["a seven"], "count": 3}}
    trained_to(other, personal_tree(base, own, **fewer))
    assert len(list((other / "preserved").glob("*.png"))) == 3


@pytest.mark.parametrize("how", ["interrupted", "killed"])
def test_a_start_that_is_stopped_while_it_draws_can_be_made_again(
    how: str, kept: Path, base: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, tree = tmp_path / "run", personal_tree(base, own, **KEPT)
    if how == "killed":  # which leaves what was written so far
        shutil.copytree(kept / "preserved", run / ".preserved")
        (run / ".preserved" / "000004.png").write_bytes(b"half")
    else:

        def stopped(*given: Any) -> Any:
            yield from islice(draw(*given), 1)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(class_pictures, "BATCH", 2)
            patch.setattr(class_pictures, "draw", stopped)
            with pytest.raises(KeyboardInterrupt):
                trained_to(run, tree)
        assert not [*run.glob("*preserved*"), *run.glob(".preserved*")]
    trained_to(run, tree)
    assert not [*run.glob(".preserved*")]
    there, straight = ([path.read_bytes() for path in sorted((r / "preserved").iterdir())] for r in (run, kept))
    assert there == straight


@pytest.mark.parametrize("fault", ["few", "broken", "targets", "optimizer"])
def test_what_keeps_a_run_from_beginning_is_said_before_pictures_are_drawn(
    fault: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(class_pictures, "draw", lambda *given: pytest.fail("drawn"))
    root = thing(tmp_path / "own", 2 if fault == "few" else 4)
    if fault == "broken":
        (root / "0.png").write_bytes((root / "0.png").read_bytes()[:60])
    if fault == "optimizer":
        monkeypatch.setitem(sys.modules, "bitsandbytes", None)
        monkeypatch.setattr("diffcli.eight_bit.LEAST", 1)
    faulty = {
        "targets": {"train__lora": {"rank": 1, "targets": ["nowhere"]}},
        "optimizer": {"train__optimizer": {"kind": "adamw8bit"}},
    }
    with pytest.raises(UserError) as told:
        trained_to(tmp_path / "run", personal_tree(base, root, **KEPT, **faulty.get(fault, {})))
    named = {"few": "2 pictures", "broken": "0.png", "targets": "nowhere", "optimizer": "adamw8bit"}
    assert named[fault] in told.value.problem
    assert not list((tmp_path / "run").glob("*preserved*"))


def test_a_folder_of_that_name_that_no_run_has_written_is_left_alone(base: Path, own: Path, tmp_path: Path) -> None:
    mine = thing(tmp_path / "run" / "preserved")
    with pytest.raises(UserError) as told:
        trained_to(tmp_path / "run", personal_tree(base, own, **KEPT))
    assert "data.preserve.root" in told.value.hint
    assert len(list(mine.glob("*.png"))) == 4


@pytest.mark.parametrize("fault", ["changed", "gone"])
def test_pictures_that_have_changed_are_refused(fault: str, kept: Path, base: Path, own: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(kept, tmp_path / "kept"))
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    if fault == "gone":
        shutil.rmtree(run / "preserved")
    else:
        shutil.copy(run / "preserved" / "000000.png", run / "preserved" / "000001.png")
    with pytest.raises(UserError) as told:
        trained_to(run, personal_tree(base, own, **KEPT))
    assert str(run / "preserved") in told.value.problem
    assert "copy the whole run" in told.value.hint
    assert [path.name for path in checkpoint.checkpoints(run / "checkpoints")] == ["step-00000002"]


def test_pictures_of_ones_own_are_read_in_place_of_drawn_ones(kept: Path, own: Path, tmp_path: Path) -> None:
    given = Path(shutil.copytree(kept / "preserved", tmp_path / "mine"))
    keys = {"data__preserve": {"prompts": ["a [seven|7]"], "root": str(given)}}
    run = trained_to(tmp_path / "run", personal_tree(None, own, **keys))
    assert not (run / "preserved").exists()
    assert "seeds" not in checkpoint.read_record(last(run))["preserved"]


def test_what_cannot_be_kept_is_refused_before_anything_is_written(
    base: Path, own: Path, trained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(UserError) as told:
        trained_to(run, personal_tree(None, own, **KEPT))
    assert "data.preserve" in told.value.problem
    assert "--from" in told.value.hint
    with pytest.raises(UserError, match=r"data\.preserve.*not trained on texts"):
        trained_to(run, personal_tree(trained, own, **KEPT))
    classifier = {"kind": "classifier", "num_classes": 2, "network": {"kind": "convnet", "width": 8}}
    for task in (classifier,):
        tree = changed(personal_tree(None, own, **KEPT), task=task, guidance=None, sampler=None)
        with pytest.raises(UserError, match=r"data\.preserve"):
            trained_to(run, tree)
    assert not (run / "preserved").exists()
    assert not (run / "checkpoints").exists()


@pytest.mark.slow
def test_a_plan_says_what_is_drawn_and_counts_both_losses(base: Path, own: Path, tmp_path: Path) -> None:
    facts, plainly = (
        plan(presets.build(personal_tree(base, own, **keys), "tiny.yaml"), tmp_path, 1) for keys in (KEPT, {})
    )
    assert "5 are drawn" in facts["class pictures"]
    assert "class pictures" not in plainly
    counts = [float(each["flops"].split()[0]) for each in (facts, plainly)]
    assert counts[0] == pytest.approx(2 * counts[1], rel=0.01)


@pytest.mark.slow
def test_two_processes_draw_and_learn_as_one(base: Path, own: Path, tmp_path: Path, cli: Cli) -> None:
    preset = tmp_path / "kept.yaml"
    preset.write_text("# kept - for tests\n" + yaml.safe_dump(personal_tree(base, own, **KEPT, **LINEAR)))
    one, two = tmp_path / "one", tmp_path / "two"
    assert cli("train", "--preset", preset, "--run-dir", one).code == 0
    done = in_ranks("train", "--preset", preset, "--run-dir", two, "--nproc", 2)
    assert done.code == 0, done.err
    for i in range(5):
        pair = [np.asarray(Image.open(run / "preserved" / f"{i:06d}.png")).astype(int) for run in (one, two)]
        assert abs(pair[0] - pair[1]).max() <= 1
    for name, tensor in part(one, "task").items():
        assert tensor.allclose(part(two, "task")[name], atol=1e-4)
