"""`diffcli presets`: list, show, check and describe presets."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from diffcli.cli import door
from diffcli.cli.parsing import choices
from diffcli.cli.parsing.helping import HelpfulCommand, HelpfulGroup
from diffcli.cli.parsing.start_options import FromModel


class NewTask(StrEnum):
    """The task of the preset that `presets new` writes."""

    diffusion = "diffusion"
    classifier = "classifier"


presets_app = typer.Typer(
    help="List, show, check and write presets; without a command it lists.",
    invoke_without_command=True,
    cls=HelpfulGroup,
)


@presets_app.callback()
def presets_alone(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        presets_list()


@presets_app.command("list", cls=HelpfulCommand)
def presets_list() -> None:
    """List the presets that --preset finds, by data: name, size of the images, steps x batch, purpose and needs."""
    from diffcli.cli.catalogue import catalogue, lines
    from diffcli.lookup.preset_files import available

    print("\n".join(lines(catalogue(available()))))


@presets_app.command("show", cls=HelpfulCommand)
def presets_show(
    name: Annotated[str, typer.Argument(help="A preset's name or file.", autocompletion=choices.presets)],
) -> None:
    """Print the YAML file of a preset."""
    from diffcli.lookup import preset_files as presets

    print(presets.find(name).read_text(encoding="utf-8"), end="")


@presets_app.command("check", cls=HelpfulCommand)
def presets_check(
    file: Annotated[str, typer.Argument(help="A preset's name or file.", autocompletion=choices.presets)],
) -> None:
    """Validate a preset and print it with every default."""
    door.check_preset(file, [])
    from diffcli import preset as presets
    from diffcli.cli.console import say
    from diffcli.engine.run.state import build_on_meta
    from diffcli.engine.stage_reading import completed

    chosen = presets.load(file)
    build_on_meta(completed(chosen))
    print(presets.dump(chosen), end="")
    for advice in chosen.advice():
        say(f"note:  {advice}")


@presets_app.command("new", cls=HelpfulCommand)
def presets_new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the preset; the file is NAME.yaml.")],
    data: Annotated[Path, typer.Option(metavar="DIR", help="Your pictures: a folder, or a set of prep-data.")],
    task: Annotated[
        NewTask | None, typer.Option(help="What is trained.", show_default="diffusion, or what --from is")
    ] = None,
    start_from: FromModel = None,
) -> None:
    """Write a commented preset that fits your own pictures."""
    from diffcli.data.naming import check_there
    from diffcli.lookup.preset_files import new_file

    new_file(name)
    check_there(data, "data.root")
    if start_from is not None:
        door.check_checkpoint(start_from)
    from diffcli.cli.console import say
    from diffcli.config import quoted
    from diffcli.engine.run.new_preset import write_new
    from diffcli.engine.run.origin.new_continuation import write_continued

    kind = None if task is None else task.value
    path, found = (
        write_new(name, data, "classifier" if task is NewTask.classifier else "diffusion")
        if start_from is None
        else write_continued(name, data, start_from, kind)
    )
    for line in found.lines:
        say(line)
    for note in found.notes:
        say(f"note:  {note}")
    say(f"next:  diffcli train --preset {quoted(path)}")
    print(path)


@presets_app.command("schema", cls=HelpfulCommand)
def presets_schema() -> None:
    """Print the JSON schema of presets."""
    from diffcli.lookup.raw_preset import PRESET

    print(PRESET.path.read_text(encoding="utf-8"), end="")
