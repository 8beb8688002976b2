"""What a prepared set holds, read back for the tests."""

import json
from pathlib import Path

from diffcli.data import captions
from diffcli.data.shards import ShardFiles, open_shards


def texts(root: Path, split: str = "train") -> list[list[str]]:
    """All captions of every image."""
    files = ShardFiles(root, open_shards(root, "root"), split).field("text")
    return [captions.from_bytes(files.read(number)) for number in range(len(files))]


def skipped(root: Path) -> dict[str, str]:
    """The reasons in skipped.jsonl, by name."""
    rows = map(json.loads, (root / "skipped.jsonl").read_text().splitlines())
    return {row["path"]: row["reason"] for row in rows}
