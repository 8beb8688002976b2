"""What `sample` and `gif` do in place of drawing by the options that are typed.

With --image and a model that tells masks `sample` segments the images. With --like both draw again what the record of an output
says, by the command that the record holds, with its paths where they were.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffcli.cli import session
from diffcli.cli.options import Device

if TYPE_CHECKING:
    from diffcli.engine.distributed import Group
    from diffcli.engine.draw.sample import SampleOptions

FREE = {"like", "out", "device", "nproc", "batch_size"}  # what does not change the images, and may be given anew
PATHS = ("prompts", "mask", "base")  # options that are a path,
LISTS = ("image", "then", "control", "embedding")  # several,
NAMED = ("field",)  # or NAME=PATH

Like = Annotated[
    Path | None,
    typer.Option(
        "--like",
        metavar="FILE",
        help="Draw again what the record of an output of this command says, to the bit; with --out, --device, --nproc and "
        "--batch-size alone.",
        show_default="none",
    ),
]


def segments(ckpt: Path, options: "SampleOptions", ensemble: int | None, then: Sequence[Path] | None = None) -> bool:
    """Whether `sample` segments the given images with the model at `ckpt`.

    Raises UserError for --ensemble if it does not, and for --then if it does.
    """
    from diffcli.config import UserError
    from diffcli.engine.draw.masks.segmenting import tells_masks

    segmenting = bool(options.images or ensemble is not None) and tells_masks(ckpt)
    if segmenting and then:
        raise UserError(f"--then {then[0]}: masks of {ckpt} are no images for a next stage", "leave --then out")
    if ensemble is not None and not (segmenting and options.images):
        if segmenting:
            raise UserError(
                f"--ensemble {ensemble}: there is no image to segment", "give one with --image FILE or a folder"
            )
        raise UserError(f"--ensemble {ensemble}: {ckpt} generates no masks of images", "leave --ensemble out")
    return segmenting


def segment(
    ckpt: Path, out: Path, options: "SampleOptions", ensemble: int | None, ema: bool, device: Device, nproc: int
) -> None:
    """Writes mask, probability, variance and overlay of each image."""
    from diffcli.cli.console import say, track
    from diffcli.engine.distributed import Launch
    from diffcli.engine.draw.masks import mask_files
    from diffcli.engine.draw.masks.segmenting import check_options, probabilities, segmenter

    check_options(options)

    def work(group: "Group") -> None:
        model = session.open_model(ckpt, options, group, ema)
        pictures = mask_files.read_pictures(model, [Path(str(path)) for path in options.images])
        mask_files.check_folder(out, pictures.names)
        plain = options.model_copy(update={"images": ()})
        seg = segmenter(model, plain, pictures.value, len(pictures.names), ensemble)
        batches = probabilities(seg, options.batch_size, group)
        if not group.leads:
            list(batches)
            return
        for note in pictures.notes:
            say(f"note:  {note}")
        mask_files.write_masks(
            out, seg, pictures, track(batches, -(-seg.n // seg.at_once(options.batch_size)), "segmenting")
        )
        print(out)

    session.in_group(work, device, Launch(nproc))


def repeat(context: typer.Context, like: Path) -> None:
    """Runs a command with the options of a record that it wrote, but for those of FREE that are given. Raises UserError."""
    import warnings

    from diffcli.config import UserError
    from diffcli.engine.records.record_files import read_record

    given = {name for name in context.params if context.get_parameter_source(name).name == "COMMANDLINE"}  # type: ignore[union-attr]
    other = [param for param in context.command.params if param.name in given - FREE]
    if other:
        flag = _typed(other[0], context.params)
        raise UserError(f"--like {like} with {flag}: the record says all that makes the images", f"leave out {flag}")
    record = read_record(like)
    from diffcli.engine.records import output_records as records

    words = records.repeated(like, record, str(context.info_name))
    for note in records.differences(record):
        warnings.warn(note, stacklevel=1)
    if not any(word.partition("=")[0] == "--like" for word in words):
        words += ["--precision", str(record.get("precision", "auto")).split()[0]]
    again = context.command.make_context(context.info_name, words, parent=context.parent)
    folder, params = Path(record.get("folder", ".")), again.params
    if params.get("like") is not None:  # a repetition of a repetition
        params["like"] = folder / str(params["like"])
    else:
        _placed(params, folder)
        first, *later = [records.same_weights(like, stage, folder) for stage in records.stages(record)]
        params["ckpt"], params["named"], params["then"] = first, None, later or None
    params |= {name: context.params[name] for name in {*given, "out"} - {"like"}}
    if Path(params["out"]).resolve() == records.output_of(like).resolve():
        raise UserError(f"--out {params['out']}: would overwrite what {like} tells of", "give another --out")
    with again:
        again.command.invoke(again)


def _typed(param: Any, values: Mapping[str, Any]) -> str:
    """A parameter as it is typed: its flag, that which switches it off where it is off, or the value of an argument."""
    value = values[param.name]
    if param.param_type_name == "argument":
        return str(value)
    return str(param.secondary_opts[0] if value is False and param.secondary_opts else param.opts[0])


def _placed(params: dict[str, Any], folder: Path) -> None:
    """Resolves the paths among options against the folder in which they were typed."""
    for name in PATHS:
        if params[name] is not None:
            params[name] = folder / str(params[name])
    for name in LISTS:
        params[name] = [folder / str(path) for path in params[name] or ()] or None
    if params["prior"] not in (None, "none"):
        params["prior"] = str(folder / params["prior"])
    from diffcli.lookup.lora_paths import lora_text, lora_wish

    params["lora"] = [lora_text(lora_wish(text), folder) for text in params["lora"] or ()] or None
    for name in NAMED:
        pairs = [item.partition("=") for item in params[name] or ()]
        params[name] = [f"{key}={folder / path}" for key, _, path in pairs] or None
