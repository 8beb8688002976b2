"""Tiny image sets in the official layouts of their publishers, beside those of tests/data/making.py."""

import pickle
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tests.data.making import pixels


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
