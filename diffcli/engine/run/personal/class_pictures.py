"""The pictures of the class that a run with `data.preserve` learns beside its own: drawn before its first step.

RUN/preserved/000000.png ...    drawn by the model that the run begins from, picture i under text i with the seed of the run + i
RUN/preserved.json              how they were drawn

The record of every checkpoint has `preserved: {count, prompts, seeds, sha256}`. A resumed run reads the same pictures.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from diffcli.config import UserError, quoted
from diffcli.data.dataset import DataConfig
from diffcli.data.personal import Personal, Preserve
from diffcli.digest import sha256
from diffcli.engine.data_records import check_colours
from diffcli.engine.distributed import Group
from diffcli.engine.draw.output import numbered, write
from diffcli.engine.draw.sample import Finished, ImageRequest, SampleOptions, draw, load_model, request_of
from diffcli.engine.records.record_files import sidecar
from diffcli.engine.run.measuring import Counting, unseen
from diffcli.engine.run.origin import starting
from diffcli.engine.run.phases import phases_of
from diffcli.engine.run.state import build_on_meta, check_optimizers
from diffcli.engine.words.word_training import check_told
from diffcli.preset import Preset
from diffcli.tasks.diffusion_config import DiffusionConfig

KEY = "data.preserve"
FOLDER = RECORD = "preserved"  # of the run; key of a checkpoint's record
BATCH = 16
DRAWING = "drawing pictures of the class"
UNTOLD = frozenset({"command", "folder", "nfe"})  # keys of the record of an output that say nothing of its pictures


class Preserved(NamedTuple):
    """The data of a run with their pictures of the class, and `preserved` for its record."""

    data: DataConfig
    record: dict[str, Any]


def wanted(preset: Preset) -> Preserve | None:
    """What a preset says of pictures of the class; None where its run reads none."""
    kept = preset.data.preserve if isinstance(preset.data, Personal) else None
    if kept is None or not isinstance(preset.task, DiffusionConfig) or not preset.task.preservation:
        return None
    return kept


def check_preserving(preset: Preset) -> None:
    """Raises UserError where a new run shall learn pictures of the class and cannot, or nothing could draw them."""
    if not isinstance(preset.data, Personal) or preset.data.preserve is None:
        return
    task = preset.task
    if not isinstance(task, DiffusionConfig) or task.control or task.field != "image":
        raise UserError(
            f"{KEY} is set, but pictures of a class are kept in a diffusion model of images, and task is {task.noun}"
            + (" that others lead" if isinstance(task, DiffusionConfig) and task.control else ""),
            f"leave them out: --set {KEY}=null",
        )
    kept = wanted(preset)
    if kept is not None and kept.root is None and preset.origin is None:
        raise UserError(
            f"{KEY} is set, but {preset.name} begins from no model that could draw pictures of the class",
            f"name one: --from RUN; or a folder of such pictures: --set {KEY}.root=DIR",
        )


def planned(preset: Preset) -> dict[str, str]:
    """What a run would draw before its first step, for people."""
    kept = wanted(preset)
    if kept is None:
        return {}
    drawn = f"{kept.count:,} are drawn before step 1" if kept.root is None else f"those in {kept.root}"
    return {"class pictures": f"{drawn}: {', '.join(map(repr, kept.texts[:3]))}{', ...' * (len(kept.texts) > 3)}"}


def preserved(
    preset: Preset, run: Path, group: Group, found: Mapping[str, Any] | None, counting: Counting | None = None
) -> Preserved:
    """The data of a resolved preset with pictures of the class: drawn for a new run, else those that are there.

    found: the record of the checkpoint that the run goes on from. Raises UserError where the pictures are others by now.
    """
    kept = wanted(preset)
    if kept is None:
        return Preserved(preset.data, {})
    place = kept.root or run / FOLDER
    if kept.root is None and found is None:
        drawn_for(preset, kept, place, group, counting)
        group.barrier()
    known = (found or {}).get(RECORD)
    if not place.is_dir():
        raise UserError(f"{KEY}: the pictures of the class are not in {place}", _again(kept, place))
    count, digest = digest_of(place)
    if known is not None and known["sha256"] != digest:
        raise UserError(
            f"{KEY}: {place} holds {count} pictures {digest[:12]}..., the run was trained with {known['count']}, "
            f"{known['sha256'][:12]}...",
            _again(kept, place),
        )
    drawn = {} if kept.root else {"seeds": [preset.seed, preset.seed + kept.count - 1]}
    record = {"count": count, "prompts": list(kept.texts), **drawn, "sha256": digest}
    data = preset.data.model_copy(update={"preserve": kept.model_copy(update={"root": place})})
    return Preserved(data, {RECORD: record})


def _again(kept: Preserve, place: Path) -> str:
    return (
        f"copy the whole run again, with its folder {place.name}"
        if kept.root is None
        else f"name the folder that has them: --set {KEY}.root=DIR"
    )


def drawn_for(preset: Preset, kept: Preserve, place: Path, group: Group, counting: Counting | None) -> None:
    """Draws the pictures of the class into a folder, on all processes, unless they are there from a start that ended early."""
    assert preset.origin is not None
    start = preset.origin
    options = SampleOptions(n=kept.count, prompts=kept.texts, seed=preset.seed, batch_size=BATCH)
    try:
        model = load_model(start.path, group.device, start.weights == "ema", precision=preset.train.precision)
        req = request_of(model, options)
    except UserError as error:
        raise UserError(f"{KEY}: {error.problem}", error.hint, error.also) from error
    if group.agreed(group.leads and stands(place, req)):
        return
    check_begins(preset, group.device)
    if group.leads and place.exists() and not sidecar(place).is_file():
        raise UserError(
            f"{place}: is there already, and no run of diffcli has drawn it",
            f"move it away, or name its pictures: --set {KEY}.root={quoted(place)}",
        )
    drawn = shown(draw(req, group), kept.count, counting)
    if group.leads:
        _written(place, drawn, req)
    else:
        for _ in drawn:
            pass


def check_begins(preset: Preset, device: torch.device) -> None:
    """Raises UserError where the run of a preset could not begin once its pictures of the class are drawn, which takes long."""
    data = preset.data.build("train")
    task = build_on_meta(preset.model_copy(update={"task": preset.task.valueless()}), data.specs)
    task.check(data.specs)
    check_optimizers(task, phases_of(task, preset.train), device)
    check_colours(preset.data, task, data)
    starting.planned(preset, task, data.classes)
    if preset.train.embedding is not None:
        check_told(data, preset.train.embedding)


def _written(place: Path, drawn: Iterator[Finished], req: ImageRequest) -> None:
    """Writes pictures into a folder, in place of those that are there: all of them or, where a start is killed, none."""
    begun = place.with_name(f".{place.name}")
    try:
        shutil.rmtree(begun, ignore_errors=True)
        write(begun, drawn, req.describe())
        if place.exists():
            shutil.rmtree(place)
        sidecar(begun).replace(sidecar(place))
        begun.replace(place)
    except BaseException as error:
        shutil.rmtree(begun, ignore_errors=True)
        sidecar(begun).unlink(missing_ok=True)
        full = error if isinstance(error, OSError) else error.__cause__
        if isinstance(full, OSError):
            raise UserError(
                f"{KEY}: the pictures of the class cannot be written into {place} ({full.strerror or full})",
                "free some space, or train into another --run-dir",
            ) from error
        raise


def stands(place: Path, req: ImageRequest) -> bool:
    """Whether all pictures of a request lie in a folder, whose record says that they were drawn as it would draw them."""
    try:
        told = json.loads(sidecar(place).read_text())
    except (OSError, ValueError):
        return False
    mine = json.loads(json.dumps(req.describe(), default=int))
    names = sorted(path.name for path in place.glob("*.png"))
    return names == numbered(req.n) and all(told.get(key) == mine[key] for key in mine.keys() - UNTOLD)


def shown(drawn: Iterator[Finished], total: int, counting: Counting | None) -> Iterator[Finished]:
    """Passes pictures on and shows how many there are."""
    done = 0
    with (counting or unseen)() as show:
        show(DRAWING, done, total)
        for batch in drawn:
            done += len(batch.images)
            show(DRAWING, done, total)
            yield batch


def digest_of(place: Path) -> tuple[int, str]:
    """The number of files in a folder, and a SHA-256 over their names and contents."""
    files = sorted(path for path in place.rglob("*") if path.is_file() and not path.name.startswith("."))
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.relative_to(place).as_posix()} {sha256(path)}\n".encode())
    return len(files), total.hexdigest()
