"""Which column is the URL and which the caption, in the tables that people have; and what is refused."""

import gzip
import json
from pathlib import Path

import pytest

from diffcli.config import UserError
from diffcli.prep.download.urls import UrlRow, open_coco_table, open_table
from diffcli.prep.items import SourceOptions

A, B = "http://a.org/1.jpg", "https://b.org/2.jpg?x=1,2"
ROWS = [UrlRow(A, 'a "quoted cat'), UrlRow(B, "ein Hund, 犬")]
NO_OPTIONS = SourceOptions()


def rows(path: Path, **options: str) -> list[UrlRow]:
    table = open_table(path, SourceOptions(**options))
    found = list(table.rows())
    assert table.length == len(found)
    assert list(table.rows()) == found  # it can be read again
    return found


def parquet(path: Path, columns: dict[str, list[str]]) -> None:
    pyarrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    writer.write_table(pyarrow.table(columns), path)


TABLES = {
    "cc3m.tsv": "".join(f"{row.captions}\t{row.url}\n" for row in ROWS),
    "cc12m.tsv": "".join(f"{row.url}\t{row.captions}\n" for row in ROWS),
    "header.tsv": "caption\turl\n" + "".join(f"{row.captions}\t{row.url}\n" for row in ROWS),
    "laion.csv": f'TEXT,URL,similarity\n"a ""quoted cat",{A},0.3\n"ein Hund, 犬","{B}",0.2\n',
    "no_header.csv": f'"a ""quoted cat",{A}\n"ein Hund, 犬","{B}"\n',
    "lines.jsonl": "".join(json.dumps({"id": 7, "url": row.url, "text": row.captions}) + "\n" for row in ROWS),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("packed", [False, True])
def test_columns_are_found_by_what_is_in_them_or_by_usual_names(tmp_path: Path, name: str, packed: bool):
    path = tmp_path / (f"{name}.gz" if packed else name)
    data = TABLES[name].encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    assert rows(path) == ROWS


@pytest.mark.parametrize("name", ["cc3m.tsv", "cc12m.tsv", "header.tsv"])
def test_a_table_of_one_line_is_one_row_or_a_header_alone(tmp_path: Path, name: str):
    (tmp_path / name).write_text(TABLES[name].splitlines()[0])
    assert rows(tmp_path / name) == ([] if name == "header.tsv" else ROWS[:1])


def test_parquet_is_read_too(tmp_path: Path):
    parquet(tmp_path / "t.parquet", {"caption": [r.captions for r in ROWS], "url": [r.url for r in ROWS]})
    assert rows(tmp_path / "t.parquet") == ROWS


def test_columns_of_any_name_can_be_named(tmp_path: Path):
    (tmp_path / "t.csv").write_text(f"link,alt,note\n{A},a cat,x\n")
    assert rows(tmp_path / "t.csv", url_col="link", caption_col="alt") == [UrlRow(A, "a cat")]
    assert rows(tmp_path / "t.csv", url_col="link", caption_col="note") == [UrlRow(A, "x")]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, r"has no column url.*; it has foo, bar"),
        ({"url_col": "foo"}, r"has no column caption.*; it has foo, bar"),
        ({"url_col": "baz"}, r"--url-col is 'baz', which .* does not have; it has foo, bar"),
        ({"url_col": "foo", "caption_col": "baz"}, r"--caption-col is 'baz', which .* does not have"),
    ],
)
def test_a_table_without_the_columns_says_which_it_has(tmp_path: Path, options: dict[str, str], words: str):
    (tmp_path / "t.csv").write_text("foo,bar\n1,2\n")
    with pytest.raises(UserError, match=words):
        open_table(tmp_path / "t.csv", SourceOptions(**options))


def test_a_column_cannot_be_named_where_there_is_no_header(tmp_path: Path):
    (tmp_path / "t.tsv").write_text(TABLES["cc3m.tsv"])
    with pytest.raises(UserError, match=f"--url-col names a column, but .* has no header: its first row holds '{A}'"):
        open_table(tmp_path / "t.tsv", SourceOptions(url_col="url"))


