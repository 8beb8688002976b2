"""The names that options take, for help, completion and fast errors; tests compare them with the registries."""

import json
from pathlib import Path

import typer

SAMPLERS = (
    *("ddpm", "ddim", "plms", "ab4", "euler", "euler_ancestral", "heun", "edm_heun"),
    *("dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "unipc", "ode"),
)
METRICS = (
    *("fid", "kid", "is", "precision", "recall", "accuracy", "bpd", "psnr", "ssim", "lpips", "consistency", "follows"),
    *("cosine", "mse", "retrieval", "dice", "iou", "ged", "hm_iou", "ece"),
    *("fvd", "motion", "kept", "kept_class", "frame_similarity"),
)


def presets(incomplete: str) -> list[str]:
    """Completions of a preset's name."""
    from diffcli.lookup.preset_files import available

    return sorted(name for name in available() if name.startswith(incomplete))


def samplers(incomplete: str) -> list[str]:
    """Completions of --sampler."""
    return [name for name in SAMPLERS if name.startswith(incomplete)]


def metrics(incomplete: str) -> list[str]:
    """Completions of the last name of a comma list of metrics."""
    before, comma, last = incomplete.rpartition(",")
    return [before + comma + name for name in METRICS if name.startswith(last) and name not in before.split(",")]


def kinds(incomplete: str) -> list[str]:
    """Completions of KIND of prep-data."""
    from diffcli.prep.kinds import KINDS

    return [name for name in [*KINDS, "shards"] if name.startswith(incomplete)]


def classes(ctx: typer.Context, incomplete: str) -> list[str]:
    """Completions of --class: all, random, and the class names of the checkpoint that the line names before."""
    return [name for name in ["all", "random", *_classes_of(ctx)] if name.startswith(incomplete)]


def _classes_of(ctx: typer.Context) -> list[str]:
    from diffcli.config import UserError
    from diffcli.lookup.checkpoint_files import RECORD, locate

    named = ctx.params.get("ckpt") or ctx.params.get("named")
    try:
        found = json.loads((locate(Path(named)) / RECORD).read_text())["classes"] if named else None
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return []  # the command itself will say what is wrong
    return [str(name) for name in found] if isinstance(found, list) else []
