"""Training of any task, on any number of processes, with exact resuming.

Training state is a pure function of the step: data order, augmentation, times, noise and dropout follow from (seed, step,
position in the global batch), so a checkpoint holds weights, averages and optimizer moments and nothing else.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from diffcli import __version__, checkpoint
from diffcli.config import UserError
from diffcli.data.description import DataDescription
from diffcli.data.images import ImageData
from diffcli.data.stream.stream_data import StreamData
from diffcli.engine import control_reading, data_records, stage_reading
from diffcli.engine.data_records import fitted_to_data
from diffcli.engine.distributed import Group
from diffcli.engine.draw.guides import check_named
from diffcli.engine.lora import lora_runs
from diffcli.engine.lora.lora_training import changing, check_base
from diffcli.engine.records import encoder_records
from diffcli.engine.records.needed_sources import mark, needed_sources
from diffcli.engine.run.averages import set_aside_snapshots
from diffcli.engine.run.loop import Loop, Progress, Score
from diffcli.engine.run.measuring import Counting, measure
from diffcli.engine.run.origin import starting as origin
from diffcli.engine.run.personal import class_pictures
from diffcli.engine.run.resume import set_aside
from diffcli.engine.run.runlog import RunDir
from diffcli.engine.run.state import build_state, resolved
from diffcli.engine.run.validation import Validation
from diffcli.engine.tuning import tune
from diffcli.engine.words.word_training import begin_word, check_told
from diffcli.fields import to_record
from diffcli.lookup.run_folders import check_new
from diffcli.preset import Preset, dump
from diffcli.tasks.prior import PriorConfig
from diffcli.tasks.task import Task

Scoring = Callable[[Preset, Path, Group, Task, ImageData], Score]


class Beginning(NamedTuple):
    """A run before its first step. first: the step that it starts after. holds: the description of its data; notes: on them.

    taken: what its weights are of the model that it starts from, by what it is about.
    """

    loop: Loop
    first: int
    holds: DataDescription
    notes: tuple[str, ...]
    taken: Mapping[str, str] = {}


def check_processes(preset: Preset, world: int) -> None:
    """Raises UserError if a process would have nothing to do."""
    cfg = preset.train
    if world > cfg.batch_size // cfg.accumulate:
        raise UserError(
            f"--nproc: {world} processes for {cfg.batch_size // cfg.accumulate} images "
            f"(train.batch_size {cfg.batch_size} / train.accumulate {cfg.accumulate})",
            "start fewer processes, or raise train.batch_size",
        )


def check_data(preset: Preset, task: Task, data: ImageData) -> None:
    """Raises UserError, before any step, if the data do not fit the task."""
    if data.shape != preset.data.shape:
        raise UserError(
            f"data: images are {tuple(data.shape)} (channels, height, width), the preset expects {tuple(preset.data.shape)}",
            "set data.channels and data.size to those of the images",
        )
    task.check(data.specs)


def train(
    preset: Preset, run: RunDir, group: Group, start: Path | None = None, base: Path | None = None
) -> Iterator[Progress]:
    """Trains to preset.train.steps, from the checkpoint `start` or from the beginning; yields after every step.

    base: of a checkpoint of low-rank changes, where the model lies that they change, if it has moved.

    Saves at train.every.save, at the end, and when SIGINT or SIGTERM asks to stop (then raises KeyboardInterrupt).
    Raises RunFailed where the loss or the gradient is no longer finite: the last checkpoint is the last good state.
    Raises UserError where another process writes into the run.
    """
    with begun(preset, run, group, start, base=base) as beginning:
        yield from beginning.loop.steps(beginning.first)


@contextmanager
def begun(
    preset: Preset,
    run: RunDir,
    group: Group,
    start: Path | None = None,
    counting: Counting | None = None,
    scoring: Scoring | None = None,
    base: Path | None = None,
) -> Iterator[Beginning]:
    """A run that is locked for this process and ready for its first step; see `train`.

    counting: shows the progress of measurements. scoring: builds the score of its samples, if the preset has one.
    """
    tune(group.device)
    preset = resolved(stage_reading.completed(fitted_to_data(preset)), group.device)
    check_processes(preset, group.world)
    if start is None:
        check_base(preset)
        class_pictures.check_preserving(preset)
        check_named(preset.drawing.named)
    with run.locked() if group.leads else nullcontext():
        if start is None and group.leads:
            check_new(run.path)
        try:
            yield prepare(preset, run, group, start, counting, scoring, base)
        except BaseException:
            run.abandon()
            raise


def prepare(
    preset: Preset,
    run: RunDir,
    group: Group,
    start: Path | None,
    counting: Counting | None = None,
    scoring: Scoring | None = None,
    base: Path | None = None,
) -> Beginning:
    """A run of a resolved preset, ready for its first step; the first to touch the run's files."""
    found = None if start is None else checkpoint.read_record(start)
    source, of_class = class_pictures.preserved(preset, run.path, group, found, counting)
    if isinstance(preset.task, PriorConfig):
        source = source.model_copy(update={"in_memory": False})  # images that are not needed are not decoded
    data = source.build("train")
    images = data.count if isinstance(data, StreamData) else len(data)
    if start is None and images:
        preset = preset.model_copy(update={"task": preset.task.trained_on(images)})
    stage = stage_reading.begun(preset) if start is None else None
    led = control_reading.begun(preset) if start is None else None
    begins = origin.begun(preset) if start is None else None
    encoded_by: dict[str, Any] = {}
    changed_from: dict[str, Any] = {}
    holds = data_records.described(source, data)

    def begin(task: Task) -> None:
        """Checks everything that can be refused before the data are read."""
        if found is not None:
            data_records.check_classes(task, holds, found)
        else:
            data_records.check_colours(source, task, data)
        check_data(preset, task, data)
        encoded_by.update(control_reading.agreed(task, led, found))
        encoded_by.update(stage_reading.agreed(task, data, stage, {**(found or {}), **encoded_by}))
        encoded_by.update(encoder_records.agreed(task, data, found if led is None else led.record))
        encoder_records.install(task, data)
        if stage is not None:
            stage_reading.install(task, stage)
        if led is not None:
            control_reading.check_fits(task, led, holds)
            control_reading.install(task, led)
        if start is None:
            task.begin()
            measured = begins is not None and begins.install(task, data.classes, stage)
            if not measured:
                measure(preset, group, data.select(task.reads).knowing(task.reads), task, counting)
            if preset.train.embedding is not None:
                check_told(data, preset.train.embedding)
                begin_word(task, preset.train.embedding)
            key = changing(preset.train)
            if begins is not None and key is not None:
                source_model, weights = begins.source.model, begins.start.weights
                changed_from.update(lora_runs.begun(task, source_model.path, source_model.step, weights, run.path, key))

    state = build_state(preset, group.device, data.specs, begin)
    reads = {**state.task.reads, **state.task.trains_on}
    data = data.select(reads).knowing(reads)
    validate = Validation(preset, group, state.task).loss if preset.train.every.validate else None
    score = scoring(preset, run.path, group, state.task, data) if scoring and preset.train.every.score else None
    record = {"preset": preset.model_dump(mode="json"), "classes": data.classes, "version": __version__}
    record |= {"fields": to_record(state.task.reads), **encoded_by, "feed": (found or {}).get("feed")}
    record |= of_class
    record[data_records.RECORD] = holds.model_dump(mode="json")
    record |= origin.recorded(found) if begins is None else begins.record
    first = 0
    if start is not None and found is not None:
        first = found["step"]
        under, entry = lora_runs.taken_up(state.task, found, start, run.path, base)
        changed_from.update(entry)
        state.restore(start, found, under)
        group.barrier()
    record |= changed_from
    loop = Loop(preset, run, group, state, data, record, validate, score)  # refuses a feed that cannot go on
    kept: list[str] = []
    if group.leads:
        with run.writing():
            if start is None:
                run.begin()
            else:
                kept += set_aside(run.checkpoints, start)
                set_aside_snapshots(run, first)
            run.preset.write_text(dump(preset))
        kept += mark(needed_sources(preset, record), run.path)
    changed = [] if found is None else data_records.changes_of(holds, found)
    notes = (*holds.remarks, *changed, *(begins.notes if begins else ()), *kept)
    return Beginning(loop, first, holds, notes, begins.facts if begins else {})