@pytest.mark.parametrize(
    "address", ["file:///etc/passwd", "/etc/passwd", "ftp://a.org/x", "data:image/png;base64,AA", ""]
)
def test_what_is_no_web_address_is_never_opened_but_keeps_its_place(tmp_path: Path, address: str):
    (tmp_path / "t.tsv").write_text(f"a\t{A}\nb\t{address}\nc\t{B}\n")
    found = rows(tmp_path / "t.tsv")
    assert [row.url for row in found] == [A, f"refused:{address}", B]


def test_garbled_rows_keep_their_place_and_say_why(tmp_path: Path):
    (tmp_path / "t.tsv").write_bytes(b"a\t" + A.encode() + b"\nb\tc\td\te\nb\xff\xfe\thttp://x.org/\na\tb\nonly one\n")
    found = rows(tmp_path / "t.tsv")
    assert [row.url[:15] for row in found] == [A[:15], "refused:row 2: ", "refused:row 3: ", "refused:b", "refused:"]


def test_addresses_become_ascii_and_what_is_escaped_stays_so(tmp_path: Path):
    (tmp_path / "t.tsv").write_bytes("a\thttp://a.org/ü 1%20[2].jpg?q=a&b#c\nb\thttp://b.org\n".encode())
    assert rows(tmp_path / "t.tsv")[0].url == "http://a.org/%C3%BC%201%20[2].jpg?q=a&b#c"


def test_spaces_in_an_address_are_encoded_and_those_around_it_are_not_part_of_it(tmp_path: Path):
    lines = [{"url": f" {A[:-5]}my  cat.jpg ", "caption": "x"}, {"url": "http://b.org/\n2.jpg", "caption": "y"}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [row.url for row in rows(tmp_path / "t.jsonl")] == ["http://a.org/my%20%20cat.jpg", "http://b.org/2.jpg"]


def test_captions_lose_control_characters_and_lists_are_several_captions(tmp_path: Path):
    lines = [{"url": A, "caption": ["one\n two\x07", "three", ""]}, {"url": B, "caption": None}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert rows(tmp_path / "t.jsonl") == [UrlRow(A, "one two\nthree"), UrlRow(B, "")]


def test_urls_alone_are_no_captions(tmp_path: Path):
    (tmp_path / "t.csv").write_text(f"{A}\n{A}\n")
    with pytest.raises(UserError, match="has URLs but no captions"):
        open_table(tmp_path / "t.csv", NO_OPTIONS)


@pytest.mark.parametrize(("name", "data"), [("t.xlsx", b"PK"), ("t.parquet", b"no"), ("t.tsv.gz", b"\x1f\x8bno")])
def test_what_is_no_table_is_refused(tmp_path: Path, name: str, data: bytes):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=name):
        open_table(tmp_path / name, NO_OPTIONS)


def test_a_captions_file_of_coco_is_a_table_with_several_captions_an_image(tmp_path: Path):
    coco = {
        "images": [{"id": 5, "file_name": "5.jpg", "coco_url": A}, {"id": 3, "file_name": "3.jpg", "coco_url": B}],
        "annotations": [
            {"id": 1, "image_id": 3, "caption": "x"},
            {"id": 2, "image_id": 5, "caption": "y"},
            {"id": 3, "image_id": 5, "caption": "z"},
        ],
    }
    (tmp_path / "captions_train.json").write_text(json.dumps(coco))
    assert list(open_coco_table(tmp_path / "captions_train.json").rows()) == [UrlRow(A, "y\nz"), UrlRow(B, "x")]
    (tmp_path / "other.json").write_text('{"images": [{"id": 1}]}')
    with pytest.raises(UserError, match=r"other.json.* is not a captions file of COCO"):
        open_coco_table(tmp_path / "other.json")
