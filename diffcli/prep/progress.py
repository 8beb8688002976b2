"""The reports of prep-data: its progress, and the number of skipped images by kind of reason."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from diffcli.data.shards import Index, Skipped
from diffcli.prep.kinds import KINDS

TIMEOUT, BROKEN_OFF, NO_CONNECTION = "timeout", "connection broken off", "no connection"
KINDS_OF_FAILURE = [
    (re.compile(pattern, re.IGNORECASE), kind)
    for pattern, kind in (
        (r"Git LFS|git-annex", "pointers in place of files (`git lfs pull`, `git annex get .`)"),
        (r"^it is empty", "empty files"),
        (r"HTTP Error (\d+)", r"HTTP \1"),
        (r"X-Robots-Tag", "opted out (X-Robots-Tag)"),
        (r"timed out|timeout", TIMEOUT),
        (r"reset by peer|IncompleteRead|closed connection|broken (pipe|off)", BROKEN_OFF),
        (r"certificate|ssl", "no secure connection"),
        (r"unknown url type|no host given|Invalid IPv6|nonnumeric port|control characters|label.*too long", "no URL"),
        (r"Errno|name resolution|name or service|no connection", NO_CONNECTION),
        (r"HTML", "HTML, not an image"),
        (r"too small", "too small"),
        (r"it is none of", "not an image"),
        (r"decompression bomb", "too many pixels"),
        (r"truncated|broken|corrupt", "not a whole image"),
        (r"has no image", "no image"),
        (r"label", "no label that fits"),
        (r"UTF-8", "captions not in UTF-8"),
        (r"(HEIC|AVIF) pictures", r"\1, which is not installed"),
        (r"--range", "values without --range"),
        (r"never closes|fields, not|not JSON|not a JSON", "rows that cannot be read"),
    )
]


class PrepReport(NamedTuple):
    """The progress of a preparation in images: of `total`, `done` are `written` or `skipped`.

    broken: the first image that was skipped; reasons: their number by kind of reason; notes: for the user.
    fetched: during a download, the number of images by outcome. what: the current work.
    """

    kind: str
    out: Path
    total: int
    written: int = 0
    skipped: int = 0
    broken: Skipped | None = None
    notes: tuple[str, ...] = ()
    reasons: Mapping[str, int] = {}
    fetched: Counter[str] | None = None
    what: str = "preparing"

    @property
    def done(self) -> int:
        return self.written + self.skipped

    @property
    def unit(self) -> str:
        """What is counted, in the plural, for people."""
        return "clips" if self.kind in KINDS and KINDS[self.kind].clips else "images"

    def plus(self, index: Index) -> "PrepReport":
        """This report after one more shard."""
        return self._replace(
            written=self.written + len(index.members),
            skipped=self.skipped + len(index.skipped),
            broken=self.broken or next(iter(index.skipped), None),
            reasons=Counter(self.reasons) + Counter(kind_of_failure(entry.reason) for entry in index.skipped),
        )


def kind_of_failure(reason: str) -> str:
    """The kind of a reason in a few words: 'timeout', 'HTTP 404', 'not an image'; else 'other'."""
    for pattern, kind in KINDS_OF_FAILURE:
        if found := pattern.search(reason):
            return found.expand(kind)
    return "other"
