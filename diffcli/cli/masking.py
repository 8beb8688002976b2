"""What `sample` does with --image and a model that tells masks: it segments the images."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffcli.cli import session
from diffcli.cli.options import Device

if TYPE_CHECKING:
    from diffcli.engine.distributed import Group
    from diffcli.engine.draw.sample import SampleOptions


def segments(ckpt: Path, options: "SampleOptions", ensemble: int | None, then: Sequence[Path] | None = None) -> bool:
    """Whether the model at `ckpt` is to segment the images of the options.

    Raises UserError for --ensemble where it is not, and for a next stage where it is.
    """
    from diffcli.config import UserError
    from diffcli.engine.draw.masks.segmenting import tells_masks

    told = bool(options.images or ensemble is not None) and tells_masks(ckpt)
    if told and then:
        raise UserError(f"--then {then[0]}: masks of {ckpt} are no images for a next stage", "leave --then out")
    if ensemble is not None and not (told and options.images):
        if told:
            raise UserError(
                f"--ensemble {ensemble}: there is no image to segment", "give one with --image FILE or a folder"
            )
        raise UserError(f"--ensemble {ensemble}: {ckpt} tells no masks of images", "leave --ensemble out")
    return told


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
        told = probabilities(seg, options.batch_size, group)
        if not group.leads:
            list(told)
            return
        for note in pictures.notes:
            say(f"note:  {note}")
        mask_files.write_masks(
            out, seg, pictures, track(told, -(-seg.n // seg.at_once(options.batch_size)), "segmenting")
        )
        print(out)

    session.in_group(work, device, Launch(nproc))
