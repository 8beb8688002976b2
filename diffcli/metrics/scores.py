"""The metrics by name: `--metrics fid,kid` and `--set metrics.kid.subset_size=500` become a list of them.

Adding a metric: a class in this folder, its place in `AnyMetric`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, get_args

from pydantic import Field, ValidationError, create_model

from diffcli.config import Config, UserError, did_you_mean
from diffcli.config_errors import explain
from diffcli.metrics.adherence import Consistency, Follows
from diffcli.metrics.bits import BitsPerDim
from diffcli.metrics.fidelity import Accuracy, Fid, Fvd, InceptionScore, Kid, Precision, Recall
from diffcli.metrics.metric import Metric
from diffcli.metrics.motion.constancy import FrameSimilarity, Kept, KeptClass
from diffcli.metrics.motion.tracking import Motion
from diffcli.metrics.nearness import PerceptualDistance, Psnr, Ssim
from diffcli.metrics.overlap import CalibrationError, Dice, EnergyDistance, Iou, MatchedIou
from diffcli.metrics.priors import CosineSimilarity, Retrieval, SquaredError

AnyMetric = Annotated[
    Fid
    | Kid
    | InceptionScore
    | Precision
    | Recall
    | Accuracy
    | BitsPerDim
    | Psnr
    | Ssim
    | PerceptualDistance
    | Consistency
    | Follows
    | CosineSimilarity
    | SquaredError
    | Retrieval
    | Dice
    | Iou
    | EnergyDistance
    | MatchedIou
    | CalibrationError
    | Fvd
    | Motion
    | Kept
    | KeptClass
    | FrameSimilarity,
    Field(discriminator="kind"),
]
METRICS: dict[str, Callable[[], Metric]] = {
    cls.model_fields["kind"].default: cls for cls in get_args(get_args(AnyMetric)[0])
}


def metrics_by_name(names: Sequence[str], options: Mapping[str, Mapping[str, Any]] | None = None) -> list[Metric]:
    """The metrics of these names, in order, each once. Raises UserError for an unknown name, option or value.

    options: by metric, those that differ from the defaults.
    """
    chosen: dict[str, Callable[[], Metric]] = {}
    for name in (n.strip().lower() for n in names):
        if name not in METRICS:
            raise UserError(f"--metrics: '{name}' is not a metric", did_you_mean(name, METRICS))
        chosen[name] = METRICS[name]
    if not chosen:
        raise UserError("--metrics: names no metric", did_you_mean("", METRICS))
    for name in options or {}:
        if name not in chosen:
            problem = f"--set metrics.{name}: '{name}' is not among --metrics {','.join(chosen)}"
            raise UserError(problem, did_you_mean(name, chosen) if name not in METRICS else f"add {name} to --metrics")
    return _with_options(chosen, {name: dict(given) for name, given in (options or {}).items()})


def _with_options(chosen: Mapping[str, Callable[[], Metric]], options: Mapping[str, dict[str, Any]]) -> list[Metric]:
    """Validated as one tree, as a preset is, so that errors name the whole key."""
    kinds: dict[str, Any] = {name: (cls, cls()) for name, cls in chosen.items()}
    inner = create_model("Chosen", __base__=Config, **kinds)
    tree = {"metrics": options}
    model = create_model("Tree", __base__=Config, metrics=(inner, inner()))
    try:
        found = model.model_validate(tree)
    except ValidationError as error:
        raise explain(
            error, tree, model, "fid", [f"metrics.{m}.{key}" for m in options for key in options[m]]
        ) from None
    return [getattr(found.metrics, name) for name in chosen]  # type: ignore[attr-defined]
