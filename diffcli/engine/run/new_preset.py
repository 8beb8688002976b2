"""A commented preset for a user's own pictures: `diffcli presets new NAME --data DIR`.

Size, channels, classes and captions are those of the data. The other values suit a first try on a CPU: small images, squares
of pixels as positions of the network, the image itself as target, mostly high noise levels, a high rate that falls to almost 0,
and condition dropout for guidance.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple

import numpy as np
import torch
import yaml

from diffcli import preset as presets
from diffcli.config import UserError, quoted
from diffcli.data.datasets import Folder, at_root
from diffcli.data.description import describe
from diffcli.data.images import FileImages
from diffcli.data.pixels import open_image
from diffcli.data.prepared import Shards
from diffcli.lookup import preset_files
from diffcli.networks.unet import UNetConfig

NewTask = Literal["diffusion", "classifier"]
LONGEST, LONGEST_OF_FEW = 64, 32  # pixels along the longer side of the images that a new model makes
STEP = 8  # pixels; sides are multiples of this where images are made smaller
ALIKE = 0.9  # share of the images that must have one shape before the model's images get it
LIKENESS = 0.05  # of the logarithm of two aspect ratios that count as one
LOOKED_AT = 64  # images that sizes and colours are taken from
FEW = 1000  # images; fewer get 600 steps, more get 3000
GRID = 16  # positions of the network along the longer side, at most, where squares of pixels can be that
LEVELS = ((1, 2), (1,))  # multiples of the width, the first that leaves 4 positions along the shorter side
LEAST = 4
COLOUR, MIN_CLASSES, NAMED = 3, 2, 8  # channels; classes that can be told apart; class names in a comment
GREY = 4  # levels that the channels of a grey pixel may differ by: JPEG
TOKENS = 16  # the length of captions is a multiple of this
LETTERS, MOST_LETTERS = 48, 256  # of a caption that a new model reads: at least, and at most


class Findings(NamedTuple):
    """Properties of the pictures. shape: (C, H, W) for a model of them. longest: bytes of a caption; None: no captions."""

    place: str
    kind: Literal["folder", "shards"]
    number: int
    shape: tuple[int, int, int]
    classes: tuple[str, ...] | None
    longest: int | None
    lines: tuple[str, ...]
    notes: tuple[str, ...] = ()


def write_new(name: str, data: Path, task: NewTask) -> tuple[Path, Findings]:
    """Writes NAME.yaml, a preset that fits the pictures in `data`; returns its path and what was found.

    Raises UserError where the name is none, the file is there already, or the data do not fit the task.
    """
    return write(name, data, lambda name, found: (written(name, found, task), found))


def write(name: str, data: Path, make: Callable[[str, Findings], tuple[str, Findings]]) -> tuple[Path, Findings]:
    """Writes NAME.yaml; make: the preset out of its name and what the pictures in `data` are, which it may say otherwise.

    Raises UserError as `write_new` does, before it writes.
    """
    name, target = preset_files.new_file(name)
    text, found = make(name, look_at(data))
    presets.build(yaml.safe_load(text), str(target))
    target.write_text(text, encoding="utf-8")
    return target, found


def look_at(data: Path) -> Findings:
    """Inspects the pictures in a folder or prepared set and decodes 64 of them. Raises UserError if there are none."""
    place = at_root(Folder(size=LONGEST, in_memory=False, broken="leave_out"), data)
    assert isinstance(place, Folder | Shards)
    images = place.model_copy(update={"in_memory": False}).build("train")
    if not isinstance(images, FileImages):
        raise UserError(
            f"--data {data}: holds latents, not pictures", "see `diffcli presets list` for presets of latents"
        )
    rows = sorted({i * len(images) // LOOKED_AT for i in range(LOOKED_AT)})
    sides, grey = [], True
    for row in rows:
        picture = open_image(images.files.read(row), images.files.name(row))
        sides.append((picture.height, picture.width))
        grey = grey and (picture.mode == "L" or is_grey(np.asarray(picture)))
    longest = None
    if "text" in images.columns:
        texts = images.columns["text"].read(torch.tensor(rows), None)
        words = [
            str(text) for text in texts if any(map(str.isalpha, str(text)))
        ]  # text files beside images may also be boxes or labels
        longest = max((len(text.encode()) for text in words), default=None) if len(words) > len(rows) / 2 else None
    shape = (1 if grey else 3, *fitting(sides, LONGEST_OF_FEW if len(images) < FEW else LONGEST))
    description = describe(images, place=data).model_copy(update={"shape": shape})
    return Findings(
        str(data),
        place.kind,
        len(images),
        shape,
        images.classes,
        longest,
        tuple(description.lines),
        tuple(description.remarks),
    )


def fitting(sides: Sequence[tuple[int, int]], longest: int) -> tuple[int, int]:
    """(height, width) for images of these sides: their own if all are equal and small, else that of the most common aspect ratio.

    The longer side is `longest` pixels at most, and both are multiples of 8 where images are made smaller; nothing is enlarged.
    """
    if len(set(sides)) == 1 and max(sides[0]) <= longest:
        return sides[0]
    ratios = [math.log(width / height) for height, width in sides]
    middle = median(ratios)
    shared = sum(abs(ratio - middle) < LIKENESS for ratio in ratios) >= ALIKE * len(ratios)
    ratio = math.exp(middle) if shared else 1.0
    shorter = min(median(min(pair) for pair in sides), longest / max(ratio, 1 / ratio))
    height, width = shorter * max(1, 1 / ratio), shorter * max(1, ratio)
    return rounded(height), rounded(width)


def rounded(side: float) -> int:
    """A side in whole steps; less than one step stays as it is."""
    return round(side) if side < STEP else STEP * round(side / STEP)


def is_grey(pixels: np.ndarray) -> bool:
    """Whether no pixel of uint8 (H, W, 3) has a colour."""
    return int(np.ptp(pixels, axis=-1).max()) <= GREY


def written(name: str, found: Findings, task: NewTask) -> str:
    """The preset as commented YAML. Raises UserError where the data do not fit the task."""
    flip = mirrored(found)
    if task == "classifier":
        return heading(name, found, f"diffcli fid A B --features runs/{name}", flip) + classifier_task(name, found)
    use = f"diffcli sample runs/{name}" + (" --prompt TEXT" if found.longest is not None else "")
    return heading(name, found, use, flip and found.number >= FEW) + diffusion_task(name, found)


def mirrored(found: Findings) -> bool:
    """Whether pictures may be mirrored: in colour and without captions they show things, as far as one can tell."""
    return found.shape[0] == COLOUR and found.longest is None


def heading(name: str, found: Findings, use: str, flip: bool) -> str:
    """The first comments of the preset, and its data. use: the command for a trained run. flip: whether pictures are mirrored."""
    height, width = found.shape[1:]
    size = str(height) if height == width else f"[{height}, {width}]"
    what = f"{found.number:,} picture{'s' * (found.number != 1)}" + (
        f" of {len(found.classes)} classes" if found.classes else ""
    )
    lines = [
        f"# {name} - {what} in {commented(found.place)}, as images of {height}x{width}",
        f"# Train: diffcli train --preset {quoted(name)}.yaml   Then: {use}",
        f"# After a change, `diffcli presets check {quoted(name)}.yaml` says all that is wrong;"
        " `diffcli presets schema` explains every key.",
        f"name: {scalar(name)}  # the run is written to runs/{name}",
        "data:",
        f"  kind: {found.kind}",
        f"  root: {scalar(found.place)}",
        f"  size: {size}  # pixels; larger pictures are made smaller and cropped. Twice the size takes four times as long",
        f"  channels: {found.shape[0]}  # 3: colour, 1: grey",
        f"  flip: {str(flip).lower()}  # true: half of them are mirrored, for long runs. Not for letters or words like 'left'",
    ]
    if found.kind == "folder":
        lines.append("  broken: leave_out  # files that cannot be decoded are left out; refuse: they stop the run")
    return "\n".join(lines) + "\n"


def diffusion_task(name: str, found: Findings) -> str:
    """The rest of the preset of a model that draws pictures, conditioned on classes or captions if the data have them."""
    text = found.longest is not None
    what = "text" if text else "class"
    classes = 0 if text or found.classes is None or len(found.classes) < MIN_CLASSES else len(found.classes)
    fold = folding(found.shape[1:])
    grid = [side // fold for side in found.shape[1:]]
    mult = next(m for m in LEVELS if len(m) == 1 or min(grid) >> (len(m) - 1) >= LEAST)
    sizes = UNetConfig(mult=mult).sizes(max(grid))
    steps = steps_for(found.number)
    middle = (
        "[res, cross_attention, res]  # cross_attention reads the words of the text"
        if text
        else "[res, attention, res]"
    )
    lines = [
        "task:",
        "  kind: diffusion",
        "  target: x0  # what the network predicts: the image itself, which after few steps is soft and not grainy",
        "  schedule: {kind: cosine, steps: 1000}  # how the noise grows; cosine keeps the image visible for long",
        "  network:",
        "    kind: unet",
        "    width: 64  # channels; 128 draws finer pictures and takes about three times as long",
        f"    mult: {list(mult)}  # channels at the sizes {', '.join(map(str, sizes))}, as multiples of width",
        "    blocks: [res, attention]",
        f"    middle: {middle}",
        f"    attend_at: [{sizes[-1]}]  # the size at which distant parts of an image see each other",
        "    head_dim: 32  # channels of an attention head",
        f"    fold: {fold}  # {fold}x{fold} pixels are one position: larger is faster and coarser",
        "    resample: conv",
    ]
    if text:
        wanted = min(MOST_LETTERS, max(LETTERS, -(-int(found.longest * 1.25 + 2) // TOKENS) * TOKENS))  # type: ignore[operator]
        lines.append(
            f"  conditioners: [{{kind: text, width: 64, depth: 2, heads: 4, length: {wanted}, neighbours: 7}}]"
            f"  # reads {wanted} bytes of a caption"
        )
    elif classes:
        lines.append(
            f"  conditioners: [{{kind: class, num_classes: {classes}, dim: 64}}]  # {shown(found.classes or ())}"
        )
    if text or classes:
        lines.append("  drop_condition: 0.1  # share of the images trained without it, which guidance needs")
    lines += [
        "  times: {kind: logit_normal, mean: 1, stratified: true}  # mostly much noise, where shapes are decided",
        *training(steps, 16, "2e-3", f"images are in runs/{name}/previews", 50, preview=300),
        "  previews: 16  # images in such a grid",
        "sampler: {kind: dpmpp_2m, steps: 20}",
    ]
    if text or classes:
        lines.append(f"guidance: 2  # how closely images follow the {what}: 1 not more than learned, 4 strongly")
    return "\n".join(lines) + "\n"


def folding(sides: Sequence[int]) -> int:
    """Pixels along the edge of a position of the network: the fewest that leave 16 positions or fewer, if both sides allow it."""
    fold = 1
    while max(sides) > GRID * fold and all(side % (2 * fold) == 0 for side in sides):
        fold *= 2
    return fold


def classifier_task(name: str, found: Findings) -> str:
    """The rest of the preset of a classifier. Raises UserError if the data have fewer than two classes."""
    if found.classes is None or len(found.classes) < MIN_CLASSES:
        raise UserError(
            f"--task classifier: {found.place} has {'one class' if found.classes else 'no classes'}",
            "put the pictures of each class into a folder of its own, at least two; or leave --task out",
        )
    lines = [
        "task:",
        "  kind: classifier",
        f"  num_classes: {len(found.classes)}  # {shown(found.classes)}",
        "  label_smoothing: 0.1  # share of the label that is spread over all classes: it does not learn to be too sure",
        *training(
            steps_for(found.number), 16, "1e-3", f"loss and accuracy are in runs/{name}/log.jsonl", 10, preview=0
        ),
    ]
    return "\n".join(lines) + "\n"


def training(steps: int, batch: int, rate: str, look: str, log: int, preview: int) -> list[str]:
    """The section `train`. look: where one sees how it goes; log, preview: steps between log lines and grids of images."""
    return [
        "train:",
        f"  steps: {steps}  # more make better pictures: `diffcli resume RUN --steps N` goes on",
        f"  batch_size: {batch}  # images in a step; 64 or more on a GPU",
        f"  optimizer: {{kind: adamw, lr: {rate}}}  # lr, the learning rate: lower it where the loss jumps",
        "  curve: {kind: cosine, warmup: 30, floor: 0.02}  # the rate rises for 30 steps, then falls to 2%",
        "  ema: 0.99  # images are drawn with averaged weights; 0.999 and more for runs of 10,000 steps and more",
        f"  every: {{log: {log}, preview: {preview}, save: 200}}  # steps; {look}",
    ]


def steps_for(count: int) -> int:
    """Updates of a first run on so many pictures."""
    return 600 if count < FEW else 3000


def shown(classes: Sequence[str]) -> str:
    """The first names of classes, for a comment."""
    return commented(", ".join(classes[:NAMED])) + ", ..." * (len(classes) > NAMED)


def scalar(text: str) -> str:
    """A text as YAML reads it back: in quotes where it looks like a number, a switch or null."""
    return yaml.safe_dump(text, default_flow_style=True, width=10**6).removesuffix("...\n").strip()


def commented(text: str) -> str:
    """A text as a comment may hold it: on one line, without control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
