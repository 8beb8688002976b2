"""Checks from the records of checkpoints that the stages of a cascade fit together, before anything is drawn."""

from collections.abc import Sequence
from pathlib import Path

from diffcli.config import UserError, quoted
from diffcli.engine.draw.conditions import enlargement
from diffcli.engine.draw.guides import class_count
from diffcli.engine.draw.pictured.augmenting import augmenting, check_augment
from diffcli.engine.draw.pictured.following import pictured
from diffcli.engine.draw.prompts import prompted, unconditional
from diffcli.engine.draw.restore.projecting import choose_projection
from diffcli.engine.draw.sample import ImageRequest, SampleOptions
from diffcli.engine.draw.translation import image_conditioners
from diffcli.engine.model import Model, without_weights
from diffcli.fields import PICTURES, listed
from diffcli.tasks.diffusion import DiffusionTask
from diffcli.tasks.super_resolution import SuperResolutionTask

Shape = tuple[int, ...]  # of an image: channels, height and width


def check_cascade(req: ImageRequest, then: Sequence[Path], options: SampleOptions) -> None:
    """Raises UserError if a checkpoint of --then does not fit the one before; the first one is that of the request."""
    if not then:
        return
    check_first(req, then[0], options)
    model, shape = req.model, (req.shape[0], *req.shape[-2:])  # a clip is drawn frame by frame
    augmented = bool(augmenting(model.task))
    for path in then:
        try:
            following = without_weights(path)
        except UserError as error:
            raise UserError(f"--then {path}: {error.problem}", error.hint) from None
        field = check_kind(path, model, following)
        shape = next_shape(path, model, shape, following, field, sized=options.tile is not None or options.whole)
        check_words(path, req, following, options)
        if options.project:
            choose_projection(following)
        if augmenting(following.task):
            check_augment(following, options.augment)
            augmented = True
        model = following
    if options.augment is not None and not augmented:
        check_augment(model, options.augment)


def check_first(req: ImageRequest, then: Path, options: SampleOptions) -> None:
    """Raises UserError if the images of the first stage cannot condition a next one."""
    if options.compare:
        raise UserError(f"--compare with --then {then}: the next stage would draw both pictures", "leave --compare out")
    if options.interpolate is not None:
        problem = (
            f"--interpolate {options.interpolate} with --then {then}: the next stage has another noise for each image"
        )
        raise UserError(problem, "leave --interpolate out")
    if len({part.shape for part, _ in req.parts}) > 1:
        problem = f"--then {then}: the images of {req.model.path} are of several sizes"
        raise UserError(problem, "give pictures of one size")


def check_kind(path: Path, model: Model, following: Model) -> str:
    """The picture that conditions the next stage. Raises UserError if there is none, or if the stage draws no images."""
    if isinstance(following.task, SuperResolutionTask):
        raise UserError(
            f"--then {path}: was trained as {following.preset.task.noun} in one step, which is no stage",
            f"give it the saved images: diffcli sample --ckpt {quoted(path)} --image FOLDER",
        )
    if not isinstance(following.task, DiffusionTask):
        raise UserError(
            f"--then {path}: was trained as {following.preset.task.noun}",
            "give a model that is conditioned on a picture",
        )
    if following.task.spec.kind != "image":
        drawn = f"the field '{following.task.field}' of kind {following.task.spec.kind}, no images"
        raise UserError(f"--then {path}: draws {drawn}", "give it the saved images: --ckpt of it with --image FOLDER")
    if isinstance(model.task, DiffusionTask) and model.task.spec.kind not in PICTURES:
        drawn = f"the field '{model.task.field}' of kind {model.task.spec.kind}, no images"
        raise UserError(f"--then {path}: {model.path} draws {drawn}", "leave --then out")
    fields = pictured(following)
    if len(fields) != 1 or following.task.reads[fields[0]].kind != "image":
        has = f"is conditioned on {', '.join(fields)}" if fields else "is conditioned on no picture"
        raise UserError(f"--then {path}: {has}", "give a model that is conditioned on one image, such as an upscaler")
    return fields[0]


def next_shape(path: Path, model: Model, shape: Shape, following: Model, field: str, sized: bool) -> Shape:
    """The shape of the images that the next stage makes of those of `shape`. Raises UserError where it reads others.

    sized: whether the user has said how pictures of another size than that of training are drawn.
    """
    read, factor = following.task.reads[field].shape, enlargement(following, field)
    own = following.preset.data.shape
    if read[0] is not None and read[0] != shape[0]:
        raise UserError(
            f"--then {path}: reads '{field}' of {read[0]} channels, but the images of {model.path} have {shape[0]}",
            f"give stages of one number of channels: data.channels={shape[0]}",
        )
    sides = [side or other // factor for side, other in zip(read[1:], own[1:], strict=True)]
    if list(shape[1:]) != sides and not (factor > 1 and sized):
        again = f", or say how to draw larger ones: --tile {min(own[1:])}" if factor > 1 else ""
        raise UserError(
            f"--then {path}: was trained on '{field}' of {listed(tuple(sides))} pixels (HxW), but the images of {model.path} are "
            f"{listed(shape[1:])}",
            f"give a stage that follows, draw images of its size before, --size {listed(tuple(sides))}{again}",
        )
    return own.channels, shape[1] * factor, shape[2] * factor


def reads_classes(model: Model) -> bool:
    """Whether it is conditioned on classes."""
    return "label" in model.task.reads


def check_words(path: Path, req: ImageRequest, following: Model, options: SampleOptions) -> None:
    """Raises UserError if the next stage needs classes or prompts that are missing."""
    if unconditional(following.preset.guidance, following.preset.guide):
        return
    if reads_classes(following):
        check_named_alike(path, req, following)
    if not prompted(following):
        return
    if not options.prompts:
        raise UserError(f"--then {path}: needs a text, and there is none", 'give one, for example --prompt "..."')
    if image_conditioners(following.task) and options.prior is None and following.preset.prior is None:
        raise UserError(
            f"--then {path}: was trained on embeddings of images, but a prompt has that of a text",
            "name a prior that leads from one to the other: --prior RUN, or take the text's embedding as it is: --prior none",
        )


def check_named_alike(path: Path, req: ImageRequest, following: Model) -> None:
    """Raises UserError if the classes of the images are not those of the next stage."""
    labels, count, model = req.labels, class_count(following.preset.task), req.model
    if labels is None:
        problem = f"--then {path}: draws classes, but the images of {model.path} have none"
        raise UserError(problem, "begin with a model of the same classes")
    if count is not None and len(labels) and int(labels.max()) >= count:
        problem = f"--then {path}: knows {count} classes, but there are images of class {int(labels.max())}"
        raise UserError(problem, f"choose classes from 0 to {count - 1} with --class")
    if model.classes and following.classes and model.classes != following.classes:
        pairs = zip(model.classes, following.classes, strict=False)
        one, other = next((pair for pair in pairs if pair[0] != pair[1]), (len(model.classes), len(following.classes)))
        problem = f"--then {path}: has other classes than {model.path} ({other} instead of {one})"
        raise UserError(problem, "give stages that were trained on the same classes")
