"""The steps of a run and the work after each of them."""

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from diffcli import checkpoint
from diffcli.config import RunFailed, quoted
from diffcli.data.images import ImageData
from diffcli.data.loader import on_device
from diffcli.ema import PowerEma, at_rest, snapshot_every
from diffcli.engine.distributed import Group
from diffcli.engine.run.averages import store
from diffcli.engine.run.feed import open_feed
from diffcli.engine.run.keeping import Keeping
from diffcli.engine.run.measuring import GroupRanks, split
from diffcli.engine.run.numbers import Numbers, on_their_way
from diffcli.engine.run.phases import rate
from diffcli.engine.run.runlog import RunDir, RunLog
from diffcli.engine.run.showing.best import Best
from diffcli.engine.run.showing.preview_words import captions, rate_of
from diffcli.engine.run.signals import Interrupted, stop_signals
from diffcli.engine.run.state import State
from diffcli.engine.tuning import autocast, compile_network
from diffcli.fields import Batch
from diffcli.preset import Preset
from diffcli.tasks.task import Phase, Task, constant


class Progress(NamedTuple):
    """Values of one training step, for progress displays."""

    step: int
    steps: int
    values: dict[str, float]  # loss terms and grad_norm; of several phases with the name of each before them
    images_per_s: float
    event: str = ""  # the file that was written, if any
    waited: float = 0.0  # seconds of this session that training waited for data,
    data_wait: float = 0.0  # and their share of all of its training
    notes: tuple[str, ...] = ()  # notes on the data, and new remarks on the numbers
    trained: float = 0.0  # seconds that the steps of this session took
    unit: str = "images"  # what batches consist of, in the plural

    @property
    def losses(self) -> dict[str, float]:
        """The loss of each phase that took part in the step: `loss`, or NAME/loss where there are several."""
        return {name: value for name, value in self.values.items() if name.rpartition("/")[2] == "loss"}


class Score(Protocol):
    """The score of a task's samples at a step, lower is better; name: metric, features and numbers of images."""

    name: str

    def __call__(self, task: Task, step: int) -> float: ...


class Settled(NamedTuple):
    """The numbers of a step, on the host."""

    step: int
    values: dict[str, float]
    stopping: bool  # some rank wants to stop


class Waits:
    """Passes batches on and measures the share of the training time spent waiting for them."""

    def __init__(self, feed: Iterator[tuple[int, Batch]]) -> None:
        self.feed = feed
        self.waited = self.trained = 0.0  # seconds; the first are part of the second
        self._before = 0.0, 0.0  # both when `recent_share` was called last

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        before = time.perf_counter()
        for item in self.feed:
            self.waited += time.perf_counter() - before
            yield item
            before = time.perf_counter()

    @property
    def share(self) -> float:
        """The share of all training so far, 0 to 1."""
        return self.waited / max(self.trained, 1e-9)

    def recent_share(self) -> float:
        """The share since the last call."""
        waited, trained = self.waited - self._before[0], self.trained - self._before[1]
        self._before = self.waited, self.trained
        return waited / max(trained, 1e-9)


