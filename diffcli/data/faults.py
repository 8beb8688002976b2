"""Whose fault it is that a file cannot be read: that of the file, which may be left out, or that of the machine at the time.

A set in which a momentary fault (too many open files, a disk that stutters, memory) left out an image would lack it for good.
"""

import errno
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager

OF_THE_FILE = frozenset(  # what the system says of a file itself: another time is no better
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
    """Whether an error tells of the machine rather than of the file that was read. An OSError without a number is a library's."""
    if isinstance(error, OSError):
        return error.errno is not None and error.errno not in OF_THE_FILE
    return isinstance(error, MemoryError)


@contextmanager
def zip_faults() -> Iterator[None]:
    """What zipfile raises of a zip becomes BadZipFile: other code's KeyError and RuntimeError stay what they are."""
    try:
        yield
    except (
        RuntimeError,  # a password, or a compression that it does not know
        KeyError,  # a member that is gone
        struct.error,  # a member's header cut short
    ) as error:
        raise zipfile.BadZipFile(str(error) or type(error).__name__) from error
