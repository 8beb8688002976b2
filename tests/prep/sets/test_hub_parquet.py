"""prep-data parquet: images within the table, with labels, names of classes and captions, as hubs export them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffcli.config import UserError
from diffcli.data.datasets import Folder
from diffcli.data.shards import open_shards
from diffcli.prep.items import SourceOptions
from diffcli.prep.prepare import prepare
from tests.data.making import contents, png, read, run
from tests.prep.reading import skipped, texts

pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")


def picture(value: int) -> bytes:
    return png(np.full((3, 8, 8), value, np.uint8))


def written(path: Path, columns: dict[str, Any], names: list[str] | None = None, groups: int = 2) -> Path:
    """A file in groups of two rows; names: those of the classes of `label`, in the metadata of `datasets`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, path, row_group_size=groups)
    return path


def embedded(values: list[int]) -> list[dict[str, Any]]:
    return [{"bytes": picture(value), "path": f"{value}.png"} for value in values]


def test_a_hub_export_becomes_a_set_with_splits_names_and_captions(tmp_path: Path):
    root = tmp_path / "in"
    for number, values in enumerate(([10, 20, 30], [40, 50])):
        columns = {"image": embedded(values), "label": [value // 10 % 2 for value in values]}
        captions = {"text": [f"number {value}" for value in values]}
        written(root / f"data/train-0000{number}-of-00002.parquet", columns | captions, ["cat", "dog", "emu"])
    columns = {"image": embedded([60]), "label": [1], "text": ["number 60"]}
    written(root / "data/validation-00000-of-00001.parquet", columns, ["cat", "dog", "emu"])
    run("parquet", root, tmp_path / "out")
    assert open_shards(tmp_path / "out", "x").classes == ("cat", "dog", "emu")
    batch = read(tmp_path / "out", 8, 3)
    assert batch["image"][:, 0, 0, 0].tolist() == [10, 20, 30, 40, 50]
    assert batch["label"].tolist() == [1, 0, 1, 0, 1]
    assert batch["text"] == [f"number {value}" for value in (10, 20, 30, 40, 50)]
    assert read(tmp_path / "out", 8, 3, "test")["image"][:, 0, 0, 0].tolist() == [60]


def test_bytes_names_as_labels_and_lists_of_captions_are_understood(tmp_path: Path):
    columns = {"jpg": [picture(1), picture(2)], "category": ["dog", "cat"], "captions": [["a", "b"], []]}
    run("parquet", written(tmp_path / "x.parquet", columns), tmp_path / "out")
    assert open_shards(tmp_path / "out", "x").classes == ("cat", "dog")
    assert read(tmp_path / "out", 8, 3)["label"].tolist() == [1, 0]
    assert texts(tmp_path / "out") == [["a", "b"], [""]]


def test_a_set_of_images_alone_has_neither_classes_nor_captions(tmp_path: Path):
    run("parquet", written(tmp_path / "x.parquet", {"image": embedded([3, 4]), "id": [7, 8]}), tmp_path / "out")
    prepared = open_shards(tmp_path / "out", "x")
    assert (prepared.classes, prepared.fields, prepared.count) == (None, {}, 2)


def test_rows_without_an_image_or_a_label_are_listed(tmp_path: Path):
    images = [*embedded([1, 2, 3, 4]), {"bytes": None, "path": "/far/away.png"}, None]
    columns = {"image": images, "label": [0, 1, -1, 1, 0, 0]}
    run("parquet", written(tmp_path / "x.parquet", columns), tmp_path / "out")
    assert read(tmp_path / "out", 8, 3)["label"].tolist() == [0, 1, 1]
    assert {name.removeprefix("x.parquet, "): reason for name, reason in skipped(tmp_path / "out").items()} == {
        "row 3": "its label is -1, and classes are counted from 0",
        "row 5": "its image is not in the file, but at '/far/away.png'",
        "row 6": "it has no image",
    }


def test_a_stopped_run_goes_on_to_the_same_bytes_and_a_limit_spreads(tmp_path: Path):
    source = written(tmp_path / "x.parquet", {"image": embedded(list(range(10, 19)))}, groups=4)
    run("parquet", source, tmp_path / "whole", images_per_shard=2)
    stopped = prepare("parquet", source, tmp_path / "out", images_per_shard=2)
    next(stopped), next(stopped)
    stopped.close()
    run("parquet", source, tmp_path / "out", images_per_shard=2)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    run("parquet", source, tmp_path / "some", limit=3)
    assert read(tmp_path / "some", 8, 3)["image"][:, 0, 0, 0].tolist() == [10, 13, 16]


@pytest.mark.parametrize(
    ("columns", "options", "told"),
    [
        ({"a": [1], "b": ["x"]}, {}, "it has a, b"),
        ({"image": [b"x"]}, {"image_col": "imgae"}, "'imgae'"),
        ({"image": [b"x"]}, {"caption_col": "words"}, "'words'"),
    ],
)
def test_columns_that_are_not_there_are_named_with_those_that_are(
    tmp_path: Path, columns: dict, options: dict, told: str
):
    with pytest.raises(UserError) as error:
        run("parquet", written(tmp_path / "x.parquet", columns), tmp_path / "out", options=SourceOptions(**options))
    assert told in error.value.problem
    assert "-col NAME" in error.value.hint


def test_what_is_no_parquet_is_the_users_error_and_a_folder_of_them_says_what_reads_it(tmp_path: Path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"x\.parquet cannot be read"):
        run("parquet", tmp_path / "x.parquet", tmp_path / "out")
    with pytest.raises(UserError) as error:
        Folder(root=tmp_path, size=8).build("train")
    assert f"diffcli prep-data parquet {tmp_path} --out DIR" in error.value.hint
