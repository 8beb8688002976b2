"""prep-data lidc: DICOM series and XML files made on the spot; windows, outlines and votes are known in closed form."""

import io
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffcli.config import UserError
from diffcli.data.prepared import Shards
from diffcli.data.shards import open_shards
from diffcli.fields import FieldSpec
from diffcli.prep.items import SourceOptions
from diffcli.prep.prepare import prepare
from diffcli.prep.sets.lidc import Contour, consensus, filled, open_lidc, read_contours, window
from tests.conftest import Cli
from tests.data.making import contents, read, run
from tests.prep.reading import skipped

pydicom = pytest.importorskip("pydicom")

SIZE = 16
PIECES = ["<readingSession>", "</readingSession>", "<unblindedReadNodule>", "</unblindedReadNodule>", "<a>", "</a>"]
PIECES += ["<roi>", "</roi>", "<edgeMap>", "</edgeMap>", "<xCoord>", "</xCoord>", "1", "-9", "x"]
SQUARE = ((4, 5), (9, 5), (9, 10), (4, 10))  # x, y; 4 x 4 pixels inside


def dicom(hounsfield: np.ndarray, uid: str, patient: str, z: float, compressed: bool = False) -> bytes:
    """A CT slice whose stored values are the Hounsfield units plus 1024, by halves."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = uid
    meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.90" if compressed else "1.2.840.10008.1.2.1"
    data = pydicom.Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID, data.PatientID = meta.MediaStorageSOPClassUID, uid, patient
    data.Rows, data.Columns = hounsfield.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    data.RescaleSlope, data.RescaleIntercept = "0.5", "-1024"
    data.ImagePositionPatient = [0, 0, z]
    stored = ((hounsfield + 1024) * 2).astype("<u2").tobytes()
    data.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f" + stored]) if compressed else stored
    file = io.BytesIO()
    pydicom.dcmwrite(file, data, enforce_file_format=True)
    return file.getvalue()


def roi(uid: str, outline: tuple[tuple[int, int], ...], inclusion: str = "TRUE") -> str:
    edges = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in outline)
    head = f"<imageZposition>1.0</imageZposition><imageSOP_UID>{uid}</imageSOP_UID><inclusion>{inclusion}</inclusion>"
    return f"<roi>{head}{edges}</roi>"


def xml(*sessions: str) -> bytes:
    """Each session holds the rois of one nodule."""
    nodules = "".join(
        f"<readingSession><annotationVersion>3</annotationVersion><unblindedReadNodule><noduleID>1</noduleID>{rois}"
        "</unblindedReadNodule><nonNodule/></readingSession>"
        for rois in sessions
    )
    head = "<ResponseHeader><Version>1.7</Version></ResponseHeader>"
    root = f'<LidcReadMessage uid="1" xmlns="http://www.nih.gov">{head}{nodules}</LidcReadMessage>'
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{root}'.encode()


def hounsfield(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1024, 1000, (SIZE, SIZE)).astype(np.float64)


def patient(root: Path, number: int, slices: int = 3) -> Path:
    """Slices 0 and 1 with a nodule of all four readers, the others without."""
    name = f"LIDC-IDRI-{number:04d}"
    folder = root / name / "1.3.study" / "1.3.series"
    folder.mkdir(parents=True)
    uids = [f"1.2.{number}.{k}" for k in range(slices)]
    for k, uid in enumerate(uids):
        (folder / f"{k:06d}.dcm").write_bytes(dicom(hounsfield(10 * number + k), uid, name, z=-float(k)))
    drawn = roi(uids[0], SQUARE) + roi(uids[1], SQUARE) + roi(uids[-1], ((3, 3),))
    (folder / "069.xml").write_bytes(xml(drawn, drawn, drawn, drawn))
    return folder


def test_lidc_end_to_end_with_a_split_by_patient(tmp_path: Path, cli: Cli):
    for number in range(1, 12):
        patient(tmp_path / "in", number)
    xray = tmp_path / "in/LIDC-IDRI-0001/1.3.xray/1.3.series"
    xray.mkdir(parents=True)
    (xray / "070.xml").write_text('<IdriReadMessage xmlns="http://www.nih.gov"><CXRreadingSession/></IdriReadMessage>')
    (xray / "000000.dcm").write_bytes(b"never read")
    done = cli("prep-data", "lidc", tmp_path / "in", "--out", tmp_path / "out", "--workers", 1)
    assert done.code == 0, done.err
    prepared = open_shards(tmp_path / "out", "x")
    assert {name: split.count for name, split in prepared.splits.items()} == {"train": 20, "test": 2}
    assert (prepared.channels, prepared.skipped) == (1, 0)
    fields = read(tmp_path / "out", SIZE, 1)
    assert (fields["image"][0, 0].numpy() == window(hounsfield(10))).all()
    assert (fields["image"][3, 0].numpy() == window(hounsfield(21))).all()
    expected = np.zeros((SIZE, SIZE), np.uint8)
    expected[6:10, 5:9] = 1  # a class, stored in white
    assert prepared.fields["mask"].classes == 2
    assert (fields["mask"].numpy() == expected).all()
    held_out = read(tmp_path / "out", SIZE, 1, "test")
    assert (held_out["image"][0, 0].numpy() == window(hounsfield(100))).all()


def test_the_masks_of_all_readers_are_kept_and_an_epoch_draws_one_of_them(tmp_path: Path):
    """Three of four readers drew the first slice, one of them shifted; the fourth drew nothing."""
    folder = patient(tmp_path / "in", 1, slices=2)
    shifted = tuple((x + 2, y) for x, y in SQUARE)
    (folder / "069.xml").write_bytes(xml(roi("1.2.1.0", SQUARE), roi("1.2.1.0", shifted), "", roi("1.2.1.0", SQUARE)))
    run("lidc", tmp_path / "in", tmp_path / "out")
    data = Shards(root=tmp_path / "out", size=SIZE, channels=1).build("train")
    assert data.specs["masks"] == FieldSpec("mask", (4, SIZE, SIZE), 2)
    assert data.specs["mask"] == FieldSpec("mask", (1, SIZE, SIZE), 2)
    assert not any(name.startswith("annotator") for name in data.specs)
    one, other = filled(SQUARE, (SIZE, SIZE)), filled(shifted, (SIZE, SIZE))
    row, expected = torch.tensor([0]), [one, other, np.zeros_like(one), one]
    assert np.array_equal(data.read(row)["masks"][0].numpy(), np.stack(expected))
    assert np.array_equal(data.read(row)["mask"][0, 0].numpy(), one)
    for who, mask in enumerate(expected):
        assert np.array_equal(data.read(row, torch.tensor([who << 1]))["mask"][0, 0].numpy(), mask)


def test_a_slice_travels_to_the_process_that_makes_it(tmp_path: Path):
    patient(tmp_path / "in", 1)
    items = open_lidc(tmp_path / "in", tmp_path, SourceOptions()).splits["train"]
    first, _ = items.items(range(len(items)))
    made, again = first(), pickle.loads(pickle.dumps(first))()
    assert (made.image == again.image).all()
    assert (made.pictures["mask"] == again.pictures["mask"]).all()


def test_the_lung_window_maps_its_ends_to_black_and_white():
    values = np.array([-3000, -1350, -600, 150, 151, 3000])
    assert window(values).tolist() == [0, 0, 128, 255, 255, 255]


def test_an_outline_lies_outside_of_what_it_encloses():
    inside = filled(SQUARE, (SIZE, SIZE))
    assert inside.sum() == 16
    assert inside[6:10, 5:9].all()
    assert not filled(((2, 2), (3, 2), (3, 3), (2, 3)), (SIZE, SIZE)).any()


def test_half_of_the_readers_decide_and_exclusions_are_cut_out():
    shifted = tuple((x + 2, y) for x, y in SQUARE)
    drawn = [Contour(0, True, SQUARE), Contour(1, True, shifted), Contour(1, True, SQUARE)]
    both = filled(SQUARE, (SIZE, SIZE))
    assert (consensus(drawn, 4, (SIZE, SIZE)) == np.where(both, 255, 0)).all(), "two of four, and none twice"
    assert (consensus(drawn[:1], 4, (SIZE, SIZE)) == 0).all()
    assert (consensus(drawn[:1], 2, (SIZE, SIZE)) > 0).sum() == 16
    hole = ((5, 6), (8, 6), (8, 9), (5, 9))
    cut = consensus([Contour(0, False, hole), Contour(0, True, SQUARE)], 1, (SIZE, SIZE)) > 0
    assert cut.sum() == 16 - 4


def test_slices_that_only_one_of_four_readers_marks_are_left_out(tmp_path: Path):
    folder = patient(tmp_path / "in", 1)
    uids = ["1.2.1.0", "1.2.1.1"]
    (folder / "069.xml").write_bytes(xml(roi(uids[0], SQUARE) + roi(uids[1], SQUARE), roi(uids[1], SQUARE), "", ""))
    report = run("lidc", tmp_path / "in", tmp_path / "out")
    assert (report.written, report.skipped) == (1, 0)


def test_broken_compressed_and_missing_slices_are_listed(tmp_path: Path):
    folder = patient(tmp_path / "in", 1, slices=5)
    uids = [f"1.2.1.{k}" for k in range(6)]
    drawn = "".join(roi(uid, SQUARE) for uid in uids)
    (folder / "069.xml").write_bytes(xml(drawn))
    (folder / "000001.dcm").write_bytes(b"<!DOCTYPE html>")
    whole = (folder / "000002.dcm").read_bytes()
    (folder / "000002.dcm").write_bytes(whole[:-20])
    (folder / "000003.dcm").write_bytes(dicom(hounsfield(1), uids[3], "p", 0, compressed=True))
    (folder / "000004.dcm").write_bytes(dicom(np.zeros((SIZE, SIZE)), uids[4], "LIDC-IDRI-0001", 5))
    other = patient(tmp_path / "in", 2)
    (other / "069.xml").write_bytes(b"<LidcReadMessage>")
    report = run("lidc", tmp_path / "in", tmp_path / "out")
    reasons = {Path(name).name: reason for name, reason in skipped(tmp_path / "out").items()}
    assert reasons.keys() == {
        "000001.dcm",
        "000002.dcm",
        "000003.dcm",
        "069.xml",
        "069.xml: slice 1.2.1.1",
        "069.xml: slice 1.2.1.5",
    }
    assert "not a DICOM file" in reasons["000001.dcm"]
    assert "pixels cannot be read" in reasons["000002.dcm"]
    assert "pixels cannot be read" in reasons["000003.dcm"]
    assert "it cannot be read" in reasons["069.xml"]
    assert report.written == 2


def test_a_slice_that_claims_to_be_huge_is_listed_without_making_room_for_it(tmp_path: Path):
    folder = patient(tmp_path / "in", 1)
    data = pydicom.dcmread(folder / "000000.dcm")
    data.Rows = data.Columns = 65535
    data.save_as(folder / "000000.dcm")
    report = run("lidc", tmp_path / "in", tmp_path / "out")
    assert (report.written, report.skipped) == (1, 1)
    assert "more than" in next(iter(skipped(tmp_path / "out").values()))


def test_xml_that_unfolds_without_end_is_refused():
    with pytest.raises(ValueError, match="entities"):
        read_contours(b'<!DOCTYPE x [<!ENTITY a "aaaa">]><LidcReadMessage>&a;</LidcReadMessage>')
    assert read_contours(xml(roi("1.2", SQUARE), "")) == (2, {"1.2": [Contour(0, True, SQUARE)]})


@given(st.one_of(st.binary(), st.lists(st.sampled_from(PIECES)).map("".join).map(str.encode)))
def test_any_xml_gives_contours_or_says_why_not(data: bytes):
    try:
        readers, contours = read_contours(data)
    except ValueError:
        return
    assert all(contour.reader < readers for drawn in contours.values() for contour in drawn)


def test_a_folder_without_series_and_a_missing_package_are_clear_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="no CT series"):
        run("lidc", tmp_path / "in", tmp_path / "out")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UserError) as error:
        run("lidc", tmp_path / "in", tmp_path / "out")
    assert "pip install 'diffcli[medical]'" in error.value.hint


def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path: Path):
    for number in (1, 2):
        patient(tmp_path / "in", number)
    run("lidc", tmp_path / "in", tmp_path / "whole", images_per_shard=1)
    stopped = prepare("lidc", tmp_path / "in", tmp_path / "out", images_per_shard=1)
    next(stopped), next(stopped)
    stopped.close()
    run("lidc", tmp_path / "in", tmp_path / "out", images_per_shard=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
