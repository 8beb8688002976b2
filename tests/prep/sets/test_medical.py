"""prep-data isic and cvc-clinic: the published layouts, made on the spot; what does not fit is listed by name."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffcli.config import UserError
from diffcli.data.shards import open_shards
from tests.data.making import encoded, pixels, read, run
from tests.prep.reading import skipped

FORMAT = {".png": "PNG", ".jpg": "JPEG", ".tif": "TIFF"}
INPUT, TRUTH = "ISIC2018_Task1-2_{}_Input", "ISIC2018_Task1_{}_GroundTruth"


def write(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(Image.fromarray(picture), FORMAT[path.suffix]))


def image(number: int, size: int = 12) -> np.ndarray:
    return pixels(1, 3, size, size, seed=number)[0].transpose(1, 2, 0)


def mask(number: int, size: int = 12) -> np.ndarray:
    return np.random.default_rng(number).choice([0, 255], (size, size)).astype(np.uint8)


def isic(root: Path) -> Path:
    for part, numbers in (("Training", range(4)), ("Validation", range(4, 6)), ("Test", range(6, 9))):
        for i in numbers:
            write(root / INPUT.format(part) / f"ISIC_{i:07d}.jpg", image(i))
            write(root / TRUTH.format(part) / f"ISIC_{i:07d}_segmentation.png", mask(i))
        (root / INPUT.format(part) / "ATTRIBUTION.txt").write_text("CC-0")
    return root


def cvc(root: Path, count: int = 20, suffix: str = ".tif") -> Path:
    for i in range(1, count + 1):
        write(root / "Original" / f"{i}{suffix}", image(i))
        write(root / "Ground Truth" / f"{i}{suffix}", mask(i))
    return root


def test_isic_keeps_its_training_part_and_scores_on_the_others(tmp_path: Path):
    root = isic(tmp_path / "in")
    write(root / INPUT.format("Training") / "ISIC_0000077.jpg", image(77))
    run("isic", root, tmp_path / "out")
    prepared = open_shards(tmp_path / "out", "x")
    assert {name: split.count for name, split in prepared.splits.items()} == {"train": 4, "test": 5}
    assert (prepared.fields["mask"].kind, prepared.fields["mask"].classes) == ("mask", 2)
    found = read(tmp_path / "out", 12, 3)["mask"][:, 0].numpy()
    assert np.array_equal(found, np.stack([mask(i) // 255 for i in range(4)]))
    assert skipped(tmp_path / "out") == {f"{INPUT.format('Training')}/ISIC_0000077.jpg": "there is no mask for it"}


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_the_last_tenth_of_the_frames_by_number_is_held_out(suffix: str, tmp_path: Path):
    cvc(tmp_path / "in" / suffix[1:].upper(), 21, suffix)
    run("cvc-clinic", tmp_path / "in", tmp_path / "out")
    prepared = open_shards(tmp_path / "out", "x")
    assert {name: split.count for name, split in prepared.splits.items()} == {"train": 19, "test": 2}
    held_out = read(tmp_path / "out", 12, 3, "test")["mask"][:, 0].numpy()
    assert np.array_equal(held_out, np.stack([mask(i) // 255 for i in (20, 21)])), "9 comes before 10"


def test_masks_are_resized_by_nearest_neighbour(tmp_path: Path):
    cvc(tmp_path / "in", 3)
    run("cvc-clinic", tmp_path / "in", tmp_path / "out", size=6)
    assert set(np.unique(read(tmp_path / "out", 6, 3)["mask"].numpy())) == {0, 1}


def test_masks_of_another_size_or_of_unknown_values_are_listed(tmp_path: Path):
    root = cvc(tmp_path / "in", 5)
    write(root / "Ground Truth" / "2.tif", mask(2, 10))
    write(root / "Ground Truth" / "3.tif", np.where(mask(3) > 0, np.uint8(90), np.uint8(0)))
    (root / "Ground Truth" / "4.tif").unlink()
    write(root / "Ground Truth" / "5.tif", mask(5) // 255)
    run("cvc-clinic", root, tmp_path / "out")
    assert skipped(tmp_path / "out") == {
        "Original/2.tif": "its mask has 10x10 pixels, the image 12x12",
        "Original/3.tif": "its mask holds the value 90, which is neither black (0) nor white (255)",
        "Original/4.tif": "there is no mask for it",
    }
    assert np.array_equal(read(tmp_path / "out", 12, 3)["mask"][1, 0].numpy(), mask(5) // 255), (
        "0 and 1 are two classes"
    )


def test_other_sources_are_refused_with_where_to_get_the_set(tmp_path: Path):
    cvc(tmp_path / "in", 2)
    with pytest.raises(UserError, match=r"has no images ISIC_") as error:
        run("isic", tmp_path / "in", tmp_path / "out")
    assert "challenge.isic-archive.com" in error.value.hint
    with pytest.raises(UserError, match="is not called by the number of a frame"):
        run("cvc-clinic", isic(tmp_path / "other"), tmp_path / "out2")
