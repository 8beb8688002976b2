"""The commands that exchange models with other libraries: import and export."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from diffcli.cli import door
from diffcli.cli.options import Ckpt, Named, UseEma, the_checkpoint
from diffcli.cli.parsing import choices


class ExportLibrary(StrEnum):
    diffusers = "diffusers"


def import_weights(
    source: Annotated[
        Path, typer.Argument(metavar="FILE|FOLDER", help="A .pt, .ckpt or .safetensors file, or a diffusers folder.")
    ],
    out: Annotated[Path, typer.Option(help="New folder for the checkpoint.")],
    preset: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="PRESET",
            autocompletion=choices.presets,
            help="The preset that describes the model (name or file); a diffusers folder needs none.",
            show_default="what the files say",
        ),
    ] = None,
) -> None:
    """Turn published weights (diffusers, Stable Diffusion, OpenAI U-Nets, DiT, SiT, taming) into a checkpoint."""
    door.check_import(source, preset)
    from diffcli import preset as presets
    from diffcli.cli.console import say
    from diffcli.interop import importing

    importing.check_empty(out)
    imported = importing.load(source, None if preset is None else presets.load(preset))
    for note in imported.notes:
        say(f"note:  {note}")
    print(importing.save(imported, out, source))


def export(
    out: Annotated[Path, typer.Option(help="New folder for the model.")],
    named: Named = None,
    ckpt: Ckpt = None,
    to: Annotated[ExportLibrary, typer.Option(help="The library that is to load it.")] = ExportLibrary.diffusers,
    ema: UseEma = True,
) -> None:
    """Write a checkpoint as a folder that another library loads."""
    ckpt = the_checkpoint("export", named, ckpt)
    door.check_checkpoint(ckpt)
    import torch

    from diffcli.cli.console import say
    from diffcli.engine.draw.sample import load_model
    from diffcli.interop.exporting import export_diffusers, notes

    model = load_model(ckpt, torch.device("cpu"), ema, precision="fp32")
    encoders = [c.encoder for c in model.task.named_conditioners.values() if c.encoder is not None]
    written = export_diffusers(model.preset, model.task.state_dict(), model.classes, out, next(iter(encoders), None))
    for note in notes(model.preset):
        say(f"note:  {note}")
    print(written)
