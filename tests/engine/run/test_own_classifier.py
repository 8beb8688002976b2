"""A classifier of one's own two classes, by three commands: it learns them, says how well, and its features tell them apart."""

import json
import random
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from tests.conftest import Cli

SIDE, COUNT = 16, 32  # pixels, pictures of a class


def drawn(folder: Path, shape: str, seed: int) -> None:
    """Pictures of discs or crosses in all colours and places."""
    chance = random.Random(seed)
    folder.mkdir(parents=True)
    for i in range(COUNT):
        picture = Image.new("RGB", (SIDE, SIDE), tuple(chance.randrange(90) for _ in "rgb"))
        pen, colour = ImageDraw.Draw(picture), tuple(chance.randrange(150, 256) for _ in "rgb")
        x, y, r = chance.randint(5, 10), chance.randint(5, 10), chance.randint(3, 5)
        if shape == "disc":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        else:
            pen.line((x - r, y, x + r, y), fill=colour, width=2)
            pen.line((x, y - r, x, y + r), fill=colour, width=2)
        picture.save(folder / f"{i:02d}.png")


@pytest.mark.slow
def test_a_classifier_of_own_classes_says_its_accuracy_and_brings_features_that_tell_them_apart(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, shape in enumerate(("disc", "cross")):
        drawn(Path("mine", shape), shape, seed)
        drawn(Path("others", shape), shape, seed + 2)
    assert cli("presets", "new", "judge", "--data", "mine", "--task", "classifier").code == 0
    small = ("train.steps=40", "data.flip=false", "train.workers=0")
    done = cli("train", "--preset", "judge.yaml", *(word for item in small for word in ("--set", item)))
    assert done.code == 0
    (line,) = [line for line in done.err.splitlines() if line.startswith("accuracy:")]
    assert int(line.removeprefix("accuracy:").partition("%")[0]) > 60

    def distance(a: str, b: str) -> float:
        """FID of others' pictures of a class against mine."""
        told = cli("fid", f"others/{a}", f"mine/{b}", "--features", "runs/judge", "--json")
        assert told.code == 0, told.err
        return float(json.loads(told.out)["scores"]["fid"])

    for shape, other in (("disc", "cross"), ("cross", "disc")):
        assert distance(shape, shape) < distance(shape, other) / 3
