"""Cascades: the images of one model condition the next, which enlarges them, and so on.

Each stage draws with its own sampler and guidance, image i from seed + i, and is removed from the device before the next one is
loaded. All stages use the classes and prompts of the first.
"""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.engine.distributed import Group
from diffcli.engine.draw.clips.frame_by_frame import frame_by_frame
from diffcli.engine.draw.clips.lengths import draws_clips
from diffcli.engine.draw.given import Value, from_stage
from diffcli.engine.draw.pictured.augmenting import augmenting
from diffcli.engine.draw.pictured.following import pictured
from diffcli.engine.draw.pictured.succession import check_cascade, reads_classes
from diffcli.engine.draw.pictured.unfolding import unfolded
from diffcli.engine.draw.prompts import prompted
from diffcli.engine.draw.restore.projecting import enlarged_from
from diffcli.engine.draw.sample import Finished, ImageRequest, SampleOptions, draw, request, request_of
from diffcli.engine.draw.sheets.arrangement import CLIPS
from diffcli.engine.draw.translation import image_conditioners
from diffcli.engine.model import Model
from diffcli.engine.options.seeds import nth_seed
from diffcli.tasks.diffusion import DiffusionTask

Opening = Callable[[Path], Model]


class CascadeStage:
    """One stage of a cascade. number: from 1; of: the number of stages.

    labels: the classes of its images, int64 (n,): its own, or those of the stage before if it has no classes. words: the captions
    of the first stage.
    """

    def __init__(
        self,
        number: int,
        of: int,
        req: ImageRequest,
        group: Group,
        labels: Tensor | None = None,
        words: list[str] | None = None,
    ) -> None:
        self.number, self.of, self.group, self.words = number, of, group, words
        self.labels = labels if req.labels is None else req.labels
        self._req: ImageRequest | None = req
        self._batches: list[Finished] | None = None

    @property
    def last(self) -> bool:
        return self.number == self.of

    @property
    def title(self) -> str:
        """For progress displays."""
        return "sampling" if self.of == 1 else f"stage {self.number} of {self.of}"

    @property
    def req(self) -> ImageRequest:
        """Its request; freed when the next stage begins."""
        assert self._req is not None
        return self._req

    def captions(self) -> list[str]:
        """The captions of its images: those of the first stage. Raises UserError if there are none."""
        return self.req.captions() if self.words is None else self.words

    def drawn(self) -> Iterator[Finished]:
        """Its images, on rank 0, as from `draw`; kept for the next stage, if any."""
        kept: list[Finished] = []
        start = 0
        for batch in draw(self.req, self.group):
            rows = slice(start, start + len(batch.images))
            batch = batch._replace(labels=None if self.labels is None else self.labels[rows])
            start = rows.stop
            if not self.last:
                kept.append(batch)
            yield batch
        self._batches = kept

    def handed_on(self) -> Tensor:
        """Its images, uint8 (n, C, *S) on the CPU of every rank; draws them now if they have not been drawn."""
        if self._batches is None:
            for _ in self.drawn():
                pass
        assert self._batches is not None
        device = self.group.device if self.group.world > 1 else "cpu"
        if self.group.leads:
            images = torch.cat([batch.images for batch in self._batches]).to(device)
        else:
            images = torch.empty(self.req.n, *self.req.shape, dtype=torch.uint8, device=device)
        return self.group.spread(images).cpu()

    def leave(self) -> None:
        """Frees the memory of its model."""
        self._req = self._batches = None
        gc.collect()
        if self.group.device.type == "cuda":
            torch.cuda.empty_cache()


def cascade(
    paths: Sequence[Path],
    options: SampleOptions,
    group: Group,
    opening: Opening,
    given: Mapping[str, Value] | None = None,
    animated: bool = False,
) -> Iterator[CascadeStage]:
    """The stages of these checkpoints, each when it is its turn; a single one is a cascade, too.

    opening: loads a checkpoint. given: see `request`, for the first. animated: the last stage is a Request, whose steps `frames`
    shows. A folder of pictures stands for each of them; to a model of clips it is one clip, whose frames a later stage draws one
    by one. Raises UserError, before anything is drawn, where a stage does not follow the one before.
    """
    of, request_last = len(paths), request if animated else request_of
    first = opening(paths[0])
    if draws_clips(first):
        check_animated(paths, animated)
    else:
        options = unfolded(options, group.leads)
    req = request_last(first, options, given=given) if of == 1 else request_of(first, of_first(first, options), given)
    check_cascade(req, paths[1:], options)
    stage = CascadeStage(1, of, req, group)
    del first, req
    yield stage
    words = words_of(stage) if of > 1 else None
    for number, path in enumerate(paths[1:], 2):
        images, labels, record = stage.handed_on(), stage.labels, stage.req.describe()
        stage.leave()
        model = opening(path)
        made: ImageRequest
        if images.ndim == CLIPS:
            made = frame_by_frame(model, options, images, record, partial(of_next, model), labels, request_of)
        else:
            make = request_last if number == of else request_of
            handed = of_next(model, options, len(images), labels)
            made = make(model, handed, given=from_stage(model, images, record))
        stage = CascadeStage(number, of, made, group, labels, words)
        del model, images, made
        yield stage


def check_animated(paths: Sequence[Path], animated: bool) -> None:
    """Raises UserError where the steps of a later stage would be shown of clips."""
    if animated and len(paths) > 1:
        raise UserError(
            f"--then {paths[1]}: draws the frames of clips of {paths[0]} one by one, whose steps no animation shows",
            "leave --then out, or write the clips themselves: diffcli sample --out clips.mp4",
        )


def words_of(stage: CascadeStage) -> list[str] | None:
    """The captions of a stage; None where it has none."""
    try:
        return stage.captions()
    except UserError:
        return None


def of_first(model: Model, options: SampleOptions) -> SampleOptions:
    """The options of the first of several stages; without tiles, projection and noise if it reads no picture or has one step."""
    without: dict[str, Any] = {} if augmenting(model.task) else {"augment": None}
    if not pictured(model) or not isinstance(model.task, DiffusionTask):
        without |= {"tile": None, "overlap": None, "exact_tiles": False, "whole": False, "project": False}
    if enlarged_from(model) is None:
        without["project"] = False
    return options.model_copy(update=without)


def of_next(model: Model, options: SampleOptions, n: int, labels: Tensor | None) -> SampleOptions:
    """The options of a later stage: n images with the classes and prompts of the first; the rest is its own."""
    return SampleOptions(
        n=n,
        labels=tuple(labels.tolist()) if labels is not None and reads_classes(model) else None,
        prompts=options.prompts if prompted(model) else (),
        prior=options.prior if image_conditioners(model.task) else None,
        seed=options.seed if options.interpolate is None else nth_seed(options.seed, 0),
        batch_size=options.batch_size,
        precision=options.precision,
        compile=options.compile,
        augment=options.augment if augmenting(model.task) else None,
        tile=options.tile,
        overlap=options.overlap,
        exact_tiles=options.exact_tiles,
        whole=options.whole,
        project=options.project,
    )
