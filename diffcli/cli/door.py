"""Checks of flags that run before torch is imported, so that a typing mistake is reported at once.

Whatever depends on the content of a preset, checkpoint or data set is checked by the engine.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffcli.cli.parsing.choices import METRICS, SAMPLERS

if TYPE_CHECKING:
    from diffcli.engine.seeds import Seeds


def check_preset(name: str, overrides: Sequence[str], data: str | None = None) -> None:
    """Raises UserError for an unknown preset, a file that is not YAML, and a --set that no preset takes; data: that of --data."""
    from diffcli.lookup import preset_files

    path = preset_files.find(name)
    raw = preset_files.read(path)
    check_settings(overrides)
    if overrides:
        from diffcli.lookup.raw_preset import check_values

        check_values(raw, str(path), overrides, apart=() if data is None else ("data",))


def check_settings(overrides: Sequence[str]) -> None:
    """Raises UserError for a --set without KEY=VALUE."""
    if not overrides:
        return
    from diffcli.lookup.preset_files import key_and_value

    for item in overrides:
        key_and_value(item)


def check_sampler(name: str | None) -> None:
    """Raises UserError for a --sampler that does not exist."""
    if name is None or name in SAMPLERS:
        return
    from diffcli.config import UserError, did_you_mean

    raise UserError(f"--sampler {name}: no such sampler", did_you_mean(name, SAMPLERS))


def seeds(text: str, n: int | None, interpolate: int | None = None) -> "Seeds":
    """What --seed names. Raises UserError where it is no seed, or contradicts --n or --interpolate."""
    from diffcli.engine.seeds import check_seeds, read_seeds

    found = read_seeds(text)
    check_seeds(found, n, interpolate)
    return found


def check_drawing(
    ckpt: Path,
    out: Path,
    kinds: tuple[str, ...],
    folder: bool,
    sampler: str | None,
    overrides: Sequence[str],
    loras: Sequence[str] = (),
) -> None:
    """Raises UserError for an unknown sampler, a malformed setting, an impossible output, and a missing checkpoint or LoRA."""
    from diffcli.engine.draw.out_files import check_output

    check_sampler(sampler)
    check_settings(overrides)
    check_output(out, kinds, folder_allowed=folder)
    check_checkpoint(ckpt)
    check_loras(loras)


def check_loras(texts: Sequence[str]) -> None:
    """Raises UserError where a --lora names nothing that is there, or no scale."""
    if not texts:
        return
    from diffcli.lookup.lora_paths import lora_wish

    for text in texts:
        lora_wish(text)


def check_checkpoint(path: Path) -> None:
    """Raises UserError if a path cannot be a checkpoint."""
    from diffcli.lookup.checkpoint_files import locate

    locate(path)


def check_run(path: Path) -> None:
    """Raises UserError if there is no run directory."""
    from diffcli.lookup.checkpoint_files import run_directory

    run_directory(path)


def check_import(source: Path, preset: str | None) -> None:
    """Raises UserError if there are no weights to import, and for an unknown preset."""
    from diffcli.lookup.checkpoint_files import weights_to_import

    weights_to_import(source)
    if preset is not None:
        check_preset(preset, [])


def check_metrics(names: str) -> None:
    """Raises UserError for a --metrics with an unknown name or without any."""
    from diffcli.config import UserError, did_you_mean

    for name in (word.strip().lower() for word in names.split(",")):
        if name not in METRICS:
            raise UserError(f"--metrics: '{name}' is not a metric", did_you_mean(name, METRICS))
