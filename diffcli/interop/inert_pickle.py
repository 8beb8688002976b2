"""Reads the state dict in a checkpoint of pytorch-lightning without running code of the classes in its other entries.

torch's restricted reader refuses such a file because of its callbacks. Here a pickle can make dictionaries, lists, numbers and
tensors; all else that it names becomes an object without behaviour. Format: torch's zip archives (data.pkl beside data/KEY).
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor

STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Inert:
    """Takes the place of an object of any class: accepts its state and does nothing."""

    def __new__(cls, *args: object, **options: object) -> "Inert":
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...

    def append(self, item: object) -> None: ...

    def extend(self, items: object) -> None: ...

    def add(self, item: object) -> None: ...


def rebuilt(storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: object) -> Tensor:
    """A tensor in a storage (N,). Raises RuntimeError if it would reach past the end."""
    return storage.as_strided(tuple(size), tuple(stride), offset)


def of_parameter(data: Tensor, *_: object) -> Tensor:
    return data


CALLABLE: dict[tuple[str, str], Callable[..., Any]] = {  # all that such a pickle can call
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): rebuilt,
    ("torch._utils", "_rebuild_parameter"): of_parameter,
}


class InertUnpickler(pickle.Unpickler):
    """Unpickles data.pkl of an archive."""

    def __init__(self, file: IO[bytes], archive: ZipFile, folder: str) -> None:
        super().__init__(file)
        self.archive, self.folder = archive, folder
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        return CALLABLE.get((module, name), Inert)

    def persistent_load(self, pid: Any) -> Tensor:
        """A storage (N,), read once, of ("storage", dtype, key, device, N)."""
        _, dtype, key, _, count = pid
        if key not in self.storages:
            content = bytearray(self.archive.read(f"{self.folder}data/{key}"))
            self.storages[key] = (
                torch.frombuffer(content, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)
            )
        return self.storages[key]


def state_dict(path: Path) -> dict[str, Tensor] | None:
    """Its entry `state_dict`; None if the file is no such archive or has no such entry."""
    try:
        with ZipFile(path) as archive:
            inside = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
            if inside is None:
                return None
            with archive.open(inside) as file:
                found = InertUnpickler(file, archive, inside.removesuffix("data.pkl")).load()
    except (
        BadZipFile,
        pickle.UnpicklingError,
        OSError,
        ValueError,
        TypeError,
        KeyError,
        RuntimeError,
        AttributeError,
        EOFError,
    ):
        return None
    state = found.get("state_dict") if isinstance(found, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        return None
    return {str(name): tensor for name, tensor in state.items()}
