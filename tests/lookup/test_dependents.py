"""The list of what needs a checkpoint: who counts, and where a checkpoint is found by its digest."""

import json
import os
import shutil
from multiprocessing import get_context
from pathlib import Path

from diffcli import checkpoint
from diffcli.lookup.dependents import FILE, Dependent, add_dependent, dependents, holder, needing, same_weights

DIGEST = "0123456789abcdef" * 4


def recorded(path: Path, **record: object) -> Path:
    """A checkpoint of which there is a record alone."""
    path.mkdir(parents=True)
    (path / checkpoint.RECORD).write_text(json.dumps({"format": 1, **record}))
    return path


def run(path: Path, digest: str = DIGEST) -> Path:
    """A run that has saved once, and names a base."""
    recorded(path / "checkpoints" / "step-00000002", base={"sha256": digest})
    return path


def source(tmp_path: Path, step: int = 4) -> Path:
    return recorded(tmp_path / "runs" / "base" / "checkpoints" / f"step-{step:08d}", step=step)


def test_each_stands_in_the_list_once(tmp_path: Path) -> None:
    kept, new = source(tmp_path), Dependent("train.lora", run(tmp_path / "runs" / "lora"), DIGEST)
    for _ in range(2):
        add_dependent(kept, new)
    assert json.loads((kept / FILE).read_text()) == [
        {"role": "train.lora", "path": str(new.path), "sha256": DIGEST},
    ]
    other = Dependent("train.embedding", run(tmp_path / "runs" / "word"), DIGEST)
    add_dependent(kept, other)
    assert dependents(kept) == [new, other]
    assert sorted(os.listdir(kept)) == [checkpoint.RECORD, FILE]


def added_by(kept: str, place: str) -> None:
    add_dependent(Path(kept), Dependent("train.lora", Path(place), DIGEST))


def test_runs_that_begin_at_one_time_are_all_listed(tmp_path: Path) -> None:
    kept, context = source(tmp_path), get_context("fork")
    places = [str(tmp_path / f"lora-{i}") for i in range(8)]
    begun = [context.Process(target=added_by, args=(str(kept), place)) for place in places]
    for each in begun:
        each.start()
    for each in begun:
        each.join()
    assert sorted(each["path"] for each in json.loads((kept / FILE).read_text())) == places


def test_what_is_gone_needs_nothing_and_neither_does_another_run_in_its_place(tmp_path: Path) -> None:
    kept, place = source(tmp_path), tmp_path / "runs" / "lora"
    add_dependent(kept, Dependent("train.lora", place, DIGEST))
    assert dependents(kept) == []
    place.mkdir()
    assert [each.path for each in dependents(kept)] == [place]  # it has saved nothing yet
    run(place, digest="f" * 64)
    assert dependents(kept) == []


def test_a_dependent_that_was_renamed_or_moved_with_the_checkpoint_still_counts(tmp_path: Path) -> None:
    kept, place = source(tmp_path), run(tmp_path / "runs" / "lora")
    add_dependent(kept, Dependent("train.lora", place, DIGEST))
    renamed = place.rename(tmp_path / "runs" / "good")
    assert [each.path for each in dependents(kept)] == [renamed]
    moved = (tmp_path / "runs").rename(tmp_path / "elsewhere")
    kept = moved / "base" / "checkpoints" / kept.name
    assert [each.path for each in dependents(kept)] == [moved / "good"]


def test_a_damaged_list_names_nobody_and_is_written_anew(tmp_path: Path) -> None:
    kept, new = source(tmp_path), Dependent("prior", tmp_path, None)
    for text in ("[", "{}", '[{"role": 1}]', "[[]]"):
        (kept / FILE).write_text(text)
        assert dependents(kept) == []
    add_dependent(kept, new)
    assert dependents(kept) == [new]


def test_a_file_of_a_checkpoint_is_kept_by_its_folder_and_one_by_itself_by_none(tmp_path: Path) -> None:
    kept = source(tmp_path)
    assert holder(kept / "ema.safetensors") == holder(kept) == kept
    assert holder(tmp_path / "ema.safetensors") is None
    assert holder(kept.parent.parent) is None


def test_pruning_keeps_what_is_needed_and_counts_the_others(tmp_path: Path) -> None:
    kept, lora = [source(tmp_path, step) for step in (1, 2, 3, 4)], tmp_path / "runs" / "lora"
    add_dependent(kept[0], Dependent("train.lora", run(lora), DIGEST))
    spared = checkpoint.prune(kept[0].parent, 2)
    assert spared == [kept[0]]
    assert str(lora) in needing(kept[0])
    assert checkpoint.checkpoints(kept[0].parent) == [kept[0], *kept[2:]]
    add_dependent(kept[3], Dependent("train.lora", lora, DIGEST))
    assert checkpoint.prune(kept[0].parent, 1) == [kept[0]]  # the newest stays anyway, and is not counted
    assert checkpoint.checkpoints(kept[0].parent) == [kept[0], *kept[2:]]
    shutil.move(lora, tmp_path / "elsewhere" / "lora")
    assert checkpoint.prune(kept[0].parent, 1) == [kept[0]]
    assert f"delete {kept[0] / FILE}" in needing(kept[0])
    (kept[0] / FILE).unlink()
    assert checkpoint.prune(kept[0].parent, 1) == []
    assert checkpoint.checkpoints(kept[0].parent) == kept[2:]


def test_a_checkpoint_with_a_damaged_list_is_kept(tmp_path: Path) -> None:
    kept = [source(tmp_path, step) for step in (1, 2)]
    (kept[0] / FILE).write_text("[")
    assert checkpoint.prune(kept[0].parent, 1) == [kept[0]]
    assert "cannot be read" in needing(kept[0])


def test_a_run_that_begins_while_its_base_is_being_removed_keeps_it(tmp_path: Path, monkeypatch: object) -> None:
    kept, newest = source(tmp_path, 1), source(tmp_path, 2)
    rename = Path.rename

    def begins(path: Path, to: Path) -> Path:
        if path == kept:
            add_dependent(kept, Dependent("train.lora", run(tmp_path / "runs" / "lora"), DIGEST))
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", begins)  # type: ignore[attr-defined]
    assert checkpoint.prune(kept.parent, 1) == [kept]
    assert checkpoint.checkpoints(kept.parent) == [kept, newest]


def test_what_was_set_aside_or_whose_run_was_renamed_is_found_by_its_digest(tmp_path: Path) -> None:
    kept = source(tmp_path)
    add_dependent(kept, Dependent("train.lora", run(tmp_path / "runs" / "lora"), DIGEST))
    aside = checkpoint.set_aside(kept)
    assert aside == kept.parent / "superseded" / kept.name
    assert same_weights(kept, DIGEST) == [aside]
    (tmp_path / "runs" / "base").rename(tmp_path / "runs" / "renamed")
    assert same_weights(kept, DIGEST) == [tmp_path / "runs" / "renamed" / aside.relative_to(tmp_path / "runs" / "base")]
    assert same_weights(kept, "f" * 64) == []


def test_what_is_set_aside_replaces_nothing(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        names.append(checkpoint.set_aside(recorded(tmp_path / "best")).name)
    (tmp_path / "a-0.05.safetensors").touch()
    assert names == ["best", "best-1", "best-2"]
    assert checkpoint.set_aside(tmp_path / "a-0.05.safetensors").name == "a-0.05.safetensors"
