"""The command prep-data."""

import os
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffcli.cli.options import Device
from diffcli.cli.parsing import choices

if TYPE_CHECKING:
    from diffcli.data.modes import Range
    from diffcli.prep.items import LatentOptions
    from diffcli.prep.progress import PrepReport

EMBEDDING = "Embeddings of a pretrained encoder, stored beside the images"
KINDS = (
    "mnist, fashion-mnist, kmnist, cifar10, cifar100, imagenet64, imagenet, celeba, afhq, ffhq, folder, pairs, lidc,"
    " isic, cvc-clinic, coco, cc3m, cc12m, urls, webdataset, parquet, webvid, latents, or shards (a prepared set, to --embed)"
)
LATENTS = "Latents of a first stage (latents)"
DOWNLOADS = "Downloads (cc3m, cc12m, urls, coco)"


class Encoding(StrEnum):
    jpg = "jpg"
    png = "png"


class Distributor(StrEnum):
    multiprocessing = "multiprocessing"
    pyspark = "pyspark"
    ray = "ray"


class ClassesFrom(StrEnum):
    folders = "folders"
    prefix = "prefix"


class EmbedChoice(StrEnum):
    clip = "clip"
    clip_tokens = "clip-tokens"
    t5 = "t5"


class EncoderLibrary(StrEnum):
    transformers = "transformers"
    open_clip = "open_clip"


def prep_data(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            autocompletion=choices.kinds,
            help=f"What SOURCE is: {KINDS}; alone, it says where to get it.",
        ),
    ],
    source: Annotated[Path | None, typer.Argument(help="Folder, archive or files.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the shards.", show_default="none: it is needed")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Edge in pixels.", show_default="as it is")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes that decode and encode.")] = os.cpu_count() or 1,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Largest number of images in each split.", show_default="all")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume/--no-resume", help="Continue after the shards that an earlier, killed call finished."),
    ] = True,
    strict: Annotated[bool, typer.Option("--strict/--no-strict", help="Stop at the first broken image.")] = False,
    url_col: Annotated[
        str | None, typer.Option(help="Column of the URLs.", show_default="by usual names", rich_help_panel=DOWNLOADS)
    ] = None,
    min_size: Annotated[
        int, typer.Option(min=1, help="Smallest length of the shorter edge, in pixels.", rich_help_panel=DOWNLOADS)
    ] = 256,
    encode: Annotated[Encoding, typer.Option(help="How images are stored.", rich_help_panel=DOWNLOADS)] = Encoding.jpg,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of JPEG.", rich_help_panel=DOWNLOADS)] = 95,
    obey_opt_out: Annotated[
        bool,
        typer.Option(
            "--obey-opt-out/--no-obey-opt-out",
            help="Leave out images whose owner refuses use by X-Robots-Tag (noai, noindex, ...).",
            rich_help_panel=DOWNLOADS,
        ),
    ] = True,
    distributor: Annotated[
        Distributor, typer.Option(help="What img2dataset runs on.", rich_help_panel=DOWNLOADS)
    ] = Distributor.multiprocessing,
    threads: Annotated[int, typer.Option(min=1, help="Connections of a worker.", rich_help_panel=DOWNLOADS)] = 64,
    timeout: Annotated[
        int, typer.Option(min=1, help="Seconds to wait for a silent host.", rich_help_panel=DOWNLOADS)
    ] = 10,
    retries: Annotated[
        int, typer.Option(min=0, help="Further attempts for a URL that fails.", rich_help_panel=DOWNLOADS)
    ] = 1,
    table: Annotated[
        Path | None,
        typer.Option(
            help="folder, webvid: .csv, .tsv, .jsonl or .parquet with the captions.", show_default="what lies in SOURCE"
        ),
    ] = None,
    image_col: Annotated[
        str | None,
        typer.Option(
            help="Column of --table with the image files; parquet: with the images.", show_default="by usual names"
        ),
    ] = None,
    caption_col: Annotated[
        str | None, typer.Option(help="Column of the table with the captions.", show_default="by usual names")
    ] = None,
    field: Annotated[
        str | None, typer.Option(help="pairs: what the second folder holds, mask or sketch.", show_default="its name")
    ] = None,
    classes: Annotated[
        ClassesFrom,
        typer.Option(help="folder: what names the classes; prefix: the beginning of the file name, as in cat_001.png."),
    ] = ClassesFrom.folders,
    levels: Annotated[
        str | None,
        typer.Option(
            "--range",
            metavar="LOW,HIGH",
            help="folder, pairs, webdataset, parquet: the values of 16-bit or float images that become black and white.",
            show_default="0,65535",
        ),
    ] = None,
    embed: Annotated[
        EmbedChoice | None,
        typer.Option(
            help="clip: one of each image and caption; clip-tokens, t5: of the tokens of captions. KIND shards: of a set.",
            show_default="nothing",
            rich_help_panel=EMBEDDING,
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Folder or hub name; or a run or an import, whose own encoder reads as it does there.",
            show_default="none: --embed needs it",
            rich_help_panel=EMBEDDING,
        ),
    ] = None,
    encoder_library: Annotated[
        EncoderLibrary, typer.Option(help="What loads it.", rich_help_panel=EMBEDDING)
    ] = EncoderLibrary.transformers,
    encoder_pretrained: Annotated[
        str | None, typer.Option(help="Tag of open_clip's weights.", show_default="none", rich_help_panel=EMBEDDING)
    ] = None,
    first_stage: Annotated[
        Path | None,
        typer.Option(
            help="Run of an autoencoder, or a folder of diffusers.",
            show_default="none: latents needs it",
            rich_help_panel=LATENTS,
        ),
    ] = None,
    flip_pair: Annotated[
        bool,
        typer.Option(
            "--flip-pair/--no-flip-pair", help="Also store the latent of the mirrored image.", rich_help_panel=LATENTS
        ),
    ] = False,
    half: Annotated[
        bool, typer.Option("--half/--no-half", help="Store float16 instead of float32.", rich_help_panel=LATENTS)
    ] = True,
    device: Annotated[
        Device, typer.Option(help="Device of the encoder or first stage.", rich_help_panel=EMBEDDING)
    ] = Device.auto,
) -> None:
    """Turn a data set into WebDataset shards with an index."""
    from diffcli.config import UserError
    from diffcli.data.set_folder import check_own
    from diffcli.prep.kinds import require_source

    shown = value_range(levels)
    if kind == "shards":
        out, source = require_set(embed, source, out), None
    else:
        require_source(kind, source)
    if out is None:
        raise UserError("prep-data needs --out", "type --out DIR, a folder for the shards")
    if not resume and out.is_dir() and any(out.iterdir()):
        raise UserError(
            f"--no-resume: {out} is not empty", "leave --no-resume out to go on there, or give an empty --out"
        )
    if kind != "shards":
        check_own(out)
    from diffcli.cli.console import watch_preparation
    from diffcli.prep.items import Download, Picked, SourceOptions
    from diffcli.prep.prepare import prepare

    options = SourceOptions(
        table=table,
        image_col=image_col,
        caption_col=caption_col,
        url_col=url_col,
        field=field,
        classes=classes.value,
        range=shown,
        picked=Picked(min_size=min_size, encode=encode.value, quality=quality, obey_opt_out=obey_opt_out),
        latents=encoding(kind, source, first_stage, size, half, flip_pair, device),
        download=Download(distributor=distributor.value, threads=threads, timeout=timeout, retries=retries),
    )
    reports: Iterator[PrepReport] = iter(())
    then = embedder(embed, encoder, encoder_library, encoder_pretrained, device, workers)
    if kind != "shards":
        reports = prepare(kind, source, out, size=size, workers=workers, limit=limit, strict=strict, options=options)
    print(watch_preparation(then(reports, out)))