class Loop:
    """The steps of one run and the work after each of them.

    validate: returns the loss of a task at a step on held-out images, if wanted. score: returns the score of its samples.
    """

    def __init__(
        self,
        preset: Preset,
        run: RunDir,
        group: Group,
        state: State,
        data: ImageData,
        record: dict[str, Any],
        validate: Callable[[Task, int], float] | None = None,
        score: Score | None = None,
    ) -> None:
        self.preset, self.cfg, self.run, self.group = preset, preset.train, run, group
        self.state, self.data, self.record, self.validate, self.score = state, data, record, validate, score
        self.feed = open_feed(preset, group, data, record.pop("feed", None))
        self.keeping = Keeping(run.checkpoints, preset.train)
        self.trained = {phase.name: state.task.trained_in(phase.networks) for phase in state.phases}
        self.others = {
            phase: [p for other, parameters in self.trained.items() if other != phase for p in parameters]
            for phase in self.trained
        }
        state.task.log_every = self.cfg.every.log
        counts = [len(share) for share in group.shares(self.cfg.batch_size)]
        self.ranks = GroupRanks(group, counts)
        self.models = wrap(state.task, state.phases, group, self.cfg.compile)

    def steps(self, first: int) -> Iterator[Progress]:
        """Updates first + 1 to the last."""
        cfg, log = self.cfg, RunLog(self.run, first, self.preset) if self.group.leads else None
        self.best = Best(self.run.checkpoints, first) if self.score is not None and log is not None else None
        waits = Waits(self.feed.batches(first))
        self.state.task.train()
        pending: deque[Numbers] = deque()
        said: list[str] = []  # of the numbers of the step before
        advice = self.state.task.advice(self.data.specs) if first == 0 else []
        before = time.perf_counter()
        try:
            with stop_signals() as stop:
                for step, batch in waits:
                    pending.append(self.update(step, batch, stop.wanted))
                    due = self.due(step)
                    # the numbers of a step are read from the GPU while the next step runs, so that it never waits
                    lag = 0 if due or self.group.device.type == "cpu" else 1
                    settled = [self.settle(pending.popleft()) for _ in range(len(pending) - lag)]
                    stopping = any(s.stopping for s in settled)
                    if stopping:
                        settled += [self.settle(numbers) for numbers in pending]
                    now = time.perf_counter()
                    waits.trained += now - before
                    clocked, before = {"images_per_s": round(cfg.batch_size / (now - before), 2)}, now
                    if due & {"log", "validate", "score"} or stopping:
                        clocked["data_wait"] = round(waits.recent_share(), 4)
                    if "validate" in due and self.validate is not None:
                        settled[-1].values["val_loss"] = self.validate(self.state.averaged, step)
                    if "score" in due and self.score is not None:
                        settled[-1].values["score"] = self.score(self.state.averaged, step)
                    if due or stopping:
                        self.feed.gather()
                    found = [self.state.task.remarks(s.step, s.values) if log is not None else [] for s in settled]
                    event = ""
                    if due or stopping:
                        event = self.after(step, settled[-1].values, found[-1], clocked, due, stopping, log)
                    for s, remarks in zip(settled, found, strict=True):
                        new = [remark for remark in remarks if remark not in said]
                        notes = (*advice, *self.keeping.notes(), *self.feed.notes(), *new)
                        said, advice = remarks, []
                        written = event if s.step == step else ""
                        speed = clocked["images_per_s"]
                        spent = waits.waited, waits.share, notes, waits.trained, self.state.task.unit
                        yield Progress(s.step, cfg.steps, s.values, speed, written, *spent)
                    if stopping and step < cfg.steps:
                        raise Interrupted
                    before += time.perf_counter() - now  # writing is not training
        finally:
            if log is not None:
                log.close()

    def update(self, step: int, batch: Batch, stopping: bool) -> Numbers:
        """One optimizer update of every phase that is due; returns the terms of each, on their way to the host."""
        state = self.state
        values: dict[str, Tensor] = {}
        for phase in state.phases:
            if phase.due(step):
                found = self.update_of(phase, step, batch)
                values |= {self.prefix(phase) + name: value for name, value in found.items()}
        if values:
            state.scaler.update()
        state.task.after_update(self.ranks)
        state.average(step)
        values["stop"] = torch.full((), float(stopping), device=self.group.device)  # filled there: nothing is copied
        return on_their_way(step, values, self.group.mean(torch.stack(list(values.values()))))

    def update_of(self, phase: Phase, step: int, batch: Batch) -> dict[str, Tensor]:
        """One update of the networks of a phase; its terms and the norm of its gradient, each () on the device."""
        cfg, state, optimizer = self.cfg, self.state, self.state.optimizers[phase.name]
        with constant(self.others[phase.name]):
            terms = self.accumulate(batch, phase, step)
        state.scaler.unscale_(optimizer)
        norm = clip_gradients(self.trained[phase.name], cfg.clip)
        for group in optimizer.param_groups:
            group["lr"] = rate(phase, step, cfg.steps) * group.get("scale", 1.0)
        state.scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
        return terms | {"grad_norm": norm}

    def accumulate(self, batch: Batch, phase: Phase, step: int) -> dict[str, Tensor]:
        """Leaves gradients of a phase's mean loss over the global batch in .grad; its terms, scaled to average over ranks."""
        size, model = self.cfg.batch_size, self.models[phase.name]
        total: dict[str, Any] = {}
        micro = split(batch, self.cfg.accumulate)
        for i, part in enumerate(micro):
            # DDP averages over the ranks, so each part counts by its share of the global batch times their number
            weight = len(part["position"]) * self.group.world / size
            last = i == len(micro) - 1
            quiet = nullcontext() if last or self.group.world == 1 else model.no_sync()
            with quiet:
                with autocast(self.group.device, self.cfg.precision):
                    terms = model(part, phase.name, step)
                self.state.scaler.scale(terms["loss"] * weight).backward()
            for name, value in terms.items():
                total[name] = total.get(name, 0.0) + value.detach() * weight
        return total

    def prefix(self, phase: Phase) -> str:
        """The prefix of the names of a phase's numbers: empty if it is the only phase."""
        return "" if len(self.state.phases) == 1 else f"{phase.name}/"

    def settle(self, numbers: Numbers) -> Settled:
        """The numbers of a step on the host. Raises RunFailed if not finite."""
        step, shown = numbers.step, numbers.read()
        stopping = shown.pop("stop") > 0
        bad = [name for name, value in shown.items() if not abs(value) < float("inf")]
        if self.cfg.precision == "fp16":  # the scaler meets overflowing gradients by skipping the update
            bad = [name for name in bad if not name.endswith("grad_norm")]
        if bad:
            kept = checkpoint.checkpoints(self.run.checkpoints)
            terms = ", ".join(f"{name} {value:g}" for name, value in shown.items())
            raise RunFailed(
                f"step {step}: {' and '.join(bad)} not finite ({terms}); "
                + (f"the last good checkpoint is {kept[-1]}" if kept else "no checkpoint was written before it"),
                "lower train.optimizer.lr, set train.clip, or use train.precision=fp32"
                + (f", then: diffcli resume {quoted(self.run.path)} --set train.optimizer.lr=..." if kept else ""),
            )
        return Settled(step, shown, stopping)

    def due(self, step: int) -> set[str]:
        """The files to write after this step."""
        often = {**self.cfg.every.model_dump(), "snapshot": snapshot_every(self.cfg.ema)}
        due = {name for name, steps in often.items() if steps and step % steps == 0}
        if self.cfg.keep_every and step % self.cfg.keep_every == 0:
            due |= {"save"}
        if step == self.cfg.steps:
            due |= {"log", "save"} | {name for name in ("snapshot", "validate", "score") if often[name]}
        return due

    def after(
        self,
        step: int,
        shown: dict[str, float],
        remarks: list[str],
        clocked: dict[str, float],
        due: set[str],
        stopping: bool,
        log: RunLog | None,
    ) -> str:
        """Writes the files that are due, on rank 0. Returns their description, for progress displays."""
        if log is None:
            return ""
        written = []
        if "data_wait" in clocked:
            due_phases = [phase for phase in self.state.phases if phase.due(step)]
            rates = {f"{self.prefix(phase)}lr": rate(phase, step, self.cfg.steps) for phase in due_phases}
            log.line(step, {**shown, **rates, **self.feed.numbers(step), **clocked}, remarks, self.scored(shown))
            written.append("log")
        if "save" in due or stopping:
            parts, record = self.state.parts(), self.record | self.feed.kept
            written.append(str(checkpoint.save(self.run.checkpoints, step, parts, record)))
            self.keeping.prune()
        if self.best is not None and "score" in shown:
            kept = self.best.keep(
                step, shown["score"], self.scored(shown)["scored"], self.state.parts, self.record | self.feed.kept
            )
            written += [str(kept)] if kept else []
        if "snapshot" in due:
            assert isinstance(self.cfg.ema, PowerEma)
            written.append(str(store(self.run, step, self.state.emas, self.cfg.ema, self.record)))
        if "preview" in due:
            written += [str(log.preview(step, *shown_now)) for shown_now in self.preview()]
        return ", ".join(written)

    def scored(self, shown: Mapping[str, float]) -> dict[str, str]:
        """The description of the score among these values, for the log: metric, features and numbers of images."""
        return {"scored": self.score.name} if self.score is not None and "score" in shown else {}

    @torch.no_grad()
    def preview(self) -> Iterator[tuple[Tensor, list[str] | None, float | None]]:
        """Images of the averaged model, captions, and frames per second of clips, always with the same seeds and rows of data.

        None if the task has no images to show.
        """
        fields, rows = self.data.shown(self.cfg.previews)
        batch = on_device(fields, self.data.specs, self.group.device) | {"index": rows}
        with at_rest(self.state.averaged), autocast(self.group.device, self.cfg.precision):
            images = self.state.averaged.preview(batch, self.preset.sampler, self.preset.drawing.preview_guidance)
        if images is not None:
            yield images, captions(self.state.task, fields, self.data.classes, len(images)), rate_of(fields)


def wrap(task: Task, phases: Sequence[Phase], group: Group, compiled: bool) -> dict[str, Any]:
    """The callable task of each phase, by name; compiled in place, so that no prefix reaches a checkpoint.

    With several processes each phase has its own DDP with only the parameters of this phase, because DDP waits for a gradient
    of each that is used.
    """
    if compiled:
        compile_network(task.network_to_compile)
    if group.world == 1:
        return {phase.name: task for phase in phases}
    wrapped = {}
    for phase in phases:
        with (
            task.only(phase.networks),
            warnings.catch_warnings(),
        ):  # torch 2.13 renames broadcast_buffers, which 2.6 needs
            warnings.simplefilter("ignore", FutureWarning)
            # no device_ids: they would move what a batch keeps on the CPU, too
            ddp = DistributedDataParallel(
                task, broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=task.skips
            )
        wrapped[phase.name] = ddp
    return wrapped


def clip_gradients(parameters: list[nn.Parameter], limit: float | None) -> Tensor:
    """The norm of all gradients together, before they are scaled down to `limit`; ()."""
    if limit is not None:
        return nn.utils.clip_grad_norm_(parameters, limit)
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
