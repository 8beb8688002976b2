"""What the installed torch was built for, read from its files: importing it takes seconds."""

import re
from importlib.util import find_spec
from pathlib import Path

from diffcli.config import UserError

BUILT = re.compile(r"^(?:cuda|hip)\b[^=\n]*=\s*(?!None\b)\S", re.MULTILINE)  # of torch/version.py


def no_cuda() -> UserError:
    """The error for --device cuda where there is none."""
    return UserError("--device cuda: no CUDA device is available", "use --device cpu, or install a CUDA build of torch")


def check_device(name: str) -> None:
    """Raises UserError for --device cuda with a torch that was built without CUDA and ROCm; others are asked for the device."""
    spec = find_spec("torch") if name == "cuda" else None
    if spec is None or spec.origin is None:
        return
    version = Path(spec.origin).with_name("version.py")
    if version.is_file() and not BUILT.search(version.read_text(encoding="utf-8")):
        raise no_cuda()
