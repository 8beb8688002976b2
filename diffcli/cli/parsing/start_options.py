"""The options that name a model to start from; imports no torch."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from diffcli.cli.parsing.helping import RUN


class WeightsChoice(StrEnum):
    ema = "ema"
    raw = "raw"


FromOption = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="CKPT",
        help="from: the model whose weights the run starts with: a run, a checkpoint or what import wrote.",
        show_default="the preset's",
        rich_help_panel=RUN,
    ),
]
FromWeightsOption = Annotated[
    WeightsChoice | None,
    typer.Option(
        "--from-weights",
        help="from.weights: its averaged weights, or those trained last.",
        show_default="ema",
        rich_help_panel=RUN,
    ),
]
FromModel = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="CKPT",
        help="Train this model on: its network, for your pictures.",
        show_default="a new model",
    ),
]
