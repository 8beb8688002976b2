"""The commands that exchange models with other libraries: import and export."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from diffcli.cli import door
from diffcli.cli.options import Ckpt, Named, UseEma, the_checkpoint
from diffcli.cli.parsing import choices
from diffcli.cli.parsing.weight_options import BaseModel, Lora


class ExportLibrary(StrEnum):
    diffusers = "diffusers"
    peft = "peft"
    kohya = "kohya"
    embedding = "embedding"


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
    base: Annotated[
        Path | None,
        typer.Option(
            "--base",
            metavar="RUN",
            help="Of a ControlNetModel of diffusers: the import of the model that it leads.",
            show_default="none",
        ),
    ] = None,
    field: Annotated[
        str, typer.Option("--field", metavar="NAME", help="Of a ControlNetModel: what its picture is called, as edges.")
    ] = "hint",
) -> None:
    """Turn published weights (diffusers, Stable Diffusion, OpenAI U-Nets, DiT, SiT, taming) into a checkpoint."""
    from diffcli.lookup.given_paths import check_empty

    door.check_import(source, preset)
    check_empty(out)
    from diffcli import preset as presets
    from diffcli.cli.console import say
    from diffcli.interop import importing

    imported = importing.load(source, None if preset is None else presets.load(preset), base, field)
    for note in imported.notes:
        say(f"note:  {note}")
    print(importing.save(imported, out, source))


def export(
    out: Annotated[Path, typer.Option(help="New folder for the model.")],
    named: Named = None,
    ckpt: Ckpt = None,
    to: Annotated[
        ExportLibrary | None,
        typer.Option(
            help="The library that shall load it: the whole model for diffusers, the matrices of a LoRA run for peft (and "
            "diffusers) or kohya; embedding: the learned word of a run, for diffusers and the web UI.",
            show_default="diffusers",
        ),
    ] = None,
    merge: Annotated[
        bool,
        typer.Option(
            "--merge/--no-merge",
            help="A checkpoint of diffcli instead, with the weights of a LoRA run, and those of --lora, merged into its base.",
        ),
    ] = False,
    ema: UseEma = True,
    lora: Lora = None,
    base: BaseModel = None,
) -> None:
    """Write a checkpoint as a folder that another library loads."""
    ckpt = the_checkpoint("export", named, ckpt)
    door.check_checkpoint(ckpt)
    door.check_loras(lora or [])
    from diffcli.config import UserError
    from diffcli.lookup.given_paths import check_empty

    check_empty(out)

    if merge and to is not None:
        raise UserError(f"--merge with --to {to}: it writes a checkpoint of diffcli", "leave out --merge or --to")
    if merge:
        from diffcli.engine.lora.lora_export import export_merged

        print(export_merged(ckpt, out, ema, lora or (), base))
        return
    if to == ExportLibrary.embedding:
        from diffcli.engine.words.word_files import export_word

        print(export_word(ckpt, out))
        return
    if to in (ExportLibrary.peft, ExportLibrary.kohya):
        from diffcli.engine.lora.lora_export import export_matrices

        if lora or base is not None:
            flag = f"--lora {lora[0]}" if lora else f"--base {base}"
            raise UserError(
                f"{flag} with --to {to}: it writes the matrices of one LoRA run alone",
                f"give that run, and leave {flag} out; --merge, or --to diffusers, writes the model with its changes",
            )
        print(export_matrices(ckpt, out, ema, "peft" if to == ExportLibrary.peft else "kohya"))
        return
    import torch

    from diffcli.cli.console import say
    from diffcli.engine.draw.sample import load_model
    from diffcli.interop.exporting import export_diffusers, notes

    model = load_model(ckpt, torch.device("cpu"), ema, precision="fp32", base=base, loras=lora or ())
    encoders = [c.encoder for c in model.task.named_conditioners.values() if c.encoder is not None]
    written = export_diffusers(model.preset, model.task.state_dict(), model.classes, out, next(iter(encoders), None))
    for note in notes(model.preset):
        say(f"note:  {note}")
    if (word := model.preset.train.embedding) is not None:
        say(f"note:  the word {word.token} is no part of such a folder: write it beside by --to embedding")
    print(written)
