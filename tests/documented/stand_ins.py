"""Small local files for what commands in README and docs name: data sets, pictures, tables, weights, and runs."""

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.making import cifar10_binary, class_folders, mnist, pixels, png, run
from tests.encoders.making import tiny_clip
from tests.prep.server import WebServer

CLIP = "openai/clip-vit-large-patch14"
PROMPTS = "a handwritten seven\nthe number 3 on paper\n"


def published(folder: Path) -> None:
    """MNIST and CIFAR-10 in one folder, as a page that calls it DIR may mean either."""
    mnist(folder, n=40)
    cifar10_binary(folder)


def pictures(folder: Path) -> None:
    class_folders(folder, ("crosses", "discs"), n=4, size=40)


def flat(folder: Path) -> None:
    class_folders(folder.parent, (folder.name,), n=2, size=40)


def pairs(folder: Path) -> None:
    """Pictures and their masks of two classes, in `images` and `masks`."""
    class_folders(folder, ("images",), n=4, size=40)
    (folder / "masks").mkdir()
    for i, mask in enumerate(pixels(4, 1, 40, 40)):
        (folder / "masks" / f"{i:03d}.png").write_bytes(png(mask // 128))


def grey_digits(folder: Path) -> None:
    """Two pictures of each of five classes."""
    for k in range(5):
        (folder / str(k)).mkdir(parents=True)
        for i, image in enumerate(pixels(2, 1, 28, 28, seed=k)):
            Image.fromarray(image[0]).save(folder / str(k) / f"{i}.png")


def few_digits(folder: Path) -> None:
    """A handful of pictures of one thing."""
    folder.mkdir(parents=True)
    for i, image in enumerate(pixels(4, 1, 28, 28, seed=6)):
        Image.fromarray(image[0]).save(folder / f"{i}.png")


def one_picture(path: Path) -> None:
    """Of 16 x 16 pixels: what is drawn or restored of it is small, too."""
    Image.fromarray(pixels(1, 3, 16, 16, seed=3)[0].transpose(1, 2, 0)).save(path, "PNG")


def large_picture(path: Path) -> None:
    """As large as the images that the models of these pages are trained on."""
    Image.fromarray(pixels(1, 3, 32, 32, seed=4)[0].transpose(1, 2, 0)).save(
        path, path.suffix[1:].replace("jpg", "JPEG")
    )


def films(folder: Path) -> None:
    """Two animations of ten frames, eight a second."""
    folder.mkdir(parents=True)
    for number in range(2):
        first, *rest = [Image.fromarray(frame) for frame in pixels(10, 1, 40, 40, seed=number)[:, 0]]
        first.save(folder / f"{number}.gif", save_all=True, append_images=rest, duration=125)


def hole(path: Path) -> None:
    mask = np.zeros((32, 32), np.uint8)
    mask[8:20, 8:20] = 255
    Image.fromarray(mask).save(path)


def digit(path: Path) -> None:
    Image.fromarray(pixels(1, 1, 14, 14, seed=5)[0, 0]).save(path)


def prepared_pictures(folder: Path) -> None:
    """What prep-data makes of pictures in both splits."""
    source = folder.parent / f"{folder.name}-source"
    for split in ("train", "test"):
        class_folders(source / split, ("crosses", "discs"), n=4, size=40)
    run("folder", source, folder, size=32)
    shutil.rmtree(source)


def packed_cifar(path: Path) -> None:
    cifar10_binary(path.parent / "unpacked")
    with tarfile.open(path, "w:gz") as archive:
        archive.add(path.parent / "unpacked", "cifar-10-batches-bin")
    shutil.rmtree(path.parent / "unpacked")


def prepared_cifar(folder: Path) -> None:
    source = folder.parent / f"{folder.name}-source"
    cifar10_binary(source)
    run("cifar10", source, folder)
    shutil.rmtree(source)


def captioned(folder: Path) -> None:
    """A prepared set of both splits with captions, not yet embedded."""
    source = folder.parent / f"{folder.name}-source"
    for split in ("train", "test"):
        class_folders(source / split, ("pictures",), n=4, size=40)
        for path in (source / split).rglob("*.png"):
            path.with_suffix(".txt").write_text(f"picture {path.stem}")
    run("folder", source, folder, size=32)
    shutil.rmtree(source)


def prompts(path: Path) -> None:
    path.write_text(PROMPTS)


def diffusers_folder(folder: Path) -> None:
    from tests.interop.pipes import unconditional

    unconditional(folder)


def stable_diffusion(folder: Path) -> None:
    from tests.interop.pipes import stable

    stable(folder)


def control_net(folder: Path) -> None:
    from tests.interop import pipes

    pipes.control_net(folder)


FILES: dict[str, Callable[[Path], object]] = {
    "DIR": published,
    "data/mnist": mnist,
    "data/cifar10": cifar10_binary,
    "data/cifar10-shards": prepared_cifar,
    "cifar-10-binary.tar.gz": packed_cifar,
    "data/imagenet256": prepared_pictures,
    "data/mine": prepared_pictures,
    "films": films,
    "low": grey_digits,
    "high": grey_digits,
    "dark-threes": few_digits,
    "eights": few_digits,
    "PICTURES": pictures,
    "pictures": pictures,
    "FOLDER": flat,
    "TRAIN": pairs,
    "HELD": pairs,
    "PICTURE": one_picture,
    "SMALL.png": one_picture,
    "small.png": one_picture,
    "LINES.png": large_picture,
    "PHOTO.png": large_picture,
    "photo.png": large_picture,
    "photo.jpg": large_picture,
    "grey.png": large_picture,
    "torn.png": large_picture,
    "hole.png": hole,
    "digit.png": digit,
    "prompts.txt": prompts,
    "clip": tiny_clip,
    CLIP: tiny_clip,
    "FOLDER_OF_DIFFUSERS": diffusers_folder,
    "FOLDER_OF_STABLE_DIFFUSION": stable_diffusion,
    "FOLDER_OF_CONTROLNET": control_net,
}
OF_PAGE: dict[str, dict[str, Callable[[Path], object]]] = {  # where a page means something else by the name
    "pictures.md": {"PICTURES": flat},
}
EMBEDDED = ("data/cc12m", "data/coco")
TABLES = ("Train_GCC-training.tsv", "cc3m.tsv")


def table(path: Path, server: WebServer) -> None:
    """Eight pictures with captions, as the official table lists them, and one that is gone."""
    rows = [("jpeg", number) for number in range(8)] + [("gone", 8)]
    path.write_text("".join(f"a picture {number}\t{server.url}/{kind}/{number}\n" for kind, number in rows))
