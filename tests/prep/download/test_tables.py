"""Tables: every format gives the same rows, and a row that is garbled is told apart from those that are not."""

import csv
import gzip
import io
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffcli.config import UserError
from diffcli.prep.download import tables
from diffcli.prep.download.tables import Table

ROWS = [("a.png", 'ein "roter" Ball, 球'), ("b.png", "two\tlines"), ("c.png", "")]


def table(data: bytes, name: str = "t.csv") -> Table:
    return Table(data, name)


def cells(found: Table) -> list[tuple[str, ...]]:
    assert not any(row.fault for row in found.rows())
    return [tuple(row.cells.values()) for row in found.rows()]


def written(rows: list[tuple[str, ...]], **dialect: object) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, **dialect).writerows([("file", "caption"), *rows])
    return text.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "|"])
def test_csv_in_what_spreadsheets_write(encoding: str, delimiter: str):
    assert cells(table(written(ROWS, delimiter=delimiter).encode(encoding))) == ROWS


def test_quoted_line_ends_stay_in_their_field():
    assert cells(table(written([("a", "one\r\ntwo\nthree")]).encode())) == [("a", "one\r\ntwo\nthree")]


def test_the_header_names_the_columns_however_short_the_first_row_is():
    found = table(b"\xef\xbb\xbffile,caption\na\nb,x\n")
    assert found.columns == ("file", "caption")
    assert [(row.line, row.cells) for row in found.rows()] == [(2, {"file": "a"}), (3, {"file": "b", "caption": "x"})]


def test_tsv_takes_quotes_literally_unless_they_wrap_a_field():
    data = b'file\tcaption\na\t"Hello" she said\nb\t"a ""quoted"" word"\nc\t"open\nd\t"'
    assert [c for _, c in cells(table(data, "t.tsv"))] == ['"Hello" she said', 'a "quoted" word', '"open', '"']


def test_jsonl_json_and_parquet_keep_lists(tmp_path: Path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"file": "a", "captions": ["x", "y"]}, {"file": "b", "captions": []}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    for name, data in (
        ("t.jsonl", "\n\n".join(map(json.dumps, rows)).encode()),
        ("t.json", json.dumps(rows).encode()),
        ("t.jsonl.gz", gzip.compress("\n".join(map(json.dumps, rows)).encode())),
        ("t.parquet", (tmp_path / "t.parquet").read_bytes()),
    ):
        found = table(data, name)
        assert found.columns == ("file", "captions")
        assert [row.texts("captions") for row in found.rows()] == [("x", "y"), ()]


def test_garbled_rows_are_faults_and_the_others_are_read():
    data = b"file,caption\na,fine\nb,caf\xe9\nc,one,two\nd\ne,good\n"
    found = list(table(data).rows())
    assert [row.fault for row in found] == ["", "it is not UTF-8", "it has 3 fields, not 2", "", ""]
    assert [row.line for row in found] == [2, 3, 4, 5, 6]
    assert found[3].cells == {"file": "d"}
    lines = b'{"file": "a"}\n{broken\n[1]\n{"file": "\xff"}\n' + b"[" * 100_000
    faults = [row.fault for row in table(lines, "t.jsonl").rows()]
    assert faults[0] == ""
    assert faults[1].startswith("it is not JSON")
    assert faults[2:4] == ["it is not a JSON object", "it is not UTF-8"]
    assert faults[4].startswith("it is not JSON")


def test_quotes_that_never_close_are_faults_of_their_own_lines():
    data = b'f,c\na,"one\nb,two\nc,"three ""3""\nlines"\nd,"four" or more\ne,"five\nf,six\n'
    found = [(row.line, list(row.cells.values()), row.fault) for row in table(data).rows()]
    assert found == [
        (2, [], "a quote in it never closes"),
        (3, ["b", "two"], ""),
        (5, ["c", 'three "3"\nlines'], ""),
        (6, ["d", "four or more"], ""),
        (7, [], "a quote in it never closes"),
        (8, ["f", "six"], ""),
    ]


def test_long_fields_pass_and_a_quote_that_never_closes_is_named():
    assert len(cells(table(b"file,caption\na," + b"x" * 500_000))[0][1]) == 500_000
    with pytest.raises(UserError, match="perhaps a quote that never closes"):
        list(table(b'file,caption\na,"' + b"x,y\n" * 1_000_000).rows())


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        (b"", "t.csv", "has no rows"),
        (b"PAR1", "t.parquet", "cannot be read"),
        (b"{}", "t.json", "not a list of objects"),
        (gzip.compress(b"a,b\n1,2", mtime=0)[:-9], "t.csv.gz", "cannot be read"),
        (b"plain", "t.csv.gz", "cannot be read"),
        (b"a", "t.xlsx", "no table that can be read"),
    ],
)
def test_what_is_no_table_is_one_clear_error(data: bytes, name: str, message: str):
    with pytest.raises(UserError, match=message):
        list(table(data, name).rows())


def test_a_json_that_unpacks_to_more_than_memory_should_hold_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tables, "MAX_JSON", 1 << 16)
    with pytest.raises(UserError, match="read row by row"):
        table(gzip.compress(b"[" + b" " * (1 << 17) + b"]"), "t.json.gz")


def test_a_missing_column_lists_those_there_are():
    found = table(b"Picture,Words\na,b\n")
    assert found.column("words", "--caption-col", ("caption",)) == "Words"
    assert found.column(None, "--image-col", ("image", "picture")) == "Picture"
    with pytest.raises(UserError, match="has no column image or file; it has Picture, Words"):
        found.column(None, "--image-col", ("image", "file"))
    with pytest.raises(UserError) as error:
        found.column("Word", "--caption-col", ("caption",))
    assert "'Word', which t.csv does not have" in error.value.problem
    assert "did you mean 'Words'" in error.value.hint


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError) as error:
        table(b"PAR1", "t.parquet")
    assert "pip install 'diffcli[download]'" in error.value.hint


@given(st.lists(st.tuples(*[st.text(st.characters(exclude_categories=["Cs"])) for _ in range(2)]), min_size=1))
def test_csv_round_trip(rows: list[tuple[str, str]]):
    assert cells(table(written(rows).encode())) == rows


@given(st.binary(max_size=200), st.sampled_from(["t.csv", "t.tsv", "t.jsonl", "t.json", "t.csv.gz", "t.parquet"]))
def test_any_bytes_give_rows_or_a_user_error(data: bytes, name: str):
    try:
        rows = list(table(data, name).rows())
    except UserError:
        return
    assert all(isinstance(row.line, int) for row in rows)
