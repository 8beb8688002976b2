"""prep-data folder with captions: every place that people keep them in, end to end, and nothing garbled stops it."""

import json
import zipfile
from pathlib import Path

import pytest

from diffcli.config import UserError
from diffcli.data.shards import open_shards
from diffcli.prep.items import SourceOptions
from diffcli.prep.prepare import prepare
from tests.conftest import Cli
from tests.data import making
from tests.data.making import contents, read, run
from tests.prep.reading import skipped, texts


def images(folder: Path, names: str) -> Path:
    for name, pixels in zip(names.split(), making.pixels(9, 3, 8, 8), strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(making.png(pixels))
    return folder


def test_captions_lie_in_files_of_the_same_name(tmp_path: Path, cli: Cli):
    root = images(tmp_path / "in", "cat/a.png cat/b.png cat/c.png dog/d.png dog/e.png dog/f.png")
    (root / "cat/a.txt").write_text("a cat\n\n  \x07eine  Katze\n猫のミケ\r\n", encoding="utf-8-sig", newline="")
    (root / "cat/b.json").write_text('["one", "two\\n\\u0000lines"]')
    (root / "cat/c.json").write_text('{"caption": "of an object", "width": 3}')
    (root / "dog/d.caption").write_bytes("кот".encode("utf-16"))
    (root / "dog/e.json").write_text('"a text"')
    (root / "notes.txt").write_text("not a caption")
    done = cli("prep-data", "folder", root, "--out", tmp_path / "out", "--workers", 1)
    assert done.code == 0
    assert "1 images have no caption" in done.err
    assert texts(tmp_path / "out") == [
        ["a cat", "eine Katze", "猫のミケ"],
        ["one", "two lines"],
        ["of an object"],
        ["кот"],
        ["a text"],
        [""],
    ]
    fields = read(tmp_path / "out", 8, 3)
    assert fields["text"] == ["a cat", "one", "of an object", "кот", "a text", ""]
    assert fields["label"].tolist() == [0, 0, 0, 1, 1, 1]
    assert open_shards(tmp_path / "out", "x").fields["text"].kind == "text"


def test_captions_that_cannot_be_read_are_listed_with_their_image(tmp_path: Path):
    root = images(tmp_path / "in", "a.png b.png c.png d.png")
    (root / "d.txt").write_bytes(b"x" * ((1 << 20) + 1))
    (root / "a.txt").write_bytes(b"caf\xe9")
    (root / "b.json").write_text("{broken")
    (root / "c.txt").write_text("fine")
    report = run("folder", root, tmp_path / "out")
    assert (report.written, report.skipped) == (1, 3)
    assert "more than 1 MiB" in skipped(tmp_path / "out")["d.png"]
    assert "a.txt are not UTF-8" in skipped(tmp_path / "out")["a.png"]
    assert "iconv" in skipped(tmp_path / "out")["a.png"]
    assert "b.json cannot be read" in skipped(tmp_path / "out")["b.png"]


@pytest.mark.parametrize("packed", [False, True])
def test_metadata_tells_the_captions_of_its_folder(tmp_path: Path, packed: bool):
    root = images(tmp_path / "in", "train/a.png train/b.png train/c.png test/a.png")
    rows = [
        {"file_name": "a.png", "text": "x"},
        {"file_name": "b.png", "text": "y"},
        {"file_name": "a.png", "text": "z"},
    ]
    (root / "train/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "test/metadata.jsonl").write_text('{"file_name": "a.png", "text": "held out"}')
    source = root
    if packed:
        source = tmp_path / "in.zip"
        with zipfile.ZipFile(source, "w") as file:
            for path in sorted(root.rglob("*.*")):
                file.write(path, path.relative_to(root).as_posix())
    report = run("folder", source, tmp_path / "out")
    assert texts(tmp_path / "out") == [["x", "z"], ["y"]]
    assert texts(tmp_path / "out", "test") == [["held out"]]
    assert report.notes == ("1 images are not in the table and were left out",)


def test_metadata_about_other_things_is_left_alone_but_told(tmp_path: Path):
    root = images(tmp_path / "in", "a.png b.png")
    (root / "metadata.csv").write_text("image_id,age\n1,30\n")
    report = run("folder", root, tmp_path / "out")
    assert report.written == 2
    assert not open_shards(tmp_path / "out", "x").fields
    assert f"--table {root}/metadata.csv" in report.notes[0]
    assert "image_id, age" in report.notes[0]


@pytest.mark.parametrize(
    ("name", "header", "row"),
    [
        ("metadata.csv", "file_name| n| text", "{}| 0| number {}"),
        ("results.csv", "image_name| comment_number| comment", "{}| 0| number {}"),
        ("metadata.csv", "image_name,sentence", "{},number {}"),
        ("captions.txt", "image,caption", "{},number {}"),
        ("captions.tsv", "path\tprompt", "{}\tnumber {}"),
        ("metadata.csv", "image;description", "{};number {}"),
        ("metadata.csv", "file_name,text", "{root}/{},number {}"),
        ("images/metadata.csv", "file_name,text", "../{},number {}"),
    ],
)
def test_tables_as_people_have_them_tell_captions(tmp_path: Path, name: str, header: str, row: str):
    root = images(tmp_path / "in", "images/a.png images/b.png")
    rows = [row.format(f"images/{file}.png", number, root=root.absolute()) for number, file in enumerate("ab")]
    (root / name).write_text("\n".join([header, *rows]))
    run("folder", root, tmp_path / "out")
    assert texts(tmp_path / "out") == [["number 0"], ["number 1"]]


@pytest.mark.parametrize(
    ("image", "caption"),
    [
        ("a.png", "a.TXT"),
        ("a.png", "a.png.txt"),
        ("a.png", "captions/a.txt"),
        ("images/a.png", "captions/a.txt"),
        ("images/cat/a.png", "captions/cat/a.caption"),
        ("images/a.PNG", "Texts/a.PNG.json"),
        ("cat/a.png", "cat/captions/a.txt"),
    ],
)
def test_captions_are_found_where_people_keep_them(tmp_path: Path, image: str, caption: str):
    root = images(tmp_path / "in", image)
    (root / caption).parent.mkdir(parents=True, exist_ok=True)
    (root / caption).write_text('"a word"' if caption.endswith("json") else "a word")
    (root / "README.txt").write_text("about the set")
    (root / "other.txt").write_text("of nothing")
    report = run("folder", root, tmp_path / "out")
    assert texts(tmp_path / "out") == [["a word"]]
    assert [note for note in report.notes if "text files" in note] == [
        "1 text files have the name of no image and are not read: other.txt"
    ]


def test_nothing_in_a_table_is_no_caption(tmp_path: Path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    root = images(tmp_path / "in", "a.png b.png c.png")
    cells = {"file_name": ["a.png", "b.png", "c.png"], "text": pa.array([float("nan"), None, 3.5])}
    parquet.write_table(pa.table(cells), root / "metadata.parquet")
    report = run("folder", root, tmp_path / "out")
    assert texts(tmp_path / "out") == [[""], [""], ["3.5"]]
    assert "2 images have no caption" in report.notes


def test_a_quote_that_never_closes_costs_its_row_alone(tmp_path: Path):
    root = images(tmp_path / "in", "a.png b.png c.png d.png")
    (root / "metadata.csv").write_text(
        'file_name,text\na.png,ok\nb.png,"never closed\nc.png,two\nd.png,"three\nlines"\n'
    )
    run("folder", root, tmp_path / "out")
    assert texts(tmp_path / "out") == [["ok"], ["two"], ["three lines"]]
    assert skipped(tmp_path / "out") == {"metadata.csv, line 3": "a quote in it never closes"}


def test_a_table_names_images_by_column_and_its_bad_rows_are_listed(tmp_path: Path, cli: Cli):
    root = images(tmp_path / "in", "images/a.png images/b.png images/c.png")
    (tmp_path / "secret.png").write_bytes(making.png(making.pixels(1, 3, 8, 8)[0]))
    table = tmp_path / "t.csv"
    rows = ["img,words", 'a.png,"a, b"', "images/b,two", "./images/a.png,again", "gone.png,x", "../secret.png,x"]
    rows += [f"{tmp_path}/secret.png,x", "https://example.org/a.png,x", ",x", "a.png,one,two", "a.png,again"]
    table.write_text("\n".join(rows))
    arguments = ["prep-data", "folder", root, "--out", tmp_path / "out", "--workers", 1, "--table", table]
    refused = cli(*arguments)
    assert refused.code == 2
    assert "has no column caption or" in refused.err
    assert "it has img, words" in refused.err
    assert "type --caption-col NAME" in refused.err
    done = cli(*arguments, "--image-col", "img", "--caption-col", "words")
    assert done.code == 0, done.err
    assert texts(tmp_path / "out") == [["a, b", "again"], ["two"]]
    listed = {name.removeprefix("t.csv, "): reason for name, reason in skipped(tmp_path / "out").items()}
    assert listed == {
        "line 5: gone.png": "SOURCE has no image 'gone.png'",
        "line 6: ../secret.png": "it points outside of SOURCE",
        f"line 7: {tmp_path}/secret.png": "it points outside of SOURCE",
        "line 8: https://example.org/a.png": "it is a URL, not a file: `diffcli prep-data urls` downloads those",
        "line 9": "it names no image",
        "line 10: a.png": "it has 3 fields, not 2",
    }


def test_a_parquet_table_gives_lists_of_captions(tmp_path: Path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"file_name": "b.png", "captions": ["x", "y"]}, {"file_name": "a.png", "captions": ["", "z"]}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    root = images(tmp_path / "in", "a.png b.png")
    run("folder", root, tmp_path / "out", options=SourceOptions(table=tmp_path / "t.parquet"))
    assert texts(tmp_path / "out") == [["z"], ["x", "y"]]


def test_columns_without_a_table_and_a_table_that_is_not_there_are_errors(tmp_path: Path):
    root = images(tmp_path / "in", "a.png")
    with pytest.raises(UserError, match="--caption-col names a column, but there is no --table"):
        run("folder", root, tmp_path / "out", options=SourceOptions(caption_col="x"))
    with pytest.raises(UserError, match="which is not a file"):
        run("folder", root, tmp_path / "out", options=SourceOptions(table=tmp_path / "no.csv"))
    (tmp_path / "t.csv").write_text("file,caption\nz.png,x\n")
    with pytest.raises(UserError, match="no row names an image"):
        run("folder", root, tmp_path / "out", options=SourceOptions(table=tmp_path / "t.csv"))


def test_options_that_a_kind_does_not_read_are_refused(tmp_path: Path, cli: Cli):
    root = images(tmp_path / "in", "a.png")
    done = cli("prep-data", "folder", root, "--out", tmp_path / "out", "--field", "mask")
    assert done.code == 2
    assert "--field has no effect in prep-data folder" in done.err
    assert "it is for pairs" in done.err


def test_a_stopped_run_with_a_table_goes_on_to_the_same_bytes(tmp_path: Path):
    root = images(tmp_path / "in", "a.png b.png c.png d.png")
    (tmp_path / "t.csv").write_text("file,caption\nd.png,x\na.png,y\ngone.png,z\nc.png,w\n")
    options = SourceOptions(table=tmp_path / "t.csv")
    run("folder", root, tmp_path / "whole", images_per_shard=1, options=options)
    stopped = prepare("folder", root, tmp_path / "out", images_per_shard=1, options=options)
    next(stopped), next(stopped), next(stopped)
    stopped.close()
    run("folder", root, tmp_path / "out", images_per_shard=1, options=options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_other_captions_are_another_source(tmp_path: Path):
    root = images(tmp_path / "in", "a.png b.png")
    (root / "a.txt").write_text("short")
    run("folder", root, tmp_path / "out")
    (root / "a.txt").write_text("longer than before")
    with pytest.raises(UserError, match="other contents of SOURCE"):
        run("folder", root, tmp_path / "out")


def test_a_table_names_images_whichever_way_their_accents_are_stored(tmp_path: Path):
    root = images(tmp_path / "in", "cafe\u03010.png cafe\u03011.png")
    (root / "metadata.csv").write_text("file_name,text\n" + "".join(f"caf\u00e9{i}.png,cap {i}\n" for i in range(2)))
    report = run("folder", root, tmp_path / "out")
    assert (report.written, report.skipped) == (2, 0)
    assert texts(tmp_path / "out") == [["cap 0"], ["cap 1"]]


def test_the_beginnings_of_file_names_are_classes_where_they_shall_be(tmp_path: Path, cli: Cli):
    root = images(tmp_path / "in", "cat_1.png cat_2.png big_dog_1.png")
    cli("prep-data", "folder", root, "--out", tmp_path / "out", "--classes", "prefix", "--workers", 1)
    assert open_shards(tmp_path / "out", "x").classes == ("big_dog", "cat")
    assert read(tmp_path / "out", 8, 3)["label"].tolist() == [0, 1, 1]
    cli("prep-data", "folder", root, "--out", tmp_path / "out").refused("--classes prefix")
    cli("prep-data", "mnist", root, "--out", tmp_path / "m", "--classes", "prefix").refused("--classes", "folder")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_words_for_an_empty_cell_are_no_captions(tmp_path: Path, suffix: str):
    root = images(tmp_path / "in", "a.png b.png c.png d.png")
    cells = {"a.png": "None", "b.png": " null ", "c.png": "NaN", "d.png": "None of the cats"}
    if suffix == ".jsonl":
        lines = [json.dumps({"file_name": name, "text": text}) for name, text in cells.items()]
    else:
        lines = [("," if suffix == ".csv" else "\t").join(row) for row in [("file_name", "text"), *cells.items()]]
    (root / f"captions{suffix}").write_text("\n".join(lines) + "\n")
    report = run("folder", root, tmp_path / "out")
    assert texts(tmp_path / "out") == [[""], [""], [""], ["None of the cats"]]
    assert any("3 images have no caption" in note for note in report.notes)
