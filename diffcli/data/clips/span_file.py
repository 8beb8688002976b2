"""A member of a tar as a file of its own, read in place."""

import io
import os
from typing import Any

from diffcli.data.files import Span


class SpanFile(io.RawIOBase):
    """The bytes of a span, to be read and sought in; nothing is held."""

    def __init__(self, span: Span) -> None:
        self.span, self.place = span, 0
        self.descriptor = os.open(span.path, os.O_RDONLY)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self.span.size - self.place))
        data = os.pread(self.descriptor, count, self.span.offset + self.place)
        if count and not data:
            raise EOFError(f"{self.span.path} ends before byte {self.span.offset + self.span.size}")
        buffer[: len(data)] = data
        self.place += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.span.size}[whence]
        self.place = max(0, start + offset)
        return self.place

    def tell(self) -> int:
        return self.place

    def close(self) -> None:
        if not self.closed:
            os.close(self.descriptor)
        super().close()
