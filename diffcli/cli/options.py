"""The options that several commands share, each with its help; imports no torch."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from diffcli.cli.parsing.choices import classes, samplers
from diffcli.cli.parsing.values import finite, share


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class PrecisionChoice(StrEnum):
    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class ShowChoice(StrEnum):
    x = "x"
    x0 = "x0"


def the_checkpoint(command: str, named: Path | None, ckpt: Path | None) -> Path:
    """The checkpoint, given without a flag or with --ckpt. Raises UserError if both or neither are given."""
    from diffcli.config import UserError

    if named is not None and ckpt is not None:
        raise UserError(f"{named} and --ckpt {ckpt}: both name a checkpoint", "give one of them")
    chosen = named or ckpt
    if chosen is None:
        raise UserError(
            f"{command}: no checkpoint is named, with --ckpt or without it",
            f"type for example diffcli {command} RUN; see `diffcli {command} --help`",
        )
    return chosen


PICTURES = "Pictures as conditions"  # a group of options in the help

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key; repeatable.", show_default="nothing"),
]
ResumeSet = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override one train.* key, or the place of moved data or of a moved encoder: data.root, data.shards, "
        "task.conditioners.0.encoder.model; repeatable.",
        show_default="nothing",
    ),
]
SamplerSet = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override one sampler.* or guide.* key, or the place of a moved encoder: task.conditioners.0.encoder.model; "
        "repeatable.",
        show_default="nothing",
    ),
]
ScoreSet = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override an option of a metric, as metrics.kid.subset_size=500, one sampler.* or guide.* key, or the place "
        "of a moved encoder; repeatable.",
        show_default="nothing",
    ),
]
DeviceOption = Annotated[Device, typer.Option(help="Device to compute on; auto uses a GPU if there is one.")]
PrecisionOption = Annotated[
    PrecisionChoice,
    typer.Option("--precision", help="Precision of the networks; auto is bf16 where that is fast, else fp32."),
]
Compile = Annotated[bool, typer.Option("--compile/--no-compile", help="Compile the network first, for many images.")]
Nproc = Annotated[int, typer.Option(min=1, help="Worker processes on this machine, started through torchrun.")]
Named = Annotated[
    Path | None, typer.Argument(metavar="[CKPT]", help="The same as --ckpt, without the flag.", show_default=False)
]
Ckpt = Annotated[
    Path | None,
    typer.Option(
        "--ckpt", help="Run directory, checkpoint folder or ema.safetensors file.", show_default="the [CKPT] before"
    ),
]
N = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of images in all.",
        show_default="16; one a class with --class all, one a --prompt, picture or listed seed",
    ),
]
FewN = Annotated[
    int | None,
    typer.Option(
        "--n",
        min=1,
        help="Images side by side.",
        show_default="1; one a class with --class all, one a --prompt, picture or listed seed",
    ),
]
Prompt = Annotated[
    list[str] | None,
    typer.Option("--prompt", metavar="TEXT", help="What to draw, in words; repeatable.", show_default="none"),
]
NegativePrompt = Annotated[
    str | None,
    typer.Option(
        "--negative-prompt",
        metavar="TEXT",
        help="Text that guidance leads away from, for all images.",
        show_default="nothing",
    ),
]
PriorOption = Annotated[
    str | None,
    typer.Option(
        "--prior",
        metavar="RUN|none",
        help="For models of image embeddings: the prior that makes them from texts; none uses the embeddings of the texts.",
        show_default="the run's",
    ),
]
PromptsFile = Annotated[
    Path | None, typer.Option(help="File with further prompts, UTF-8, one on each line.", show_default="none")
]
Class = Annotated[
    str | None,
    typer.Option("--class", help="ID, NAME, all (in turn) or random.", show_default="all", autocompletion=classes),
]
FirstSeed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the first image; image i has seed + i.")]
Seed = Annotated[
    str,
    typer.Option(
        "--seed",
        metavar="N|LIST",
        help="Seed of the first image; image i has seed + i. Or one seed an image: 1,5,9 or 0-15 or 0-3,7.",
    ),
]
SamplerOption = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        autocompletion=samplers,
        help="ddpm, ddim, plms, ab4, euler, euler_ancestral, heun, edm_heun, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, unipc or ode.",
        show_default="the run's",
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="HxW|N",
        help="Height and width in pixels, or the edge of a square; network and first stage need certain multiples.",
        show_default="the run's",
    ),
]
Steps = Annotated[int | None, typer.Option(min=1, help="Sampling steps.", show_default="the run's")]
Eta = Annotated[
    float | None,
    typer.Option(
        "--ddim-eta",
        min=0,
        max=1,
        help="0 deterministic, 1 DDPM; implies ddim.",
        show_default="the run's",
        callback=finite,
    ),
]
Guidance = Annotated[
    float | None,
    typer.Option(help="null + S (cond - null): 1 is off, 0 unconditional.", show_default="the run's", callback=finite),
]
ImageFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--image",
        metavar="FILE|DIR",
        help="The condition of a model that reads one picture, such as an upscaler. For others: start from it instead of "
        "noise, restore it, or reconstruct it with a first stage. A folder stands for all of its pictures; repeatable.",
        show_default="noise",
    ),
]
FieldFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--field",
        metavar="NAME=FILE|DIR",
        help="Picture for the condition of this name, for models with several; repeatable.",
        show_default="none",
        rich_help_panel=PICTURES,
    ),
]
Then = Annotated[
    list[Path] | None,
    typer.Option(
        "--then",
        metavar="CKPT",
        help="Next stage of a cascade: each image becomes the picture that conditions this model; repeatable.",
        show_default="none",
        rich_help_panel=PICTURES,
    ),
]
Augment = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Level of the noise on the picture that an upscaler reads, if it was trained with such noise.",
        show_default="0",
        callback=finite,
        rich_help_panel=PICTURES,
    ),
]
Tile = Annotated[
    int | None,
    typer.Option(
        "--tile",
        min=1,
        help="Edge in pixels of the tiles in which a large image is predicted.",
        show_default="the trained size, for larger images that are drawn from a picture",
        rich_help_panel=PICTURES,
    ),
]
Overlap = Annotated[
    int | None,
    typer.Option(
        "--overlap",
        min=0,
        help="Overlap of neighbouring tiles in pixels, at least.",
        show_default="a quarter of a tile",
        rich_help_panel=PICTURES,
    ),
]
ExactTiles = Annotated[
    bool,
    typer.Option(
        "--exact-tiles/--no-exact-tiles",
        help="Tiles with the result of the whole image, by one more pass over it for each norm of the network: many times "
        "slower. Not for networks with attention between positions.",
        rich_help_panel=PICTURES,
    ),
]
NoTile = Annotated[
    bool,
    typer.Option(
        "--no-tile/--tiles",
        help="Compute large images whole: their memory grows with them.",
        rich_help_panel=PICTURES,
    ),
]
Mask = Annotated[
    Path | None,
    typer.Option(help="Image that is white where --image is to be regenerated; the rest is kept.", show_default="none"),
]
Strength = Annotated[
    float | None,
    typer.Option(
        help="Time in (0, 1] to which --image is noised: near 0 keeps it, 1 is pure noise.",
        show_default="0.6; with --mask 1",
        callback=share,
    ),
]
Compare = Annotated[
    bool,
    typer.Option(
        "--compare/--no-compare",
        help="For a first stage or --restore: show each --image left of its result, with --degrade the original on the right.",
    ),
]
Restore = Annotated[
    str | None,
    typer.Option(
        "--restore",
        metavar="NAME[:OPTION]",
        help="Restore what --image has lost: sr2, sr4 (resolution; :bicubic, :lanczos, :bilinear or :box), colour, blur "
        "(:SIGMA in pixels, 1.5) or mask (the pixels where --mask is white).",
        show_default="none",
    ),
]
Project = Annotated[
    bool,
    typer.Option(
        "--project/--no-project",
        help="For an upscaler: images that give exactly the input picture when they are made smaller again.",
    ),
]
Degrade = Annotated[
    bool,
    typer.Option("--degrade/--no-degrade", help="First degrade --image by the operator of --restore, for a try."),
]
Interpolate = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="Images from --seed to the next seed, from one of two seeds to the other, or from one --image to a second.",
        show_default="none",
    ),
]
Ensemble = Annotated[
    int | None,
    typer.Option(
        "--ensemble",
        min=1,
        help="Masks drawn for each image, an odd number: their mean is the probability.",
        show_default="5; 1 for a segmentation model",
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images computed at once; does not change the result.")]
UseEma = Annotated[bool, typer.Option("--ema/--no-ema", help="Use the averaged weights.")]
Out = Annotated[Path, typer.Option(help="Where to write.")]
