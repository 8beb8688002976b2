"""The command prep-data."""

import os
from pathlib import Path
from typing import Annotated

import typer


def prep_data(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="What SOURCE is: mnist, cifar10, folder or imagenet64.")],
    out: Annotated[Path, typer.Option(help="Folder for the shards.")],
    source: Annotated[Path | None, typer.Argument(help="Folder, archive or files.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Edge in pixels.", show_default="as it is")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that decode and encode.")] = os.cpu_count() or 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Images of each split at most.", show_default="all")] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Keep the shards that a killed run finished.")
    ] = True,
    strict: Annotated[bool, typer.Option("--strict/--no-strict", help="Stop at the first broken image.")] = False,
    table: Annotated[
        Path | None,
        typer.Option(help="folder, webvid: .csv, .tsv, .jsonl or .parquet with the captions.", show_default=False),
    ] = None,
    image_col: Annotated[
        str | None, typer.Option(help="Column of --table with the image files.", show_default="by usual names")
    ] = None,
    caption_col: Annotated[
        str | None, typer.Option(help="Column of the table with the captions.", show_default="by usual names")
    ] = None,
    field: Annotated[
        str | None, typer.Option(help="pairs: what the second folder holds, mask or sketch.", show_default="its name")
    ] = None,
) -> None:
    """Turn a data set into WebDataset shards with an index."""
    from diffcli.config import UserError
    from diffcli.console import watch_preparation
    from diffcli.prep.items import SourceOptions
    from diffcli.prep.prepare import prepare

    if not resume and out.is_dir() and any(out.iterdir()):
        raise UserError(
            f"--no-resume: {out} is not empty", "leave --no-resume out to go on there, or give an empty --out"
        )
    options = SourceOptions(table=table, image_col=image_col, caption_col=caption_col, field=field)
    reports = prepare(kind, source, out, size=size, workers=workers, limit=limit, strict=strict, options=options)
    print(watch_preparation(reports))
