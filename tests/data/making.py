"""Tiny data sets made on the spot, as their publishers lay them out."""

import gzip
import hashlib
import io
import struct
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffcli.data import captions
from diffcli.data.field_notes import FieldNote, is_mask
from diffcli.data.prepared import Shards
from diffcli.data.set_folder import DATASET
from diffcli.data.shards import Index, Members, PreparedSet, PreparedSplit, PrepRequest, Shard
from diffcli.digest import sha256
from diffcli.prep.prepare import PrepReport, prepare

CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def pixels(n: int, channels: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 (n, channels, height, width)."""
    return np.random.default_rng(seed).integers(0, 256, (n, channels, height, width), dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def mnist(folder: Path, n: int = 20, suffix: str = ".gz") -> tuple[np.ndarray, np.ndarray]:
    """Writes the four files, n training and n // 2 test images; returns the training images (n, 1, 28, 28) and labels."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = pixels(n, 1, 28, 28), np.arange(n) % 10
    for prefix, count in (("train", n), ("t10k", n // 2)):
        for name, array in (("images-idx3", images[:count, 0]), ("labels-idx1", labels[:count])):
            data = idx(array)
            path = folder / f"{prefix}-{name}-ubyte{suffix}"
            path.write_bytes(gzip.compress(data, mtime=0) if suffix else data)
    return images, labels


def cifar10_binary(folder: Path, n: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Writes the binary version with n images a batch; returns the 5 n training images and labels."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = pixels(6 * n, 3, 32, 32), np.arange(6 * n) % 10
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    for k, name in enumerate(names):
        rows = [bytes([labels[i]]) + images[i].tobytes() for i in range(k * n, (k + 1) * n)]
        (folder / name).write_bytes(b"".join(rows))
    return images[: 5 * n], labels[: 5 * n]


def png(array: np.ndarray) -> bytes:
    """A PNG of uint8 (C, H, W)."""
    return encoded(Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0)), "PNG")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def class_folders(root: Path, classes: tuple[str, ...] = ("cat", "dog"), n: int = 3, size: int = 8) -> np.ndarray:
    """Writes n PNGs of (3, size, size) a class; returns them in the order of their names."""
    images = pixels(len(classes) * n, 3, size, size)
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            (root / name / f"{i:03d}.png").write_bytes(png(images[k * n + i]))
    return images


def npz_batch(images: np.ndarray, labels: np.ndarray) -> bytes:
    """An official ImageNet 64x64 batch; labels from 1."""
    file = io.BytesIO()
    np.savez(file, data=images.reshape(len(images), -1), labels=labels, mean=np.zeros(12288))
    return file.getvalue()


def imagenet64(folder: Path, n: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Writes part1.zip, part2.zip and val.zip with n images a batch; returns the training images and labels from 1."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = pixels(10 * n, 3, 64, 64), np.random.default_rng(1).integers(1, 1001, 10 * n)
    labels[:2] = 1, 1000
    batches = {f"train_data_batch_{k + 1}.npz": slice(k * n, (k + 1) * n) for k in range(10)}
    for part, names in ((1, list(batches)[:5]), (2, list(batches)[5:])):
        with zipfile.ZipFile(folder / f"Imagenet64_train_part{part}.zip", "w", zipfile.ZIP_DEFLATED) as file:
            for name in names:
                file.writestr(name, npz_batch(images[batches[name]], labels[batches[name]]))
    with zipfile.ZipFile(folder / "Imagenet64_val.zip", "w") as file:
        file.writestr("val_data.npz", npz_batch(images[:n], labels[:n]))
    return images, labels


def run(kind: str, source: Path, out: Path, **more: object) -> PrepReport:
    """Prepares a set and returns the final report."""
    *_, report = prepare(kind, source, out, **more)
    return report


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(root: Path, size: int, channels: int, split: str = "train") -> dict[str, torch.Tensor]:
    """A whole split of a prepared set."""
    data = Shards(root=root, size=size, channels=channels).build(split)
    return data.read(torch.arange(len(data)))


def npy(array: np.ndarray) -> bytes:
    """A stored embedding, as prep-data stores them: fp16."""
    file = io.BytesIO()
    np.save(file, array.astype(np.float16))
    return file.getvalue()


def prepared(
    root: Path,
    splits: Mapping[str, Mapping[str, Sequence]],
    size: int = 8,
    encoder: str | None = None,
    digest: str | None = None,
) -> Path:
    """Writes a prepared set of RGB noise with what each split has beside the images; returns its folder.

    splits: for each its columns, all of one length: `text` a list of captions an image; of any other a vector (D,), a sequence
    (K, L, D), or the PNG of what lies over the image.
    """
    root.mkdir(parents=True, exist_ok=True)
    listed, notes = {}, {}
    for split, columns in splits.items():
        count = len(next(iter(columns.values())))
        listed[split] = PreparedSplit(count=count, shards=[_shard(root, split, count, columns, size)])
        for name, column in columns.items():
            notes[name] = _note(name, column[0], encoder, digest)
    asked = PrepRequest(kind="made", source="made", size=size, limit=None, images_per_shard=1000, fingerprint="0" * 64)
    count = sum(part.count for part in listed.values())
    described = PreparedSet(
        kind="made", count=count, skipped=0, size=(size, size), channels=3, classes=None, fields=notes,
        source="made", licence="none", splits=listed, request=asked,
    )  # fmt: skip
    (root / DATASET).write_text(described.model_dump_json())
    return root


def _note(name: str, value: object, encoder: str | None, digest: str | None) -> FieldNote:
    if name == "text":
        return FieldNote(kind="text")
    if isinstance(value, bytes):
        return FieldNote(kind="mask" if is_mask(name) else "image")
    kind = "tokens" if np.ndim(value) == 3 else "vector"
    return FieldNote(kind=kind, width=np.shape(value)[-1], encoder=encoder, sha256=digest)


def _shard(root: Path, split: str, count: int, columns: Mapping[str, Sequence], size: int) -> Shard:
    images, tar = pixels(count, 3, size, size), root / f"{split}-000000.tar"
    spans: dict[str, list[tuple[int, int]]] = {name: [] for name in ("image", *columns)}
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as file:
        for i in range(count):
            members = {"image": ("png", png(images[i]))}
            for name, column in columns.items():
                if name == "text":
                    members[name] = "txt", captions.to_bytes(column[i])
                elif isinstance(column[i], bytes):
                    members[name] = f"{name}.png", column[i]
                else:
                    members[name] = f"{name}.npy", npy(column[i])
            for name, (extension, data) in members.items():
                header = tarfile.TarInfo(f"{i:08d}.{extension}")
                header.size = len(data)
                spans[name].append((file.offset + tarfile.BLOCKSIZE, len(data)))
                file.addfile(header, io.BytesIO(data))
    lies = {name: {"offset": [a for a, _ in rows], "size": [b for _, b in rows]} for name, rows in spans.items()}
    index = Index(
        members=[f"{i:08d}.png" for i in range(count)], **lies.pop("image"), labels=None, channels=3,
        image_size=(size, size), fields={name: Members(**where) for name, where in lies.items()}, skipped=[],
        bytes=tar.stat().st_size, sha256=sha256(tar),
    )  # fmt: skip
    data = index.model_dump_json().encode()
    (root / f"{split}-000000.json").write_bytes(data)
    return Shard(
        tar=tar.name, index=f"{split}-000000.json", count=count, bytes=index.bytes, sha256=index.sha256,
        index_sha256=hashlib.sha256(data).hexdigest(),
    )  # fmt: skip
