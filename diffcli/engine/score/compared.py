"""The arguments of `fid`: two sides, or a checkpoint and perhaps a reference. Imports nothing heavy."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffcli.config import UserError, did_you_mean
from diffcli.data.naming import SPLITS, Split
from diffcli.lookup.checkpoint_files import is_checkpoint
from diffcli.lookup.preset_files import find

KINDS = (
    "a folder of images or films, .npz samples, .npz statistics, a prepared data set or NAME:SPLIT of a preset's data"
)

if TYPE_CHECKING:
    from diffcli.engine.options.sample_options import SampleOptions

CLIPS = ("frames", "fps", "window", "window_overlap", "given_frames")
FRAMING = {  # flags of large and of noised pictures and of clips, each with its option
    f"--{name.replace('_', '-')}": name for name in ("augment", "tile", "overlap", "exact_tiles", *CLIPS)
} | {"--no-tile": "whole"}
UNUSED = {  # flags of sampling, each with its option
    "--class": "labels",
    "--prior": "prior",
    "--sampler": "sampler",
    "--steps": "steps",
    "--ddim-eta": "eta",
    "--guidance": "guidance",
    "--precision": "precision",
    "--compile": "compile",
    "--project": "project",
    **FRAMING,
    "--lora": "loras",
    "--embedding": "embeddings",
    "--base": "base",
    "--control": "controls",
    "--control-scale": "control_scale",
}

OF_A_MODEL = {  # metrics that are of no two sides, by what they need
    "a prior": ("cosine", "mse", "retrieval"),
    "a model that tells masks": ("dice", "iou", "ged", "hm_iou", "ece"),
    "a model": ("bpd", "psnr", "ssim", "lpips", "consistency", "follows"),
}


def without_model(metrics: str, who: str) -> UserError:
    """The error for a comma list of metrics that need a model, one of OF_A_MODEL, where two sides are given."""
    place = "B" if who == "a model" else "SET:test"
    return UserError(
        f"--metrics {metrics} needs {who}", f"type diffcli fid --ckpt RUN --ref {place} --metrics {metrics}"
    )


def check_modelled(metrics: Sequence[str]) -> None:
    """Raises UserError where two sides are given for metrics that all need one kind of model."""
    for who, kinds in OF_A_MODEL.items():
        if set(metrics) <= set(kinds):
            raise without_model(",".join(metrics), who)


def split_named(text: str) -> Split:
    """The split of NAME:SPLIT. Raises UserError where a side, which is no path, is not that."""
    _, colon, split = text.rpartition(":")
    if not colon:
        raise UserError(f"{text} does not exist", f"give {KINDS} (such as digits:train)")
    chosen = next((s for s in SPLITS if s == split), None)
    if chosen is None:
        raise UserError(f"{text}: '{split}' is not a split", did_you_mean(split, SPLITS))
    return chosen


def check_sides(texts: Iterable[str]) -> None:
    """Raises UserError where one is neither a path that is there nor NAME:SPLIT of a set or preset that is there."""
    for text in texts:
        if not Path(text).expanduser().exists():
            split_named(text)
            name = text.rpartition(":")[0]
            if not Path(name).expanduser().exists():
                find(name)


def apart(given: Sequence[str], ckpt: Path | None) -> tuple[tuple[str, ...], Path | None]:
    """The sides that are given, and the checkpoint: a single side that is one stands for --ckpt."""
    alone = Path(given[0]).expanduser() if ckpt is None and len(given) == 1 else None
    return ((), alone) if alone is not None and is_checkpoint(alone) else (tuple(given), ckpt)


def check_compared(sides: Sequence[str], ckpt: Path | None, ref: str | None) -> None:
    """Raises UserError unless they are two sides or a checkpoint alone."""
    if ckpt is None and len(sides) != 2:
        raise UserError(
            f"fid compares two sides, {len(sides)} given" + (f" ({', '.join(sides)})" if sides else ""),
            "type diffcli fid A B, or diffcli fid --ckpt RUN --ref B",
        )
    if ckpt is not None and sides:
        raise UserError(f"fid takes either A B or --ckpt, both given: {' '.join(sides)}", "use --ref for the reference")
    if ckpt is None and ref is not None:
        raise UserError(f"--ref {ref} goes with --ckpt", "type diffcli fid A B, the reference second")


def check_unused(sides: Sequence[str], options: "SampleOptions") -> None:
    """Raises UserError for a sampling option beside two sides, of which nothing is drawn."""
    from diffcli.engine.options.sample_options import SampleOptions

    fresh = SampleOptions()
    for flag, name in UNUSED.items():
        given = getattr(options, name)
        if given != getattr(fresh, name):
            value = "" if given is True or isinstance(given, tuple) else f" {given}"
            raise UserError(
                f"{flag}{value} with two sides ({' '.join(sides)}): no model is sampled",
                f"leave {flag} out, or score a model with --ckpt RUN --ref B",
            )
