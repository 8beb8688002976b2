"""What is left out is counted by kinds that say what is wrong, not as 'other'."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.making import encoded, pixels, png, run
from tests.prep.making_sets import tar

GOOD = png(pixels(1, 3, 8, 8)[0])


def test_what_is_wrong_with_samples_of_a_tar_is_counted_by_its_kind(tmp_path: Path):
    members = {f"{number}.png": GOOD for number in range(4)} | {f"{number}.cls": b"0" for number in range(4)}
    members |= {"4.png": GOOD, "4.cls": b"-1", "5.cls": b"0", "6.png": GOOD, "6.cls": b"0", "6.txt": b"\xff"}
    members |= {"7.tif": encoded(Image.fromarray(np.full((8, 8), -5, np.int32)), "TIFF"), "7.cls": b"0"}
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.tar").write_bytes(tar(members))
    report = run("webdataset", tmp_path / "in/a.tar", tmp_path / "out")
    assert report.written == 4
    assert report.reasons == {
        "no label that fits": 1,
        "no image": 1,
        "captions not in UTF-8": 1,
        "values without --range": 1,
    }


def test_rows_of_a_table_that_cannot_be_read_are_counted_by_their_kind(tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(GOOD)
    rows = ["file_name,text", "a.png,fine", 'a.png,"open', "a.png,one,two"]
    (tmp_path / "in/metadata.csv").write_text("\n".join(rows))
    assert run("folder", tmp_path / "in", tmp_path / "out").reasons == {"rows that cannot be read": 2}
    (tmp_path / "in/metadata.csv").unlink()
    lines = [json.dumps({"file_name": "a.png", "text": "fine"}), "[1]", "{"]
    (tmp_path / "in/metadata.jsonl").write_text("\n".join(lines))
    assert run("folder", tmp_path / "in", tmp_path / "again").reasons == {"rows that cannot be read": 2}
