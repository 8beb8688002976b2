"""Tiny image sets in the official layouts of their publishers, beside those of tests/data/making.py."""

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy.io import savemat

from tests.data.making import pixels, png


def python2_pickle(record: Mapping[str, list | np.ndarray]) -> bytes:
    """A dict of lists of numbers or strings and of uint8 arrays, as Python 2's cPickle (protocol 2) writes it.

    Strings are byte strings (SHORT_BINSTRING, BINSTRING), and numpy's names are those of numpy 1: so the files of CIFAR are.
    """
    return b"\x80\x02}(" + b"".join(_string(key) + _value(value) for key, value in record.items()) + b"u."


def _value(value: list | np.ndarray) -> bytes:
    if isinstance(value, list):
        return b"](" + b"".join(_string(x) if isinstance(x, str) else _number(x) for x in value) + b"e"
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = (
        b"cnumpy\ndtype\n"
        + _string("u1")
        + b"K\x00K\x01\x87R(K\x03"
        + _string("|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    shape = b"".join(map(_number, value.shape)) + b"\x86"
    data = value.tobytes()
    return made + b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<i", len(data)) + data + b"tb"


def _string(text: str) -> bytes:
    return b"U" + bytes([len(text)]) + text.encode()


def _number(number: int) -> bytes:
    return b"K" + bytes([number]) if number < 256 else b"J" + struct.pack("<i", number)


def cifar10_python(folder: Path, n: int = 4, python: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Writes the python version with n images a batch; returns the 5 n training images and labels."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = pixels(6 * n, 3, 32, 32), np.arange(6 * n) % 10
    for k, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        rows = slice(k * n, (k + 1) * n)
        record = {"batch_label": ["x"], "labels": labels[rows].tolist(), "data": images[rows].reshape(n, -1)}
        (folder / name).write_bytes(python2_pickle(record) if python == 2 else pickle.dumps(record, 2))
    (folder / "batches.meta").write_bytes(python2_pickle({"label_names": ["airplane"]}))
    return images[: 5 * n], labels[: 5 * n]


def cifar100(folder: Path, version: str, n: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Writes n training and n // 2 test images in a version, 'binary' or 'python'; returns the training ones and labels."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = pixels(n, 3, 32, 32), np.arange(n) * 17 % 100
    for split, count in (("train", n), ("test", n // 2)):
        fine, data = labels[:count].tolist(), images[:count].reshape(count, -1)
        if version == "binary":
            rows = [bytes([label // 5, label]) + row.tobytes() for label, row in zip(fine, data, strict=True)]
            (folder / f"{split}.bin").write_bytes(b"".join(rows))
        else:
            record = {"fine_labels": fine, "coarse_labels": [label // 5 for label in fine], "data": data}
            (folder / split).write_bytes(python2_pickle(record))
    return images, labels


SYNSETS = {
    "n02012849": "crane",
    "n03126707": "crane",
    "n01440764": "tench, Tinca tinca",
}
ID_OF = {"n01440764": 3, "n02012849": 1, "n03126707": 2}  # as in the devkit, not in sorted order


def tar(files: Mapping[str, bytes]) -> bytes:
    """A plain tar of these files, in their order."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def zipped(path: Path, files: Mapping[str, bytes]) -> None:
    """Writes a zip of these files."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def unpack(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes these files below a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def devkit() -> dict[str, bytes]:
    """The two files of ImageNet's devkit for four validation images: of the classes 3, 1, 2 and 3 by its numbers."""
    fields = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("num_children", object)]
    rows = [(ID_OF[synset], synset, words, 0) for synset, words in SYNSETS.items()]
    rows.append((1001, "n00001740", "entity", 3))  # one that is no class
    file = io.BytesIO()
    savemat(file, {"synsets": np.array(rows, dtype=fields).reshape(-1, 1)})
    return {
        "ILSVRC2012_devkit_t12/data/meta.mat": file.getvalue(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": b"3\n1\n2\n3\n",
    }


def imagenet_images(n: int = 2) -> tuple[dict[str, dict[str, bytes]], dict[str, bytes], np.ndarray]:
    """n training images of each synset, by synset and name; four validation images; all pixels in the order of their names."""
    images = pixels(3 * n + 4, 3, 8, 8)
    train = {
        synset: {f"{synset}_{i}.JPEG": png(images[k * n + i]) for i in range(n)}
        for k, synset in enumerate(sorted(SYNSETS))
    }
    return train, {f"ILSVRC2012_val_{i + 1:08d}.JPEG": png(images[3 * n + i]) for i in range(4)}, images


def imagenet(folder: Path) -> None:
    """Writes the three official archives."""
    folder.mkdir(parents=True, exist_ok=True)
    train, val, _ = imagenet_images()
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar({f"{name}.tar": tar(files) for name, files in train.items()}))
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar(val))
    (folder / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(gzip.compress(tar(devkit()), mtime=0))


def celeba() -> tuple[dict[str, bytes], np.ndarray]:
    """Six images around the official borders of training and test, by their names in the official zip."""
    images, numbers = pixels(6, 3, 8, 8), (1, 2, 162770, 162771, 182637, 182638)
    return {f"img_align_celeba/{number:06d}.jpg": png(x) for number, x in zip(numbers, images, strict=True)}, images


def afhq(test: str) -> tuple[dict[str, bytes], np.ndarray]:
    """Two training images of each animal, then a test image of each."""
    images, animals = pixels(9, 3, 8, 8), ("cat", "dog", "wild")
    train = {f"afhq/train/{x}/flickr_{i}.png": png(images[2 * k + i]) for k, x in enumerate(animals) for i in range(2)}
    return train | {f"afhq/{test}/{x}/flickr_9.png": png(images[6 + k]) for k, x in enumerate(animals)}, images


def ffhq(folder: str) -> tuple[dict[str, bytes], np.ndarray]:
    """Four images around the border of training and test."""
    images, numbers = pixels(4, 3, 8, 8), (0, 59999, 60000, 69999)
    names = [f"{folder}/{number // 1000 * 1000:05d}/{number:05d}.png" for number in numbers]
    return {name: png(x) for name, x in zip(names, images, strict=True)}, images
