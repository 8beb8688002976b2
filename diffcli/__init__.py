"""diffcli: train, resume, sample, animate and score diffusion models, from the command line and from Python.

    import diffcli
    model = diffcli.load("runs/digits")
    images = model.sample(n=16, label=7)

Importing it is light: torch is imported by `load`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from diffcli.facade import LoadedModel

__all__ = ["UserError", "__version__", "load"]
__version__ = "0.1.0"


def load(
    path: str | Path,
    *,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    ema: bool = True,
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    compile: bool = False,
    lora: str | Path | Sequence[str | Path] = (),
    embedding: str | Path | Sequence[str | Path] = (),
    base: str | Path | None = None,
    settings: Mapping[str, Any] | Sequence[str] = (),
) -> "LoadedModel":
    """The model of a run directory, a checkpoint folder or an exported file, ready to draw.

    ema: use the averaged weights. precision: of the networks; auto is what is fast on the device. compile: compile the network,
    which takes about a minute. lora: PATH or PATH:SCALE of changes that are merged into the weights, one or several.
    embedding: learned words that prompts may hold, by path. base: of a LoRA run, the present place of the model that it
    changes. settings: new places of encoders, by key. Raises UserError if there is no such checkpoint.
    """
    from diffcli.facade import load

    how: dict[str, Any] = {
        "precision": precision,
        "compile": compile,
        "lora": lora,
        "embedding": embedding,
        "base": base,
    }
    return load(path, device=device, ema=ema, settings=settings, **how)


def __getattr__(name: str) -> Any:
    if name == "UserError":
        from diffcli.config import UserError

        return UserError
    raise AttributeError(f"module 'diffcli' has no attribute '{name}'")
