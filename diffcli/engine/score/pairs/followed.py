"""The extractor `condition`: computes the condition from each drawn image and compares it with the given condition.

It also has the floor of super-resolution: the same scores of bicubic enlargement.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.data.derived import Colour, Derived, Edges, Grey, LowRes, Sketch
from diffcli.data.lowering import lowered
from diffcli.engine.model import Model
from diffcli.engine.score.floor_scores import Floor
from diffcli.engine.score.onepass import Watch
from diffcli.engine.score.report import Report
from diffcli.engine.score.sides import Side
from diffcli.fields import FieldSpec, Specs, check_fields
from diffcli.metrics.adherence import TOLERANCE, edges_f1
from diffcli.metrics.extractor import Extracted
from diffcli.metrics.metric import Metric
from diffcli.metrics.nearness import psnr_of_bytes, ssim_of_bytes

CONDITION, OTHER = "condition", "other_condition"
Picture = LowRes | Edges | Sketch | Colour | Grey
KINDS: dict[str, tuple[type[Derived], ...]] = {"consistency": (LowRes,), "follows": (Edges, Sketch, Colour, Grey)}
WHITE = 128  # level from which a pixel of a picture of edges is one
ENLARGED = ("psnr", "ssim", "consistency")  # scores that a floor is measured of
READ = 256  # images that are enlarged at once


class Following:
    """`consistency` of each image, or `follows` and `shuffled`, as the metrics need.

    Raises UserError if no condition of the model was derived from images.
    """

    unit = "images"
    limit: int | None = None
    classes: tuple[str, ...] | None = None

    def __init__(self, model: Model, metrics: Sequence[Metric]) -> None:
        kinds = [m.kind for m in metrics if any(need.extractor == "condition" for need in m.needs)]
        self.derived = {kind: derived_for(model, kind) for kind in kinds}
        gives = [name for kind in kinds for name in (kind, *(("shuffled",) if kind == "follows" else ()))]
        self.gives: Mapping[str, tuple[int, ...]] = dict.fromkeys(gives, ())
        names = [named(role, each.field) for each in self.derived.values() for role in (CONDITION, OTHER)]
        self.reads: Specs = dict.fromkeys(("image", *names), FieldSpec("image", (None, None, None)))
        self.notes: list[str] = []

    @property
    def fields(self) -> set[str]:
        """The conditions that it compares with."""
        return {each.field for each in self.derived.values()}

    def check(self, name: str, fields: Specs) -> None:
        check_fields(self.reads, fields, f"--ref {name}: --metrics {','.join(self.derived)}")

    def __call__(self, fields: Mapping[str, Any], rows: range) -> Extracted:
        """Each (B,) float32."""
        found: dict[str, Tensor] = {}
        images, numbers = fields["image"].cpu(), torch.arange(rows.start, rows.start + len(fields["image"]))
        for kind, derived in self.derived.items():
            own = derived.make(images, numbers, None)[derived.field]
            found[kind] = alike(derived, own, fields[named(CONDITION, derived.field)])
            if kind == "follows":
                found["shuffled"] = alike(derived, own, fields[named(OTHER, derived.field)])
        return found

    def describe(self) -> dict[str, Any]:
        """The protocol of each score."""
        return {f"{kind}_protocol": protocol(kind, derived) for kind, derived in self.derived.items()}


def named(role: str, field: str) -> str:
    """The field of a side that holds the condition of this name."""
    return f"{role}.{field}"


def derived_for(model: Model, kind: str) -> Picture:
    """The transform of data.derived that made the condition of a metric. Raises UserError if the model does not read it."""
    wanted = KINDS[kind]
    for each in model.preset.data.derived:
        if isinstance(each, wanted) and isinstance(each, Picture) and each.field in model.task.reads:
            return each
    names = ", ".join(cls.model_fields["kind"].default for cls in wanted)
    other = next(other for other in KINDS if other != kind)
    raise UserError(
        f"--metrics {kind}: {model.path} has none of {names} of data.derived as a condition",
        f"leave {kind} out, or score {other} of a model that is conditioned on something else",
    )


def alike(derived: Picture, own: Tensor, given: Tensor) -> Tensor:
    """The similarity of two conditions, uint8 (B, C, H, W) each: float32 (B,)."""
    if isinstance(derived, Edges):
        return edges_f1(own >= WHITE, given >= WHITE)
    return psnr_of_bytes(own, given)


def protocol(kind: str, derived: Picture) -> str:
    """The description of a score."""
    options = ", ".join(f"{key} {value}" for key, value in derived.model_dump(exclude={"kind", "field"}).items())
    made = f"{derived.kind} of the image ({options})" if options else f"{derived.kind} of the image"
    if kind == "consistency":
        return f"PSNR of bytes: {made}, by Pillow's antialiased kernel, against the given '{derived.field}'"
    if isinstance(derived, Edges):
        return f"F1 of edges within {TOLERANCE} pixel: {made}, against the given ones; mean over images"
    return f"PSNR of bytes in dB: {made}, against the given '{derived.field}'; mean over images"


def enlarged_floor(derived: LowRes, reference: Side, wanted: Sequence[str], watch: Watch | None = None) -> Floor:
    """The scores of bicubic enlargement of a reference's own conditions: means over its images of psnr, ssim and consistency."""
    assert reference.read is not None
    assert reference.size is not None
    sums = dict.fromkeys(wanted, 0.0)
    spans = [range(first, min(first + READ, reference.size)) for first in range(0, reference.size, READ)]
    for rows, found in zip(spans, reference.read(spans, {"image", derived.field}), strict=True):
        image, low = found["image"], found[derived.field]
        large = lowered(low, (image.shape[2], image.shape[3]), "bicubic")
        for name in wanted:
            sums[name] += float(enlarged_score(name, derived, large, image, low).double().sum())
        if watch:
            watch(f"floor from {reference.name}", rows.stop, reference.size)
    what = f"bicubic enlargement (Pillow) of '{derived.field}', which is smaller by {derived.factor} ({derived.kernel})"
    means = {name: total / reference.size for name, total in sums.items()}
    return {"name": "floor", "kind": "bicubic", "what": what, "images": reference.size, **means}


def enlarged_score(name: str, derived: LowRes, large: Tensor, image: Tensor, low: Tensor) -> Tensor:
    """One of `ENLARGED` of enlarged pictures, their originals and what was enlarged, uint8 each: float32 (B,)."""
    if name == "psnr":
        return psnr_of_bytes(large, image)
    if name == "ssim":
        return ssim_of_bytes(large, image)
    return psnr_of_bytes(derived.make(large, torch.arange(len(large)), None)[derived.field], low)


def with_enlarged(report: Report, model: Model, reference: Side, watch: Watch | None = None) -> Report:
    """The same report with the scores of bicubic enlargement, if the model enlarges pictures."""
    scored = [result.metric.kind for result in report.results if result.metric.kind in ENLARGED]
    makes = (each for each in model.preset.data.derived if isinstance(each, LowRes) and each.field in model.task.reads)
    derived = next(makes, None)
    if derived is None or not scored:
        return report
    return report.with_floors(scored, [enlarged_floor(derived, reference, scored, watch)])
