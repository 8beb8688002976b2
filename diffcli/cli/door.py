"""Checks that run before torch is imported, so that a typing mistake is reported at once.

They look at flags, at names of files, at the raw tree of a preset and at the record of a checkpoint, as far as these tell for
certain. The engine checks everything else, and these again, by the same functions.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffcli.cli.parsing.choices import METRICS, SAMPLERS
from diffcli.cli.session import WORKER

FROM_FILES = ("mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100", "folder", "clips")  # kinds of data

if TYPE_CHECKING:
    from diffcli.engine.options.seeds import Seeds


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


def check_start(preset: str, overrides: Sequence[str], start_from: Path | None, weights: str | None) -> None:
    """Raises UserError for a --from that is no checkpoint, and for --from-weights without a model to start from."""
    if start_from is not None:
        check_checkpoint(start_from)
    elif weights is not None:
        from diffcli.lookup import preset_files
        from diffcli.tasks.starting_point import check_weights_of

        named = "from" in preset_files.read(preset_files.find(preset)) or any(o.startswith("from") for o in overrides)
        check_weights_of(weights, Path() if named else None)


def check_data(preset: str, data: str | None, overrides: Sequence[str]) -> None:
    """Raises UserError for a --data that is not there, where the kind of the preset's data says that it must be."""
    if data is None or any(mark in data for mark in ("://", *"{*?[")) or any(o.startswith("data") for o in overrides):
        return
    from diffcli.config import UserError
    from diffcli.data.naming import COMES_WITH, check_there, no_root
    from diffcli.lookup import preset_files

    path = preset_files.find(preset)
    given = preset_files.read(path).get("data")
    kind = given.get("kind") if isinstance(given, dict) else None
    place = Path(data).expanduser().absolute()
    if kind in FROM_FILES:
        check_there(place, "data.root")
    elif kind in COMES_WITH and not place.exists():
        problem, _, remedy = no_root(kind).partition("; ")
        raise UserError(f"{path} with --data {data}: {problem}", remedy)


def check_new_run(preset: str, overrides: Sequence[str], run_dir: Path | None) -> None:
    """Raises UserError where a run would begin in a directory that holds one, or that is a file."""
    if WORKER in os.environ:
        return  # its launcher has looked, and another worker may have saved already
    from diffcli.lookup import preset_files
    from diffcli.lookup.run_folders import check_new

    if run_dir is None and not any(item.startswith("name=") for item in overrides):
        name = preset_files.read(preset_files.find(preset)).get("name")
        run_dir = Path("runs") / name if isinstance(name, str) else None
    if run_dir is not None:
        check_new(run_dir)


def check_device(name: str) -> None:
    """Raises UserError for --device cuda with a torch that cannot have it."""
    if name == "cuda":
        from diffcli.lookup import torch_build

        torch_build.check_device(name)


def check_drawn_by(
    ckpt: Path, labels: str | None, overrides: Sequence[str], sampler: str | None, eta: float | None
) -> None:
    """Raises UserError for a --class that a checkpoint does not know, and a --set that its sampling does not have."""
    from diffcli.lookup.changeable import check_sampling

    check_sampling(overrides)
    chosen = labels if labels not in (None, "all", "random") else None
    if chosen is None and not overrides:
        return
    from diffcli.engine.options.record_checks import check_class
    from diffcli.lookup.checkpoint_files import glance, locate
    from diffcli.lookup.raw_preset import check_values

    record = glance(ckpt)
    switched = () if sampler is None and eta is None else ("sampler",)
    check_values(record.get("preset"), str(locate(ckpt)), overrides, apart=switched)
    if chosen is not None:
        check_class(record, chosen)


def check_conditions(ckpt: Path, prompts: Mapping[str, str | None], clips: Mapping[str, float | str | None]) -> None:
    """Raises UserError for prompts, and for options of clips, by their flags, that a checkpoint takes none of."""
    if any(value is not None for value in [*prompts.values(), *clips.values()]):
        from diffcli.engine.options.record_checks import check_clips, check_prompts
        from diffcli.lookup.checkpoint_files import glance, locate

        record, path = glance(ckpt), locate(ckpt)
        check_prompts(record, path, prompts)
        check_clips(record, path, clips)


def check_models(then: Sequence[Path] | None, base: Path | None, controls: Sequence[Path]) -> None:
    """Raises UserError where --then, --base or --control names no checkpoint."""
    from diffcli.config import UserError

    given = [(f"--then {path}: ", path) for path in then or ()]
    given += [] if base is None else [("--base ", base)]
    given += [(f"--control {path}: ", path) for path in controls]
    for begin, path in given:
        try:
            check_checkpoint(path.expanduser())
        except UserError as error:
            raise UserError(f"{begin}{error.problem}", error.hint) from None


def check_pictures(images: Sequence[Path] | None, mask: Path | None, fields: Sequence[str] | None) -> None:
    """Raises UserError where --image, --mask or --field names a file that is not there."""
    from diffcli.cli.parsing.values import named_files
    from diffcli.lookup import given_paths

    given = [("--image", path) for path in images or ()]
    given += [] if mask is None else [("--mask", mask)]
    given += [(f"--field {name}", path) for name, paths in named_files(list(fields or ())) for path in paths]
    given_paths.check_pictures(given)


def check_layout(out: Path, layout: Mapping[str, Any]) -> None:
    """Raises UserError for options of a grid where --out is none. layout: by their flags."""
    from diffcli.engine.draw.out_files import check_arrangement

    check_arrangement(out, (".png", ".mp4", ".webp", ".gif"), layout)


def check_resumed(run: Path, from_step: int | None, overrides: Sequence[str]) -> None:
    """Raises UserError for a --set that a resumed run cannot have, and for a run that is at its last step already."""
    check_settings(overrides)
    from diffcli.lookup.changeable import check_resuming

    check_resuming(overrides)
    from diffcli.lookup.checkpoint_files import RECORD, checkpoints, glance

    kept = checkpoints(run / "checkpoints")
    record = glance(kept[-1]) if kept and from_step is None else {}
    preset = record.get("preset")
    if not isinstance(preset, dict) or not isinstance(record.get("step"), int):
        return
    from diffcli.lookup.raw_preset import check_values
    from diffcli.lookup.run_folders import check_to_do

    check_values(preset, f"{kept[-1]}/{RECORD}", overrides)
    check_to_do(run, record["step"], preset, overrides)


def check_sampler(name: str | None) -> None:
    """Raises UserError for a --sampler that does not exist."""
    if name is None or name in SAMPLERS:
        return
    from diffcli.config import UserError, did_you_mean

    raise UserError(f"--sampler {name}: no such sampler", did_you_mean(name, SAMPLERS))


def seeds(text: str, n: int | None, interpolate: int | None = None) -> "Seeds":
    """What --seed names. Raises UserError where it is no seed, or contradicts --n or --interpolate."""
    from diffcli.engine.options.seeds import check_seeds, read_seeds

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
