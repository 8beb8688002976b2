"""The digest of a file, and files that a copy or a download left in place of the content.

What was truncated or edited since it was written has another digest. Sources of the pointers:
https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md and https://git-annex.branchable.com/internals.
"""

import hashlib
from pathlib import Path

LOOK = 200  # bytes that tell


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in pieces. Raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stand_in(head: bytes) -> str | None:
    """The kind of stand-in that begins with these bytes, and what to type; None: no stand-in.

    head: the first LOOK bytes, or all of them.
    """
    if not head:
        return "it is empty, 0 bytes: copy it again from where it comes"
    if head.startswith(b"version https://git-lfs."):
        return "it is a Git LFS pointer in place of the file: type `git lfs pull` where it lies"
    if head.startswith((b"/annex/objects/", b"../.git/annex/", b".git/annex/")):
        return "it is a git-annex pointer in place of the file: type `git annex get .` where it lies"
    return None


def stands_in(path: Path) -> str | None:
    """The same of a file on disk; None where it cannot be read, too."""
    try:
        with path.open("rb") as file:
            return stand_in(file.read(LOOK))
    except OSError:
        return None
