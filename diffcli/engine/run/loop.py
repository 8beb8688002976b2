"""The steps of a run and what is due after each."""

import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from diffcli import checkpoint
from diffcli.config import RunFailed
from diffcli.data.images import ImageData
from diffcli.data.loader import on_device
from diffcli.ema import PowerEma, snapshot_every
from diffcli.engine.distributed import Group, is_worker
from diffcli.engine.run.averages import store
from diffcli.engine.run.feed import open_feed
from diffcli.engine.run.runlog import RunDir, RunLog
from diffcli.engine.run.state import State
from diffcli.preset import Preset
from diffcli.tasks.task import Batch, Task


class Progress(NamedTuple):
    """What a step did, for whoever watches."""

    step: int
    steps: int
    values: dict[str, float]  # loss terms and grad_norm of this step
    images_per_s: float
    event: str = ""  # what was written, if anything
    waited: float = 0.0  # seconds of this session that training waited for data,
    data_wait: float = 0.0  # and their share of all of its training
    notes: tuple[str, ...] = ()  # what there is to say of the data


class Settled(NamedTuple):
    """The numbers of a step, on the host."""

    step: int
    values: dict[str, float]
    stopping: bool  # some rank was asked to stop


class Waits:
    """Passes batches on, and knows what share of the time of training went by waiting for them."""

    def __init__(self, feed: Iterator[tuple[int, Batch]]) -> None:
        self.feed = feed
        self.waited = self.trained = 0.0  # seconds; the first are part of the second
        self._told = 0.0, 0.0

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        before = time.perf_counter()
        for item in self.feed:
            self.waited += time.perf_counter() - before
            yield item
            before = time.perf_counter()

    @property
    def share(self) -> float:
        """Of all training so far, 0 to 1."""
        return self.waited / max(self.trained, 1e-9)

    def tell(self) -> float:
        """The share since it was last told."""
        waited, trained = self.waited - self._told[0], self.trained - self._told[1]
        self._told = self.waited, self.trained
        return waited / max(trained, 1e-9)


