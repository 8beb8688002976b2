"""prep-data --range: deep images become what their values mean, and a set that comes out dark says so."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from diffcli.data.datasets import Folder
from diffcli.data.modes import Range
from diffcli.prep.items import SourceOptions
from tests.conftest import Cli
from tests.data.making import encoded, read, run
from tests.prep.reading import skipped


def scans(folder: Path, values: np.ndarray) -> Path:
    """A TIFF of each row of values, 8x8 all over."""
    folder.mkdir()
    for number, value in enumerate(values):
        (folder / f"{number}.tif").write_bytes(encoded(Image.fromarray(np.full((8, 8), value, values.dtype)), "TIFF"))
    return folder


def test_twelve_bits_in_sixteen_come_out_dark_with_a_note_and_right_with_the_range(tmp_path: Path):
    source = scans(tmp_path / "in", np.array([0, 2048, 4095], np.uint16))
    report = run("folder", source, tmp_path / "dark")
    assert any("--range 0,4095" in note for note in report.notes)
    assert read(tmp_path / "dark", 8, 1)["image"][:, 0, 0, 0].tolist() == [0, 8, 16]
    report = run("folder", source, tmp_path / "out", options=SourceOptions(range=Range(0, 4095)))
    assert not report.notes
    assert read(tmp_path / "out", 8, 1)["image"][:, 0, 0, 0].tolist() == [0, 128, 255]


def test_values_of_a_scanner_need_their_range(tmp_path: Path, cli: Cli):
    source = scans(tmp_path / "in", np.array([-1024, 1024, 3071], np.int32))
    command = ["prep-data", "folder", source, "--out", tmp_path / "out", "--workers", 1]
    done = cli(*command, "--range", "-1024,3071")
    assert done.code == 0, done.err
    assert read(tmp_path / "out", 8, 1)["image"][:, 0, 0, 0].tolist() == [0, 128, 255]
    scans(tmp_path / "mixed", np.array([5, -7], np.int32))
    run("folder", tmp_path / "mixed", tmp_path / "some")
    assert "--range -7,-6" in skipped(tmp_path / "some")["1.tif"]


def test_a_folder_that_is_trained_on_as_it_is_has_the_same_range_and_note(tmp_path: Path):
    source = scans(tmp_path / "in", np.array([0, 2048, 4095], np.uint16))
    dark = Folder(root=source, size=8, channels=1).build("train")
    assert dark.read(torch.arange(3))["image"][:, 0, 0, 0].tolist() == [0, 8, 16]
    assert any("data.range=[0,4095]" in note for note in dark.origin.notes)
    for more in ({}, {"in_memory": False}, {"broken": "leave_out"}):
        data = Folder(root=source, size=8, channels=1, range=(0, 4095), **more).build("train")
        assert data.read(torch.arange(3))["image"][:, 0, 0, 0].tolist() == [0, 128, 255]
        assert not data.origin.notes
    signed = scans(tmp_path / "signed", np.array([-1024, 3071], np.int32))
    kept = Folder(root=signed, size=8, channels=1, range=(-1024, 3071), broken="leave_out").build("train")
    assert kept.read(torch.arange(2))["image"][:, 0, 0, 0].tolist() == [0, 255]
    with pytest.raises(ValidationError, match=r"data\.range=\[0, 4095\]"):
        Folder(root=source, size=8, range=(5, 5))


@pytest.mark.parametrize("text", ["4095", "4095,0", "a,b", "0,inf", "1,2,3", "nan,3"])
def test_what_is_no_range_is_refused_before_anything_is_read(tmp_path: Path, cli: Cli, text: str):
    done = cli("prep-data", "folder", tmp_path / "nowhere", "--out", tmp_path / "out", "--range", text)
    assert done.code == 2
    assert f"--range is '{text}'" in done.err
    assert "--range 0,4095" in done.err


def test_kinds_of_eight_bits_refuse_a_range(tmp_path: Path, cli: Cli):
    done = cli("prep-data", "mnist", tmp_path, "--out", tmp_path / "out", "--range", "0,4095")
    assert done.code == 2
    assert "--range has no effect in prep-data mnist" in done.err
