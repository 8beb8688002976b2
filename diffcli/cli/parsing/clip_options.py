"""The options of `sample` and `fid` for models of clips; imports no torch."""

from typing import Annotated

import typer

from diffcli.cli.parsing.values import finite

CLIPS = "Clips"  # a group of options in the help

Frames = Annotated[
    int | None,
    typer.Option(
        "--frames",
        min=1,
        help="Frames of a clip; more than in training are predicted in windows.",
        show_default="as in training",
        rich_help_panel=CLIPS,
    ),
]
ClipFps = Annotated[
    float | None,
    typer.Option(
        "--fps",
        min=0.1,
        max=1000,
        help="Frames per second of a clip: of its file, and for a model that was trained on them the speed that it draws.",
        show_default="as in training",
        callback=finite,
        rich_help_panel=CLIPS,
    ),
]
GivenFrames = Annotated[
    str | None,
    typer.Option(
        "--given-frames",
        metavar="first:K|last:K|ends:K",
        help="The frames of a clip that --image gives, as a picture, a film or a folder of frames: its first K, its last K, or "
        "K at both ends.",
        show_default="those of training that --image has",
        rich_help_panel=CLIPS,
    ),
]
GivenByReference = Annotated[
    str | None,
    typer.Option(
        "--given-frames",
        metavar="first:K|last:K|ends:K|none",
        help="The frames that a clip of --ref gives each clip that is drawn: its first K, its last K, K at both ends, or none.",
        show_default="those that most clips of training had",
        rich_help_panel=CLIPS,
    ),
]
Window = Annotated[
    int | None,
    typer.Option(
        "--window",
        min=1,
        help="Frames that are predicted together.",
        show_default="as in training",
        rich_help_panel=CLIPS,
    ),
]
WindowOverlap = Annotated[
    int | None,
    typer.Option(
        "--window-overlap",
        min=0,
        help="Frames that two windows share at least; they are averaged there.",
        show_default="half of a window",
        rich_help_panel=CLIPS,
    ),
]
