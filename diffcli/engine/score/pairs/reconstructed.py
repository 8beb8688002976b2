"""Reconstructions of a first stage as a side, and the floors of their scores.

Rows of the side are those of the reference: `image` is the reconstruction, `original` its original, both uint8. Each
process reconstructs the rows that it extracts, once for all extractors.
"""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from diffcli.config import ImageShape, UserError, quoted
from diffcli.data.dataset import NoSplit
from diffcli.data.prepared import Shards
from diffcli.data.set_folder import is_prepared
from diffcli.data.shards import open_shards
from diffcli.engine.model import Model
from diffcli.engine.score.floor_scores import Floor, Size, floors
from diffcli.engine.score.onepass import Watch
from diffcli.engine.score.pairs.pair_scores import ORIGINAL
from diffcli.engine.score.sides import Side, own_side, resolve
from diffcli.engine.stage import StageModel
from diffcli.fields import Batch, FieldSpec, Remedies, check_fields, to_float, to_levels


def reconstructions(stage: StageModel, reference: Side) -> Side:
    """Reconstructions of the rows of a reference. Raises UserError if the first stage cannot encode them."""
    task, device = stage.task, stage.model.device
    check_reference(stage, reference)
    inputs = set(task.reads) - {task.field}
    specs: dict[str, FieldSpec] = {"image": reference.fields[task.field], ORIGINAL: reference.fields[task.field]}
    if "label" in reference.fields:
        specs["label"] = reference.fields["label"]

    def read(spans: Sequence[range], fields: Collection[str]) -> Iterator[Batch]:
        assert reference.read is not None
        needed = {task.field, *(inputs & reference.fields.keys()), *({"label"} & set(fields))}
        for found in reference.read(spans, needed):
            original = found[task.field].to(device)
            check_images(stage, reference.name, original.shape[1:])
            x = to_float(original)
            made = to_levels(stage.reconstruct(x, task.vector_of({**found, task.field: x})))
            yield {"image": made, ORIGINAL: original, **{name: found[name] for name in {"label"} & set(fields)}}

    return Side(f"reconstructions by {stage.model.path}", reference.size, specs, read, reference.classes)


def check_reference(stage: StageModel, reference: Side) -> None:
    """Raises UserError for a reference whose fields show that the first stage cannot encode its rows."""
    task, hint = stage.task, "give images that its encoder takes, such as the split test of its own data"
    if reference.read is None or reference.size is None:
        problem = f"--ref {reference.name} is statistics, which cannot be reconstructed"
        raise UserError(problem, "give the images themselves")
    if not reference.size:
        raise UserError(f"--ref {reference.name}: has no images", hint)
    wanted = {task.field: FieldSpec("image", (stage.channels, None, None))}
    wanted |= {name: spec for name, spec in task.reads.items() if name != task.field and name in reference.fields}
    remedies = dict.fromkeys(wanted, Remedies(hint, hint, hint))
    check_fields(wanted, reference.fields, f"--ref {reference.name}: --ckpt {stage.model.path}", remedies)
    size = reference.fields[task.field].shape[1:]
    if len(size) == 2 and None not in size:
        check_images(stage, reference.name, (stage.channels, *map(int, size)))  # type: ignore[arg-type]


def check_images(stage: StageModel, name: str, shape: Sequence[int]) -> None:
    """Raises UserError for images (C, H, W) that the first stage does not take."""
    if shape[0] != stage.channels:
        raise UserError(
            f"--ref {name}: has images of {shape[0]} channels, {stage.model.path} takes {stage.channels}",
            "give images of that many channels, or the first stage of such images",
        )
    if fault := stage.fault(shape[1:]):
        problem, near = fault
        place, edge = Path(name).expanduser(), f"--size {min(near)}"
        folder = place.is_dir() and not is_prepared(place)
        source = f"folder {quoted(name)}" if folder else "KIND SOURCE"
        raise UserError(
            f"--ref {name}: has images of {problem}",
            f"bring them to a size such as {near[0]}x{near[1]}: diffcli prep-data {source} --out DIR {edge}, then --ref DIR",
        )


def originals(model: Model, ref: str | None) -> Side:
    """The reference of a first stage: --ref, else the split `test` of its own data."""
    if ref is not None:
        return resolve(ref, size=model.preset.data.size)
    try:
        return own_side(model, "test")
    except NoSplit as error:
        raise UserError(
            error.problem,
            f"score images that it was trained on, --ref {quoted(trained_on(model))}, or name others with --ref",
        ) from error


def trained_on(model: Model) -> str:
    """The training images of a model as --ref takes them."""
    data = model.preset.data
    if isinstance(data, Shards) and data.root is not None:
        return f"{data.root}:train"
    return str(data.root) if data.root is not None and data.root.is_dir() else f"{model.preset.name}:train"


def too_few(side: Side, n: int | None) -> list[str]:
    """A note if a side has fewer rows than requested."""
    if n is None or side.size is None or side.size >= n:
        return []
    return [f"--n {n}: {side.name} has {side.size} image{'s' * (side.size != 1)}; all of them are scored"]


def floors_beside(
    stage: StageModel, ref: str | None, reference: Side, shape: ImageShape, cache: Path, watch: Watch | None
) -> tuple[list[Floor], list[str]]:
    """The floors for a first stage on images of a reference, each of this shape, and notes where there are none."""
    try:
        training = training_split(stage.model, ref)
    except UserError as error:
        return [], [f"psnr has no floor: it would be fitted to training images, but {error.problem}"]
    found = training.fields.get(stage.task.field)
    if found is None or tuple(found.shape) != tuple(shape):
        return [], [f"psnr has no floor: images of {training.name} do not have the shape of {reference.name}"]
    size = Size(shape, stage.downscale, stage.latent, stage.bottleneck.bits, stage.task.field)
    return floors(size, training, reference, stage.model.device, cache, watch)


def training_split(model: Model, ref: str | None) -> Side:
    """The data for floors: the training split of the set that --ref names, else of the first stage's own data.

    A folder of images or a file has no splits, a prepared set perhaps no training one. Raises UserError for one that is damaged.
    """
    whole = Path(ref or "").expanduser()
    if ref is None or (whole.exists() and not is_prepared(whole)):
        return own_side(model, "train")
    name = ref if whole.exists() else ref.rpartition(":")[0]
    root = Path(name).expanduser()
    if is_prepared(root) and "train" not in open_shards(root, "the prepared data set").splits:
        return own_side(model, "train")
    return resolve(f"{name}:train", size=model.preset.data.size)