class Loop:
    """The steps of one run and what is due after each. validate: the loss of a task on held-out images, where that is asked."""

    def __init__(
        self,
        preset: Preset,
        run: RunDir,
        group: Group,
        state: State,
        data: ImageData,
        record: dict[str, Any],
        validate: Callable[[Task], float] | None = None,
    ) -> None:
        self.preset, self.cfg, self.run, self.group = preset, preset.train, run, group
        self.state, self.data, self.record, self.validate = state, data, record, validate
        self.feed = open_feed(preset, group, data, record.pop("feed", None))
        self.model = wrap(state.task, group, self.cfg.compile)

    def steps(self, first: int) -> Iterator[Progress]:
        """Updates first + 1 to the last."""
        cfg, log = self.cfg, RunLog(self.run, first) if self.group.leads else None
        waits = Waits(self.feed.batches(first))
        self.state.task.train()
        pending: deque[tuple[int, list[str], Tensor]] = deque()
        before = time.perf_counter()
        try:
            with stop_signals() as stop:
                for step, batch in waits:
                    pending.append(self.update(step, batch, stop.asked))
                    due = self.due(step)
                    # a GPU is asked for a step's numbers only once the next step is under way, so that it never waits
                    lag = 0 if due or self.group.device.type == "cpu" else 1
                    settled = [self.settle(*pending.popleft()) for _ in range(len(pending) - lag)]
                    stopping = any(s.stopping for s in settled)
                    if stopping:
                        settled += [self.settle(*item) for item in pending]
                    now = time.perf_counter()
                    waits.trained += now - before
                    clocked, before = {"images_per_s": round(cfg.batch_size / (now - before), 2)}, now
                    if "log" in due or "validate" in due or stopping:
                        clocked["data_wait"] = round(waits.tell(), 4)
                    if "validate" in due and self.validate is not None:
                        settled[-1].values["val_loss"] = self.validate(self.averaged)
                    if due or stopping:
                        self.feed.gather()
                    event = self.after(step, settled[-1].values, clocked, due, stopping, log) if due or stopping else ""
                    for s in settled:
                        told, notes = event if s.step == step else "", tuple(self.feed.notes())
                        rate = clocked["images_per_s"]
                        yield Progress(s.step, cfg.steps, s.values, rate, told, waits.waited, waits.share, notes)
                    if stopping and step < cfg.steps:
                        raise KeyboardInterrupt
                    before += time.perf_counter() - now  # writing is not training
        finally:
            if log is not None:
                log.close()

    def update(self, step: int, batch: Batch, stopping: bool) -> tuple[int, list[str], Tensor]:
        """One optimizer update of every phase; returns the step, and names and values (on the device) of its terms."""
        cfg, state = self.cfg, self.state
        values: dict[str, Tensor] = {}
        rate = cfg.curve.factor(step, cfg.steps) * cfg.optimizer.lr
        for phase in state.task.phases:
            optimizer, parameters = state.optimizers[phase], state.task.trained(phase)
            with state.task.only(phase):
                terms = self.accumulate(batch, phase)
            state.scaler.unscale_(optimizer)
            norm = clip_gradients(parameters, cfg.clip)
            for group in optimizer.param_groups:
                group["lr"] = rate
            state.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
            prefix = "" if len(state.task.phases) == 1 else f"{phase}/"
            values |= {prefix + name: value for name, value in terms.items()} | {f"{prefix}grad_norm": norm}
        state.scaler.update()
        state.task.after_update(self.group.gather_rows)
        state.average(step)
        values["stop"] = torch.tensor(float(stopping), device=self.group.device)
        return step, list(values), self.group.mean(torch.stack(list(values.values())))

    def accumulate(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        """Gradients of the mean loss over the global batch, left in .grad; this rank's terms, scaled to average over ranks."""
        size = self.cfg.batch_size
        total: dict[str, Any] = {}
        micro = split(batch, self.cfg.accumulate)
        for i, part in enumerate(micro):
            # DDP averages over the ranks, so each part counts by its share of the global batch times their number
            weight = len(part["position"]) * self.group.world / size
            last = i == len(micro) - 1
            quiet = nullcontext() if last or self.group.world == 1 else self.model.no_sync()
            with quiet:
                with autocast(self.group.device, self.cfg.precision):
                    terms = self.model(part, phase)
                self.state.scaler.scale(terms["loss"] * weight).backward()
            for name, value in terms.items():
                total[name] = total.get(name, 0.0) + value.detach() * weight
        return total

    def settle(self, step: int, names: list[str], values: Tensor) -> "Settled":
        """The numbers of a step on the host. Raises RunFailed if not finite."""
        shown = dict(zip(names, values.tolist(), strict=True))
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
                + (f", then: diffcli resume {self.run.path} --set train.optimizer.lr=..." if kept else ""),
            )
        return Settled(step, shown, stopping)

    def due(self, step: int) -> set[str]:
        """What is to be written after this step."""
        often = {**self.cfg.every.model_dump(), "snapshot": snapshot_every(self.cfg.ema)}
        due = {name for name, steps in often.items() if steps and step % steps == 0}
        if step == self.cfg.steps:
            due |= {"log", "save"} | {name for name in ("snapshot", "validate") if often[name]}
        return due

    def after(
        self,
        step: int,
        shown: dict[str, float],
        clocked: dict[str, float],
        due: set[str],
        stopping: bool,
        log: RunLog | None,
    ) -> str:
        """Writes what is due; on rank 0. Returns what was written, for the one who watches."""
        if log is None:
            return ""
        told = []
        if "data_wait" in clocked:
            lr = self.cfg.curve.factor(step, self.cfg.steps) * self.cfg.optimizer.lr
            log.line(step, {**shown, "lr": lr, **self.feed.told(step), **clocked})
            told.append("log")
        if "save" in due or stopping:
            told.append(
                str(checkpoint.save(self.run.checkpoints, step, self.state.parts(), self.record | self.feed.kept))
            )
            checkpoint.prune(self.run.checkpoints, self.cfg.keep_last)
        if "snapshot" in due:
            assert isinstance(self.cfg.ema, PowerEma)
            told.append(str(store(self.run, step, self.state.emas, self.cfg.ema, self.record)))
        images = self.preview() if "preview" in due else None
        if images is not None:
            told.append(str(log.preview(step, images)))
        return ", ".join(told)

    @torch.no_grad()
    def preview(self) -> Tensor | None:
        """Images of the averaged model, always of the same seeds and conditions: those of some images of the data."""
        fields, rows = self.data.shown(self.cfg.previews)
        batch = on_device(fields, self.group.device) | {"index": rows}
        return self.averaged.preview(batch, self.preset.sampler, self.preset.drawing.preview_guidance)

    @property
    def averaged(self) -> Task:
        """The task that would be sampled from."""
        task = self.state.ema.module
        assert isinstance(task, Task)
        return task


def wrap(task: Task, group: Group, compiled: bool) -> Any:
    """The task as the loop calls it: compiled in place, so that no prefix reaches a checkpoint, and inside DDP."""
    if compiled:
        task.network_to_compile.compile()
    if group.world == 1:
        return task
    with warnings.catch_warnings():  # torch 2.13 renames broadcast_buffers, which 2.6 needs
        warnings.simplefilter("ignore", FutureWarning)
        # no device_ids: they would move what a batch keeps on the CPU, too
        return DistributedDataParallel(task, broadcast_buffers=False, gradient_as_bucket_view=True)


def split(batch: Batch, parts: int) -> list[dict[str, Any]]:
    """A batch as `parts` micro-batches of nearly equal size, none empty."""
    if parts == 1:
        return [dict(batch)]
    rows = [part.tolist() for part in torch.arange(len(batch["position"])).tensor_split(parts)]
    return [{name: value[part[0] : part[-1] + 1] for name, value in batch.items()} for part in rows if part]


def clip_gradients(parameters: list[nn.Parameter], limit: float | None) -> Tensor:
    """The norm of all gradients together, before they are scaled down to `limit`; ()."""
    if limit is not None:
        return nn.utils.clip_grad_norm_(parameters, limit)
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context that a network trains in; float32 is no autocast at all."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


class Stop:
    """Set by a signal; read once a step."""

    asked = False


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """SIGINT and SIGTERM set `asked`; a second one interrupts at once, but for workers, whose launcher repeats the first."""
    stop = Stop()

    def ask(number: int, frame: object) -> None:
        if stop.asked and not is_worker():
            raise KeyboardInterrupt
        stop.asked = True

    previous = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
