"""The options for the layout of a grid or an animation; imports no torch."""

from typing import Annotated

import typer

from diffcli.cli.parsing.values import finite

LOOKS = "How the pictures look"  # a group of options in the help

Captions = Annotated[
    bool,
    typer.Option(
        "--captions/--no-captions",
        help="Write the prompt or class name under each image of a .png grid or an animation.",
        rich_help_panel=LOOKS,
    ),
]
Scale = Annotated[
    int | None,
    typer.Option(
        "--scale",
        min=1,
        max=64,
        help="Pixels of the square that each pixel of a .png grid or an animation becomes.",
        show_default="1; with --captions large enough for them",
        rich_help_panel=LOOKS,
    ),
]
Columns = Annotated[
    int | None,
    typer.Option(
        "--columns",
        min=1,
        help="Images side by side in a .png grid or an animation.",
        show_default="the number of classes or prompts used in turn, else about a square",
        rich_help_panel=LOOKS,
    ),
]
Hold = Annotated[
    float,
    typer.Option("--hold", min=0, help="Seconds to show the last frame.", callback=finite, rich_help_panel=LOOKS),
]
