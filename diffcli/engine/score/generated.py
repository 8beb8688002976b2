"""Samples of a checkpoint as a side: every process draws the rows that it extracts, so images are neither sent nor kept."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch

from diffcli.engine.draw import guides
from diffcli.engine.draw.pictured import controls
from diffcli.engine.draw.request import Request
from diffcli.engine.draw.sample import sampled
from diffcli.engine.score.sides import Side
from diffcli.fields import Batch, FieldSpec
from diffcli.tasks.guide import Guide


def samples(req: Request) -> Side:
    """The images or clips of a request, a field of that name; drawn while they are read, batch by batch."""
    spec = FieldSpec("clip" if len(req.shape) == 4 else "image", req.shape)

    @torch.no_grad()
    def read(spans: Sequence[range], fields: Collection[str]) -> Iterator[Batch]:
        for rows in spans:
            found: dict[str, Any] = {spec.kind: sampled(req, rows)}
            if "label" in fields and req.labels is not None:
                found["label"] = req.labels[rows.start : rows.stop]
            yield found

    specs = {str(spec.kind): spec}
    specs |= {} if req.labels is None else {"label": FieldSpec("classes", (), req.model.classes)}
    return Side(f"samples of {req.model.path}", req.n, specs, read, req.model.classes)


def describe(req: Request) -> dict[str, Any]:
    """For a report: how the samples of a model were drawn."""
    return {
        "sampler": req.sampler.name,
        "steps": req.sampler.steps,
        "nfe": req.sampler.nfe,
        "guidance": req.guidance,
        **req.scored_under(),
        **controls.describe(req.model),
        **({} if req.restoration is None else req.restoration.described),
        **({"guide": guides.describe(req.guide, req.models)} if req.guide != Guide() else {}),
        "seed": req.seed,
    }
