"""The extractor `segmentation`: the agreement of a model's masks with those of a reference, image by image.

The model predicts masks for the image of each row. The ensemble's mask is compared with `mask` of the row, and the single masks
with `masks` if there are several annotators. Each process segments the rows that it extracts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.data.annotators import ALL, ONE
from diffcli.engine.draw.masks.segmenting import Ensembles, Segmenter, decided, segmenter
from diffcli.engine.draw.sampling import SampleOptions
from diffcli.engine.model import Model
from diffcli.engine.score.sides import Side, over, own_side, resolve
from diffcli.fields import FieldSpec, Remedies, Specs, check_fields
from diffcli.metrics.extractor import Extracted
from diffcli.metrics.metric import Metric
from diffcli.metrics.overlap import BINS, CALIBRATION, EXTRACTOR, calibration, energy_distance, matched_iou, pairwise

GIVES: Mapping[str, tuple[int, ...]] = {
    "dice": (),
    "iou": (),
    "ged": (),
    "hm_iou": (),
    CALIBRATION: (BINS + 1, 3),
}


class MaskScores:
    """The values of GIVES for each image, as the metrics need. field: the field that the model predicts."""

    unit = "images"
    classes: tuple[str, ...] | None = None
    limit: int | None = None

    def __init__(self, seg: Segmenter, metrics: Sequence[Metric], reference: Side) -> None:
        self.seg, self.field = seg, str(seg.model.preset.task.models)
        several = self.field == ONE and ALL in reference.fields
        self.annotators = ALL if several else self.field
        spec = FieldSpec("mask", (None, None, None), seg.classes)
        self.reads: Specs = dict.fromkeys((self.field, self.annotators), spec)
        wanted = {need.keep.of[0] for metric in metrics for need in metric.needs if need.extractor == EXTRACTOR}
        self.gives: Mapping[str, tuple[int, ...]] = {name: shape for name, shape in GIVES.items() if name in wanted}
        self.notes: list[str] = []

    def check(self, name: str, fields: Specs) -> None:
        hint = "give a set with masks of these classes, such as the split test of the model's own data"
        who = f"--ref {name}: --ckpt {self.seg.model.path}"
        check_fields(self.reads, fields, who, dict.fromkeys(self.reads, Remedies(hint, hint, hint, hint)))

    @torch.no_grad()
    def __call__(self, fields: Mapping[str, Any], rows: range) -> Extracted:
        """float32 (B, ...) of each."""
        segments = self.seg.segment(rows)
        device, classes = segments.probability.device, self.seg.classes
        mask, annotators = (fields[name].to(device).long() for name in (self.field, self.annotators))
        if segments.samples.shape[2:] != mask.shape[2:]:
            sizes = " and ".join("x".join(map(str, size)) for size in (segments.samples.shape[2:], mask.shape[2:]))
            problem = f"--ref: masks of {self.seg.model.path} and of the reference differ in size ({sizes} pixels, HxW)"
            raise UserError(problem, "give a set prepared with the --size of the model's own data")
        found: dict[str, Tensor] = {}
        if {"dice", "iou"} & self.gives.keys():
            dice, iou = pairwise(decided(segments.probability), mask, classes)
            found |= {"dice": dice[:, 0, 0], "iou": iou[:, 0, 0]}
        if "ged" in self.gives:
            found["ged"] = energy_distance(segments.samples, annotators, classes)
        if "hm_iou" in self.gives:
            found["hm_iou"] = matched_iou(segments.samples, annotators, classes)
        if CALIBRATION in self.gives:
            found[CALIBRATION] = calibration(segments.probability, annotators)
        return {name: found[name].float() for name in self.gives}

    def describe(self) -> dict[str, Any]:
        return {**self.seg.rule, "classes": self.seg.classes, "compared": sorted(self.reads)}


def annotated_side(model: Model, ref: str | None) -> Side:
    """The reference of a model of masks: --ref SET:SPLIT, else the split `test` of its own data."""
    if ref is not None:
        return _knowing(model, resolve(ref, size=model.preset.data.size, always=True))
    try:
        return _knowing(model, own_side(model, "test"))
    except UserError as error:
        raise UserError(error.problem, "name a set with masks: --ref SET:test") from None


def _knowing(model: Model, side: Side) -> Side:
    """The same side; masks with a class that the model does not know are refused."""
    field = str(model.preset.task.models)
    spec = model.task.reads.get(field)
    return side if side.data is None or spec is None else over(side, side.data.knowing({field: spec, ALL: spec}))


def mask_scores(
    model: Model, options: SampleOptions, metrics: Sequence[Metric], reference: Side, ensemble: int | None
) -> MaskScores:
    """The extractor for the rows of a reference. Raises UserError if the model predicts no masks, or reads other images."""
    assert reference.size is not None
    return MaskScores(segmenter(model, options, reference, reference.size, ensemble), metrics, reference)


def told_by(scores: MaskScores) -> dict[str, Any]:
    """For a report: how the masks were drawn, if they were."""
    if not isinstance(scores.seg, Ensembles):
        return {}
    req = scores.seg.req
    about = {"sampler": req.sampler.name, "steps": req.sampler.steps, "nfe": req.sampler.nfe}
    return about | {"guidance": req.guidance, "seed": req.seed}


def counted(scores: MaskScores) -> dict[str, Any]:
    """For a report: the evaluations of samplers with an unknown number of them."""
    seg = scores.seg
    return {"nfe": int(seg.req.tally)} if isinstance(seg, Ensembles) and seg.req.sampler.nfe is None else {}
