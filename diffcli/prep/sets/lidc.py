"""LIDC-IDRI: CT slices that hold a nodule, with its mask, from DICOM series and the readers' XML files beside them.

A slice is grey: its Hounsfield units through the lung window, level -600 and width 1500, to 0 to 255. Its mask is 255 where
at least half of the reading sessions (four, as a rule) drew a nodule, 0 elsewhere; a slice without such a pixel
is left out. Beside it are the masks of the single sessions, annotator_1_mask to annotator_4_mask, so that a model can learn from
all of them; fewer sessions are repeated. A drawn outline lies outside of the nodule and is no part of it; regions
marked as excluded are cut out. Nodules under 3 mm, which are single points, have no mask. Every tenth patient, by ID, is in the
split `test`: slices of one patient are very similar, so all are in one split. PrepSource: Armato et al. 2011, Medical Physics 38,
doi 10.1118/1.3528204.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw

from diffcli.config import UserError
from diffcli.data.files import ARCHIVE_ERRORS, FileTree, Location, open_location, open_tree
from diffcli.data.listing import Split
from diffcli.data.pixels import BrokenImage
from diffcli.prep.items import SOURCE, Broken, Deferred, Item, Items, PrepSource, SourceOptions, fingerprint

LEVEL, WIDTH = -600, 1500  # Hounsfield units
CONSENSUS = 0.5  # of the reading sessions
ANNOTATORS = 4  # whose masks are kept
TEST_EVERY = 10  # patients
SUFFIXES = (".dcm", "")  # some exports leave the suffix out
MAX_PIXELS = 1 << 24  # of a slice; those of CT have 512 x 512
MAX_XML = 1 << 26  # bytes; those of LIDC have some hundred thousand
Outline = tuple[tuple[int, int], ...]


class Contour(NamedTuple):
    """An outline (x, y) that reader number `reader` drew on a slice; inside: whether its interior belongs to the nodule."""

    reader: int
    inside: bool
    outline: Outline


class Slice(NamedTuple):
    """A slice with nodules, read when needed. readers: the number of reading sessions."""

    name: str
    location: Location
    readers: int
    contours: tuple[Contour, ...]

    def __call__(self) -> Item:
        """Raises BrokenImage where it is not a whole CT slice."""
        hounsfield = _hounsfield(self.location, self.name)
        mask = consensus(self.contours, self.readers, hounsfield.shape)
        drawn = drawings(self.contours, self.readers, hounsfield.shape)
        own = {f"annotator_{a + 1}_mask": drawn[a % len(drawn)] for a in range(ANNOTATORS)} if len(drawn) else {}
        pictures = {"mask": mask, **{name: np.where(one, 255, 0).astype(np.uint8) for name, one in own.items()}}
        return Item(self.name, None, window(hounsfield)[None], pictures={k: v[None] for k, v in pictures.items()})


class SliceItems:
    """The slices of some patients, and slices in the XML files whose DICOM file is missing."""

    def __init__(self) -> None:
        self.slices: list[Slice | Broken] = []

    def __len__(self) -> int:
        return len(self.slices)

    def items(self, positions: Sequence[int]) -> Iterator[Item | Deferred]:
        yield from (self.slices[position] for position in positions)


def open_lidc(source: Path, work: Path, options: SourceOptions) -> PrepSource:
    """The slices with nodules of every series that has an XML file beside it, by patient and position in the body."""
    _pydicom()
    tree = open_tree(source, SOURCE, work)
    folders: dict[str, list[str]] = {}
    for name in tree.names:
        folders.setdefault(PurePosixPath(name).parent.as_posix(), []).append(name)
    found: dict[str, list[Slice | Broken]] = {}
    for names in folders.values():
        for xml in (name for name in names if name.lower().endswith(".xml")):
            for patient, one in _series(tree, xml, names):
                found.setdefault(patient, []).append(one)
    if not any(isinstance(one, Slice) for slices in found.values() for one in slices):
        problem = f"{SOURCE} is '{source}', which has no CT series (*.dcm) with an XML file of nodules beside it"
        raise UserError(problem, "give the folder LIDC-IDRI, with folders of patients, studies and series in it")
    splits: dict[Split, Items] = {}
    for number, patient in enumerate(sorted(found)):
        split: Split = "test" if number % TEST_EVERY == TEST_EVERY - 1 else "train"
        items = splits.setdefault(split, SliceItems())
        assert isinstance(items, SliceItems)
        items.slices += found[patient]
    used = [one.name for slices in found.values() for one in slices if one.name in tree.locations]
    xmls = [name for name in tree.names if name.lower().endswith(".xml")]
    files = [(name, tree.size(name)) for name in sorted({*used, *xmls})]
    written = ("annotators", ANNOTATORS)  # so that no run goes on with shards of before, which hold the consensus alone
    return PrepSource(splits, None, fingerprint([*files, written]))


def window(hounsfield: np.ndarray) -> np.ndarray:
    """uint8 of Hounsfield units: the lung window, rounded."""
    scaled = (hounsfield - (LEVEL - WIDTH / 2)) / WIDTH * 255
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def consensus(contours: Sequence[Contour], readers: int, shape: tuple[int, ...]) -> np.ndarray:
    """uint8 (H, W): 255 where at least CONSENSUS of the readers drew a nodule."""
    votes = drawings(contours, readers, shape).sum(0)
    return np.where(votes >= CONSENSUS * readers, 255, 0).astype(np.uint8) if readers else np.zeros(shape, np.uint8)


def drawings(contours: Sequence[Contour], readers: int, shape: tuple[int, ...]) -> np.ndarray:
    """bool (readers, H, W): the nodules that each of the readers drew."""
    found = np.zeros((readers, *shape), bool)
    for reader in {contour.reader for contour in contours}:
        drawn = found[reader]
        own = sorted((c for c in contours if c.reader == reader), key=lambda c: not c.inside)
        for contour in own:  # what is excluded comes last
            if contour.inside:
                drawn |= filled(contour.outline, shape)
            else:
                drawn &= ~filled(contour.outline, shape)
    return found


def filled(outline: Outline, shape: tuple[int, ...]) -> np.ndarray:
    """bool (H, W): the pixels inside of an outline, without those that it goes through."""
    height, width = shape
    picture = Image.new("L", (width, height))
    draw = ImageDraw.Draw(picture)
    draw.polygon(outline, fill=1, outline=1)
    draw.line([*outline, outline[0]], fill=0)
    return np.asarray(picture, bool)


def read_contours(data: bytes) -> tuple[int, dict[str, list[Contour]]]:
    """The number of reading sessions in an XML file, and their outlines by the UID of the slice.

    Other XML files have no session. Raises ValueError if it is garbled.
    """
    if b"<!ENTITY" in data:
        raise ValueError("it declares entities")  # a few lines of them unfold to gigabytes
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from error
    found: dict[str, list[Contour]] = {}
    sessions = root.findall("{*}readingSession")
    for reader, session in enumerate(sessions):
        for roi in session.findall("{*}unblindedReadNodule/{*}roi"):
            points = [(_number(edge, "xCoord"), _number(edge, "yCoord")) for edge in roi.findall("{*}edgeMap")]
            if len(points) > 2:  # fewer mark the place of a nodule under 3 mm
                inside = roi.findtext("{*}inclusion", "TRUE").strip().upper() == "TRUE"
                uid = roi.findtext("{*}imageSOP_UID", "").strip()
                found.setdefault(uid, []).append(Contour(reader, inside, tuple(points)))
    return len(sessions), found


def _series(tree: FileTree, xml: str, names: Sequence[str]) -> Iterator[tuple[str, Slice | Broken]]:
    """The slices that an XML file names, each with its patient, from the top of the body down."""
    patient = xml.split("/")[0]  # until a slice tells its own
    try:
        if tree.size(xml) > MAX_XML:
            raise ValueError("it is too large")
        readers, contours = read_contours(tree.read(xml))
    except (OSError, ValueError, *ARCHIVE_ERRORS) as error:
        yield patient, Broken(xml, f"it cannot be read: {error}")
        return
    slices: list[tuple[float, Slice]] = []
    broken: list[Broken] = []
    for name in names if contours else ():
        if PurePosixPath(name).suffix.lower() not in SUFFIXES:
            continue
        try:
            header = _header(tree.locations[name])
        except BrokenImage as error:
            broken.append(Broken(name, error.reason))
            continue
        drawn = contours.pop(str(header.get("SOPInstanceUID", "")), None)
        if drawn is None:
            continue
        if int(header.get("Rows") or 0) * int(header.get("Columns") or 0) > MAX_PIXELS:
            broken.append(Broken(name, f"it has more than {MAX_PIXELS:,} pixels"))
            continue
        patient = str(header.get("PatientID", "")) or patient
        if _reaches_consensus(drawn, readers, header):
            height = float((header.get("ImagePositionPatient") or (0, 0, 0))[2])
            slices.append((-height, Slice(name, tree.locations[name], readers, tuple(drawn))))
    missing = [Broken(f"{xml}: slice {uid}", "it is not beside the XML file") for uid in sorted(contours)]
    yield from ((patient, one) for _, one in sorted(slices, key=lambda pair: pair[0]))
    yield from ((patient, one) for one in (*broken, *missing))


def _reaches_consensus(drawn: Sequence[Contour], readers: int, header: Any) -> bool:
    shape = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
    return not all(shape) or bool(consensus(drawn, readers, shape).any())  # without a shape, reading it says so


def _number(edge: ElementTree.Element, name: str) -> int:
    return int(edge.findtext(f"{{*}}{name}", "").strip())


def _header(location: Location) -> Any:
    """The header of a DICOM file."""
    wanted = ["SOPInstanceUID", "PatientID", "ImagePositionPatient", "Rows", "Columns"]
    return _parsed(location, "", stop_before_pixels=True, specific_tags=wanted)


def _hounsfield(location: Location, name: str) -> np.ndarray:
    """float64 (H, W)."""
    data = _parsed(location, name)
    try:
        values = np.asarray(data.pixel_array, np.float64)
        slope, intercept = float(data.get("RescaleSlope", 1)), float(data.get("RescaleIntercept", 0))
    except Exception as error:  # pydicom and its decoders raise nearly anything on garbled or compressed pixels
        raise BrokenImage(name, f"its pixels cannot be read: {error}") from error
    if values.ndim != 2:
        raise BrokenImage(name, f"it is no single grey slice, but {' x '.join(map(str, values.shape))}")
    return values * slope + intercept


def _parsed(location: Location, name: str, **options: Any) -> Any:
    try:
        with open_location(location) as file:
            return _pydicom().dcmread(file, **options)
    except UserError:
        raise
    except Exception as error:  # as above
        raise BrokenImage(name, f"it is not a DICOM file: {error}") from error


def _pydicom() -> Any:
    if importlib.util.find_spec("pydicom") is None:
        raise UserError("prep-data lidc needs pydicom, which is not installed", "type: pip install 'diffcli[medical]'")
    import pydicom

    return pydicom
