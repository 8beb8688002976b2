"""Distinguishes faults of a file, which may be left out, from temporary faults of the machine.

If a temporary fault (too many open files, a slow disk, memory) left out an image, the set would lack it for good.
"""

import errno
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager

OF_THE_FILE = frozenset(  # errors about the file itself, which do not go away
    {
        errno.ENOENT,
        errno.EACCES,
        errno.EPERM,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENXIO,
        errno.EINVAL,
        errno.EILSEQ,
    }
)


def is_momentary(error: BaseException) -> bool:
    """Whether an error is about the machine and not about the file. An OSError without a number is from a library."""
    if isinstance(error, OSError):
        return error.errno is not None and error.errno not in OF_THE_FILE
    return isinstance(error, MemoryError)


@contextmanager
def zip_faults() -> Iterator[None]:
    """Context that turns errors of zipfile into BadZipFile; KeyError and RuntimeError of other code stay unchanged."""
    try:
        yield
    except (
        RuntimeError,  # a password, or a compression that it does not know
        KeyError,  # a member that is gone
        struct.error,  # a member's header cut short
    ) as error:
        raise zipfile.BadZipFile(str(error) or type(error).__name__) from error
