"""Opening a source for prep-data, with a look at its first images."""

from contextlib import suppress
from pathlib import Path

import numpy as np

from diffcli.data.deep_images import LOOKED_AT, range_note
from diffcli.data.files import ARCHIVE_ERRORS, read_location
from diffcli.prep.encode import Picture
from diffcli.prep.items import Deferred, Item, PrepSource, SourceOptions
from diffcli.prep.kinds import KINDS
from diffcli.prep.openers import OPENERS


def open_source(kind: str, source: Path, work: Path, options: SourceOptions) -> PrepSource:
    """The source, with a note on deep images if their range is not given."""
    opened = OPENERS[kind](source, work, options)._replace(levels=options.range)
    if options.range is not None or "range" not in KINDS[kind].takes:
        return opened
    items = next(iter(opened.splits.values()))
    first = items.items(range(0, len(items), max(1, len(items) // LOOKED_AT)))
    note = range_note((_encoded(item) for item in first), "--range {}")
    return opened if note is None else opened._replace(notes=(*opened.notes, note))


def _encoded(item: Item | Deferred) -> bytes:
    """The file of an image; None if another part of the program reports on it."""
    if not isinstance(item, Item) or isinstance(item.image, np.ndarray | Picture):
        return b""
    with suppress(OSError, *ARCHIVE_ERRORS):
        return read_location(item.image)
    return b""