def value_range(text: str | None) -> "Range | None":
    """The two numbers of --range. Raises UserError where they are none."""
    if text is None:
        return None
    from diffcli.config import UserError
    from diffcli.data.modes import Range

    try:
        low, high = map(float, text.split(","))
        if not low < high < float("inf") or low == float("-inf"):
            raise ValueError
    except ValueError:
        hint = "type two numbers, the lower one first: --range 0,4095"
        raise UserError(f"--range is '{text}', not LOW,HIGH", hint) from None
    return Range(low, high)


def encoding(
    kind: str,
    source: Path | None,
    first_stage: Path | None,
    size: int | None,
    half: bool,
    flip_pair: bool,
    device: Device,
) -> "LatentOptions | None":
    """The options of --first-stage and its group; None if they were not given and the kind does not need them."""
    from diffcli.config import UserError

    if kind != "latents":
        given = {"--first-stage": first_stage, "--flip-pair": flip_pair or None, "--no-half": None if half else True}
        for flag, value in given.items():
            if value is not None:
                raise UserError(f"{flag} has no effect in prep-data {kind}", "leave it out; it is for latents")
        return None
    if first_stage is None:
        return None
    from diffcli.engine.latent_sets import latent_options

    assert source is not None
    return latent_options(source, first_stage, device.value, size, half, flip_pair)


def embedder(
    embed: EmbedChoice | None,
    model: str | None,
    library: EncoderLibrary,
    pretrained: str | None,
    device: Device,
    workers: int,
) -> Callable[["Iterator[PrepReport]", Path], "Iterator[PrepReport]"]:
    """A function that embeds a prepared set as --embed says; it does nothing without --embed."""
    from diffcli.config import UserError

    if embed is None:
        if model is not None:
            raise UserError(f"--encoder {model}: nothing is embedded", "add --embed clip, clip-tokens or t5")
        return lambda reports, out: reports
    if model is None:
        known = "t5-base" if embed == EmbedChoice.t5 else "openai/clip-vit-large-patch14"
        raise UserError(f"--embed {embed.value} needs an encoder", f"--encoder {known}, or the folder of another")
    from diffcli.engine.distributed import pick_device
    from diffcli.engine.records.model_encoders import encoder_of
    from diffcli.prep import embedding

    where, own = pick_device(device.value), encoder_of(Path(model), embedding.kind_of(embed.value))
    built = embedding.named(embed.value, model, library.value, pretrained) if own is None else embedding.loaded(own)
    return lambda reports, out: embedding.after(reports, out, embed.value, built, where, workers)


def require_set(embed: EmbedChoice | None, source: Path | None, out: Path | None) -> Path:
    """The prepared set that `prep-data shards` embeds, named by SOURCE or --out."""
    from diffcli.config import UserError

    if embed is None:
        raise UserError(
            "prep-data shards: the set is prepared already, and no --embed is given", "add --embed clip --encoder MODEL"
        )
    found = out or source
    if found is None or (out is not None and source is not None and out.resolve() != source.resolve()):
        raise UserError(
            "prep-data shards: embeds one set, where it lies", "type prep-data shards --out SET --embed ..."
        )
    return found
