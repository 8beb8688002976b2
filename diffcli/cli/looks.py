"""The options of how a grid or an animation looks; imports no torch."""

from typing import Annotated

import typer

from diffcli.cli.options import finite

LOOKS = "How the pictures look"  # a group of options in the help

Captions = Annotated[
    bool,
    typer.Option(
        "--captions/--no-captions",
        help="Write prompt or class name under each image of a .png grid or an animation.",
        rich_help_panel=LOOKS,
    ),
]
Scale = Annotated[
    int | None,
    typer.Option(
        "--scale",
        min=1,
        help="Show each pixel of a .png grid or an animation as a square of so many pixels.",
        show_default="1; with --captions what they need",
        rich_help_panel=LOOKS,
    ),
]
Columns = Annotated[
    int | None,
    typer.Option(
        "--columns",
        min=1,
        help="Images side by side in a .png grid or an animation.",
        show_default="classes or prompts that take turns, else about a square",
        rich_help_panel=LOOKS,
    ),
]
Hold = Annotated[
    float,
    typer.Option("--hold", min=0, help="Seconds that the last frame stays.", callback=finite, rich_help_panel=LOOKS),
]
