"""Data that do not give what the task of a preset reads: one error before the first step, which names key, field and remedy."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Cli
from tests.data.making import class_folders, pixels, png, prepared

FORMAT1 = Path(__file__).parent.parent / "fixtures" / "format1"
READ = {"task__network__middle": ["cross_attention"]}  # a block that looks at tokens
FREE: dict[str, Any] = {"task__conditioners": [], "task__drop_condition": 0, "guidance": 1}
CLIP = {"kind": "embedding", "field": "clip_image", "width": 5, "dim": 8}
TOKENS = {"kind": "embedding", "field": "seq", "width": 5, "dim": 8}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared set with a field of every kind that lies beside images."""
    columns = {
        "text": [["one"], ["two"]],
        "mask": [png(np.resize(np.array([0, 4], np.uint8), (1, 8, 8)))] * 2,
        "clip_image": np.ones((2, 5)),
        "seq": np.ones((2, 1, 7, 5)),
    }
    return prepared(tmp_path_factory.mktemp("sets") / "everything", {"train": columns}, size=8)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images without classes."""
    folder = tmp_path_factory.mktemp("sets") / "plain"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png(pixels(1, 3, 8, 8, seed=number)[0]))
    return folder


CASES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "no classes": (
        "plain",
        {},
        ["task.conditioners.0 (class)", "'label'", "only: image", "data with class labels"],
    ),
    "too many classes": (
        "digits",
        {"task__conditioners": [{"kind": "class", "num_classes": 4, "dim": 8}]},
        [
            "task.conditioners.0 (class)",
            "knows 4 classes of 'label'",
            "has 10",
            "--set task.conditioners.0.num_classes=10",
        ],
    ),
    "no captions": (
        "plain",
        READ | {"task__conditioners": [{"kind": "text", "width": 8, "heads": 1, "depth": 1}]},
        ["task.conditioners.0 (text)", "'text'", "only: image", "data.captions"],
    ),
    "the second of two conditioners": (
        "everything",
        {"task__conditioners": [CLIP, CLIP | {"field": "clip_text"}]},
        ["task.conditioners.1 (embedding)", "'clip_text'", "clip_image, image, mask, seq, text", "--embed clip"],
    ),
    "no sequence": (
        "plain",
        READ | {"task__conditioners": [TOKENS | {"field": "t5_tokens", "stored": "sequence", "gives": "tokens"}]},
        ["task.conditioners.0 (embedding)", "'t5_tokens'", "--embed t5"],
    ),
    "another width": (
        "everything",
        {"task__conditioners": [CLIP | {"width": 6}]},
        ["task.conditioners.0 (embedding)", "'clip_image' 6 wide", "5 wide", "--set task.conditioners.0.width=5"],
    ),
    "a sequence for a vector": (
        "everything",
        {"task__conditioners": [TOKENS]},
        ["'seq' as vector", "of kind tokens", "--set task.conditioners.0.stored=sequence"],
    ),
    "a vector for a sequence": (
        "everything",
        READ | {"task__conditioners": [CLIP | {"stored": "sequence", "gives": "tokens"}]},
        ["'clip_image' as tokens", "of kind vector", "--set task.conditioners.0.stored=vector"],
    ),
    "a text for a vector": (
        "everything",
        {"task__conditioners": [CLIP | {"field": "text"}]},
        ["'text' as vector", "of kind text", "name another field", "--set task.conditioners.0.field=clip_image"],
    ),
    "a label for a vector, where there are no embeddings": (
        "digits",
        {"task__conditioners": [CLIP | {"field": "label"}]},
        ["'label' as vector", "of kind classes", "prep-data shards --out SET --embed clip"],
    ),
    "classes of a mask that is not there": (
        "plain",
        FREE | {"task__field": "clip_mask", "task__codec": {"kind": "one_hot", "classes": 3}},
        ["task.field is 'clip_mask'", "--set task.field=image --set 'task.codec={kind: pixels}'"],
    ),
    "a field that is not there": (
        "plain",
        FREE | {"task__field": "sketch"},
        ["task.field is 'sketch'", "only: image", "--set task.field=image"],
    ),
    "a field that nothing can model": (
        "everything",
        FREE | {"task__field": "clip_image"},
        ["task.field is 'clip_image'", "of kind vector", "--set task.field="],
    ),
    "a mask as pixels": (
        "everything",
        FREE | {"task__field": "mask"},
        ["task.codec", "task.field names a mask", "--set task.codec.kind=one_hot"],
    ),
    "an image as classes": (
        "plain",
        FREE | {"task__codec": {"kind": "one_hot", "classes": 3}},
        ["task.codec is one_hot", "of kind image", "--set 'task.codec={kind: pixels}'"],
    ),
    "a classifier of a mask": (
        "everything",
        {"task": {"kind": "classifier", "num_classes": 3, "field": "mask"}, "guidance": 1},
        ["task.field is 'mask'", "of kind mask", "--set task.field=image"],
    ),
    "a classifier without classes": (
        "plain",
        {"task": {"kind": "classifier", "num_classes": 3}, "guidance": 1},
        ["task.num_classes (classifier)", "'label'", "choose labelled data"],
    ),
    "a classifier of too few classes": (
        "digits",
        {"task": {"kind": "classifier", "num_classes": 3}, "guidance": 1},
        ["task.num_classes (classifier)", "knows 3 classes", "has 10", "--set task.num_classes=10"],
    ),
    "a prior without embeddings": (
        "plain",
        {"task": {"kind": "prior", "dim": 5}, "guidance": 1},
        ["task.dim (prior)", "'clip_text'", "--embed clip"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_data_that_do_not_give_what_is_read_are_one_error_before_the_first_step(
    case: str, tiny, cli: Cli, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source, keys, words = CASES[case]
    if source != "digits":
        root = request.getfixturevalue(source)
        kind = "shards" if source == "everything" else "folder"
        keys = {"data": {"kind": kind, "root": str(root), "size": 8}} | keys
    out = tmp_path / "run"
    preset = tiny(**keys)
    cli("train", "--preset", preset, "--run-dir", out, "--device", "cpu").refused(*words)
    assert not list(out.rglob("*.safetensors"))
    assert not (out / "log.jsonl").exists()
    cli("train", "--preset", preset, "--dry-run").refused(*words)


def test_a_resumed_run_refuses_data_that_lost_a_field(tiny, cli: Cli, tmp_path: Path) -> None:
    class_folders(tmp_path / "labelled", n=4)
    keys = {"data": {"kind": "folder", "root": str(tmp_path / "labelled"), "size": 8}}
    done = cli("train", "--preset", tiny(**keys), "--run-dir", tmp_path / "run", "--device", "cpu", "--steps", 2)
    assert done.code == 0, done.err
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "0.png").write_bytes(png(pixels(1, 3, 8, 8)[0]))
    resumed = cli(
        "resume", tmp_path / "run", "--steps", 4, "--set", f"data.root={tmp_path / 'plain'}", "--device", "cpu"
    )
    resumed.refused("task.conditioners.0 (class)", "'label'", "only: image")


@pytest.mark.parametrize(
    "fields", [{"image": {"kind": "picture"}}, ["image"], {"image": {"kind": "image", "shape": 3}}]
)
def test_a_record_whose_fields_are_garbled_is_one_error(
    fields: object, trained: Path, cli: Cli, tmp_path: Path
) -> None:
    from diffcli import checkpoint
    from diffcli.engine.model import specs_of
    from diffcli.preset import build

    found = checkpoint.locate(trained)
    record = checkpoint.read_record(found)
    assert record["fields"]["image"] == {"kind": "image", "shape": [1, 8, 8], "classes": None}
    preset = build(record["preset"], "x")
    assert specs_of(record, preset, found)["label"].classes == 10
    without = {key: value for key, value in record.items() if key != "fields"}
    assert specs_of(without, preset, found) == preset.specs
    with pytest.raises(checkpoint.UserError, match=r"checkpoint\.json: 'fields'") as caught:
        specs_of(json.loads(json.dumps(record | {"fields": fields})), preset, found)
    assert "changed by hand" in caught.value.hint


def test_classes_that_the_set_notes_are_named_before_the_data_are_opened(
    everything: Path, tiny, cli: Cli, tmp_path: Path
) -> None:
    noted = tmp_path / "noted"
    shutil.copytree(everything, noted)
    tree = json.loads((noted / "dataset.json").read_text())
    tree["fields"]["mask"]["classes"] = 5
    (noted / "dataset.json").write_text(json.dumps(tree))
    data = {"kind": "shards", "root": str(noted), "size": 8}
    cli("train", "--preset", tiny(data=data, **FREE, task__field="mask"), "--dry-run").refused("task.codec.classes=5")
