"""The options that say which weights a checkpoint is used with; imports no torch."""

from pathlib import Path
from typing import Annotated

import typer

WEIGHTS = "Changed weights"  # a group of options in the help

Lora = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="PATH[:SCALE]",
        help="LoRA that is merged into the weights, SCALE times: a run with train.lora, or a file of diffusers, peft or kohya; "
        "repeatable.",
        show_default="none",
        rich_help_panel=WEIGHTS,
    ),
]
Embedding = Annotated[
    list[Path] | None,
    typer.Option(
        "--embedding",
        metavar="PATH",
        help="A learned word that prompts may hold: a run with train.embedding, or a .safetensors file of diffusers or the web "
        "UI; repeatable.",
        show_default="none",
        rich_help_panel=WEIGHTS,
    ),
]
BaseModel = Annotated[
    Path | None,
    typer.Option(
        "--base",
        metavar="CKPT",
        help="Of a LoRA run: where the model lies that it changes, if it has moved.",
        show_default="where it lay in training",
        rich_help_panel=WEIGHTS,
    ),
]
