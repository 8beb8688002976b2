"""The work of `diffcli fid`: its metrics, sides and extractors, with samples of a checkpoint as one of the sides."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diffcli.config import ImageShape, UserError, quoted
from diffcli.engine.distributed import Group
from diffcli.engine.draw.clips.given_clips import reads_frames
from diffcli.engine.draw.pictured.controls import led
from diffcli.engine.draw.reconstruction import check_idle
from diffcli.engine.draw.request import Request
from diffcli.engine.draw.rows import row_fields
from diffcli.engine.draw.sample import Model, SampleOptions, load_model, request
from diffcli.engine.score import bound, generated
from diffcli.engine.score.cache import cache_folder
from diffcli.engine.score.checks import OPTION, metric_options
from diffcli.engine.score.compared import FRAMING, check_compared, check_unused, without_model
from diffcli.engine.score.evaluate import evaluate
from diffcli.engine.score.features import extractor_for
from diffcli.engine.score.onepass import Watch, share
from diffcli.engine.score.pairs.drawn_pairs import DrawnRows, Maker, deriving, fitted, paired, pairs, pictured
from diffcli.engine.score.pairs.followed import Following, with_enlarged
from diffcli.engine.score.pairs.pair_scores import PairScores
from diffcli.engine.score.pairs.reconstructed import floors_beside, originals, reconstructions, too_few
from diffcli.engine.score.pairs.regressed import Enlargements
from diffcli.engine.score.report import Report
from diffcli.engine.score.segmented import annotated_side, counted, mask_scores, told_by
from diffcli.engine.score.sides import Side, chosen_rows, own_side, resolve, spread
from diffcli.engine.score.sight.viewed import check_named, over_clips, without_network
from diffcli.engine.score.translated import Translation, held_out
from diffcli.engine.stage import StageModel
from diffcli.metrics.extractor import Extractor
from diffcli.metrics.metric import Metric, Role
from diffcli.metrics.overlap import EXTRACTOR
from diffcli.metrics.scores import METRICS, metrics_by_name
from diffcli.tasks.super_resolution import SuperResolutionTask


@dataclass(frozen=True)
class Scoring:
    """The options of the command. sides: A B, or none if samples of `ckpt` are compared with `ref`."""

    sides: Sequence[str]
    ckpt: Path | None
    ref: str | None
    sampling: SampleOptions  # overrides: those of metrics among them
    names: Sequence[str]  # of metrics
    features: str | None  # None is inception
    weights: Path | None
    ema: bool
    floors: bool = True  # whether to compute the floors of a first stage or of enlarging
    mean_of: int = 1  # samples whose mean is scored
    ensemble: int | None = None  # masks of an image; None is what the model needs

    @cached_property
    def options(self) -> SampleOptions:
        """The sampling options without those of metrics."""
        kept = tuple(item for item in self.sampling.overrides if not item.startswith(OPTION))
        return self.sampling.model_copy(update={"overrides": kept})

    @cached_property
    def metrics(self) -> list[Metric]:
        """The metrics with their options. Raises UserError."""
        return metrics_by_name(self.names, metric_options(self.sampling.overrides))

    @cached_property
    def extractors(self) -> dict[str, list[str]]:
        """The names of the extractors that the metrics need, each with the metrics that need it."""
        needed: dict[str, list[str]] = {}
        for metric in self.metrics:
            for name in dict.fromkeys(need.extractor for need in metric.needs):
                needed.setdefault(name, []).append(metric.kind)
        return needed

    def check(self) -> None:
        """Raises UserError for options that contradict each other, before anything is loaded."""
        self._check_model()
        check_named(self.metrics, self.features)
        self._check_idle()
        check_compared(self.sides, self.ckpt, self.ref)
        if self.ckpt is None:
            check_unused(self.sides, self.options)

    def _check_framing(self, what: str) -> None:
        """Refuses these options if no images of a model are drawn."""
        for flag, name in FRAMING.items():
            value = getattr(self.options, name)
            if value is not None and value is not False:
                raise UserError(f"{flag if value is True else f'{flag} {value}'}: {what}", f"leave {flag} out")

    def _check_model(self) -> None:
        """Checks that metrics which evaluate a model have one, of the right kind for all of them."""
        names = ",".join(metric.kind for metric in self.metrics)
        for alone, who, lacks in (
            ("translation", "a prior", "compares images, and a prior draws none"),
            ("segmentation", "a model that tells masks", "does not look at masks"),
        ):
            kinds = self.extractors.get(alone)
            if kinds and len(self.extractors) > 1:
                other = next(metric.kind for metric in self.metrics if metric.kind not in kinds)
                ours = [kind for kind, metric in METRICS.items() if metric().needs[0].extractor == alone]
                raise UserError(f"--metrics {names}: {other} {lacks}", f"choose among {', '.join(ours)}")
            if self.ckpt is None and kinds:
                raise without_model(names, who)
        if self.ckpt is None and {"bound", "reconstruction", "condition"} & self.extractors.keys():
            raise without_model(names, "a model")
        if of_pairs := self.extractors.get("reconstruction"):
            for kind in self.extractors.get("bound", ()):
                problem = f"--metrics {names}: {kind} is of a diffusion model, {of_pairs[0]} of a first stage or of drawn pairs"
                raise UserError(problem, f"leave out {kind} or {of_pairs[0]}")

    def _check_idle(self) -> None:
        """Refuses options without effect on any of these metrics."""
        if self.ensemble is not None and "segmentation" not in self.extractors:
            problem = f"--ensemble {self.ensemble} with --metrics {','.join(self.names)}: they do not compare masks"
            raise UserError(problem, "leave --ensemble out, or ask for dice, iou, ged, hm_iou or ece")
        if self.mean_of > 1 and not {"reconstruction", "condition"} & self.extractors.keys() - {"features"}:
            problem = f"--mean-of {self.mean_of} with --metrics {','.join(self.names)}: they do not compare pairs"
            raise UserError(problem, "leave --mean-of out, or ask for psnr, ssim or lpips")
        if self.mean_of > 1 and (others := self.extractors.get("features")):
            problem = f"--mean-of {self.mean_of} with --metrics {others[0]}: a mean is smoother than any sample"
            raise UserError(problem, f"score {others[0]} without --mean-of")
        if "features" in self.extractors:
            return
        names, options = ",".join(metric.kind for metric in self.metrics), self.options
        idle: dict[str, object] = {"--features": self.features, "--weights": self.weights}
        if "bound" in self.extractors:
            bound.check_options(options)
            self._check_framing("the bound is of whole images of the trained size")
        elif "motion" not in self.extractors:
            idle |= {"--class": options.labels, "--prior": options.prior}
        for flag, value in idle.items():
            if value is not None:
                problem = f"{flag} {value} with --metrics {names}: it has no effect on them"
                raise UserError(problem, f"leave {flag} out")

    def run(self, group: Group, watch: Watch | None = None) -> Report | None:
        """The report, on the leading process; the others do their share and return None."""
        if self.ckpt is None:
            samples, reference = map(resolve, self.sides)
            return self._evaluated({"samples": samples, "reference": reference}, {}, group, watch, {})
        options = self.options
        exact = "bound" in self.extractors and options.precision == "auto"  # a sum of many small terms
        precision = "fp32" if exact else options.precision
        how: dict[str, Any] = {name: getattr(options, name) for name in ("base", "loras", "embeddings")}
        loaded = load_model(self.ckpt, group.device, self.ema, options.overrides, precision, options.compile, **how)
        model, sampling = led(loaded, self.sampling)
        return dataclasses.replace(self, sampling=sampling)._of_model(model, group, watch)

    def _of_model(self, model: Model, group: Group, watch: Watch | None) -> Report | None:
        """Scores of a loaded model."""
        options = self.options
        about = {"checkpoint": f"{model.path} (step {model.step})", "ema": model.ema}
        about |= {key: model.describe()[key] for key in ("precision", "compiled")}
        about |= {"loras": ", ".join(f"{e['path']}:{e['scale']:g}" for e in model.loras)} if model.loras else {}
        about |= {"embeddings": ", ".join(e["token"] for e in model.embeddings)} if model.embeddings else {}
        if metrics := self.extractors.get("translation"):
            self._check_framing(f"{model.path} is a prior, which draws no images")
            whole = held_out(model, self.ref)
            reference = spread(whole, options.n)
            about |= chosen_rows(whole, reference)
            translation = Translation(model, self.options, ",".join(metrics))
            extractors: dict[str, Extractor] = {"translation": translation}
            return self._evaluated({"reference": reference}, extractors, group, watch, about)
        if "segmentation" in self.extractors:
            return self._of_masks(model, group, watch, about)
        if model.preset.task.kind == "autoencoder":
            return self._of_first_stage(model, group, watch, about)
        chosen = [*self.extractors.get("reconstruction", ()), *self.extractors.get("condition", ())]
        if chosen and not pictured(model):
            problem = f"--metrics {','.join(chosen)}: {model.path} is {model.preset.task.noun}, no first stage, and draws under "
            hint = "give the run of a first stage, such as that of the preset mnist-vae, or of a model that pictures condition"
            raise UserError(f"{problem}no picture", hint)
        in_pairs = chosen or isinstance(model.task, SuperResolutionTask)
        return self._of_pairs(model, group, watch, about) if in_pairs else self._of_images(model, group, watch, about)

    def _of_masks(self, model: Model, group: Group, watch: Watch | None, about: dict[str, Any]) -> Report | None:
        """Scores of the masks that a model predicts for images."""
        self._check_framing(f"{model.path} predicts masks of whole images")
        whole = annotated_side(model, self.ref)
        reference = spread(whole, self.options.n)
        scores = mask_scores(model, self.options, self.metrics, reference, self.ensemble)
        size = scores.seg.at_once(self.options.batch_size)
        about = about | chosen_rows(whole, reference) | told_by(scores)
        report = self._evaluated({"reference": reference}, {EXTRACTOR: scores}, group, watch, about, size)
        scores.seg.agree(group)
        return report and dataclasses.replace(report, details={**report.details, **counted(scores)})

    def _of_first_stage(self, model: Model, group: Group, watch: Watch | None, about: dict[str, Any]) -> Report | None:
        """Scores of reconstructions against their originals."""
        check_idle(model, self.options)
        if metrics := [*self.extractors.get("bound", ()), *self.extractors.get("condition", ())]:
            problem = f"--metrics {','.join(metrics)}: {model.path} is a first stage, no diffusion model"
            raise UserError(problem, "choose among psnr, ssim, lpips and fid")
        stage = StageModel(model)
        whole = originals(model, self.ref)
        reference = spread(whole, self.options.n)
        about = about | chosen_rows(whole, reference)
        sides: dict[Role, Side] = {"reference": reference, "samples": reconstructions(stage, reference)}
        extractors: dict[str, Extractor] = {}
        if "reconstruction" in self.extractors:
            extractors["reconstruction"] = PairScores(self.metrics, group.device)
        report = self._evaluated(sides, extractors, group, watch, about)
        if report is None or report.samples is None or report.samples.shape is None:
            return report
        shape = report.samples.shape
        details, notes = {**report.details, **stage.describe(shape[1:])}, too_few(whole, self.options.n)
        report = dataclasses.replace(report, details=details, warnings=[*report.warnings, *notes])
        return self._with_floors(report, stage, reference, shape, watch) if self.floors else report

    def _with_floors(
        self, report: Report, stage: StageModel, reference: Side, shape: ImageShape, watch: Watch | None
    ) -> Report:
        """The same report with the floors of its psnr; on the leading process."""
        if all(result.metric.kind != "psnr" for result in report.results):
            return report
        found, notes = floors_beside(stage, self.ref, reference, shape, cache_folder(), watch)
        return report.with_floors({"psnr"}, found, notes)

    def _of_pairs(self, model: Model, group: Group, watch: Watch | None, about: dict[str, Any]) -> Report | None:
        """Scores of images conditioned on pictures, against the originals of these pictures."""
        whole = paired(model, self.ref)
        reference = spread(whole, self.options.n)
        about |= chosen_rows(whole, reference)
        req: Request | None = None
        make: Maker
        if isinstance(model.task, SuperResolutionTask):
            make = Enlargements(model, model.task, self.options, self.mean_of)
        else:
            req = request(model, self.options.model_copy(update={"n": reference.size}), reference)
            make = DrawnRows(req, self.mean_of)
            about |= {**generated.describe(req), "mean_of": self.mean_of}
        extractors: dict[str, Extractor] = {}
        if "reconstruction" in self.extractors:
            extractors["reconstruction"] = PairScores(self.metrics, group.device)
        following = Following(model, self.metrics)
        if following.derived:
            extractors["condition"] = following
        samples = pairs(make, model, reference, following.fields)
        report = self._evaluated({"reference": reference, "samples": samples}, extractors, group, watch, about)
        if req is not None:
            req.tally.agree(group)
        if report is None:
            return None
        report.warnings.extend(too_few(whole, self.options.n))
        if req is not None and about["nfe"] is None:
            report = dataclasses.replace(report, details={**report.details, "nfe": int(req.tally)})
        return with_enlarged(report, model, reference, watch) if self.floors else report

    def _of_images(self, model: Model, group: Group, watch: Watch | None, about: dict[str, Any]) -> Report | None:
        """Scores of a model that draws images."""
        needed = row_fields(model) or reads_frames(model)
        conditions = deriving(model, fitted(model, self._reference(model), self.ref)) if needed else None
        req = request(model, self.options, conditions)
        sides: dict[Role, Side] = {"reference": conditions or self._reference(model)}
        self._check_pictures(model, sides["reference"])
        extractors: dict[str, Extractor] = {}
        if "bound" in self.extractors:
            mine = share(min(req.n, sides["reference"].size or 0), req.batch_size, group)
            shown = watch if group.leads else None
            extractors["bound"] = bound.VariationalBound(req, self.options.guidance, shown, mine)
        if any(need.side == "samples" for metric in self.metrics for need in metric.needs):
            sides["samples"] = generated.samples(req)
            about |= generated.describe(req)
        report = self._evaluated(sides, extractors, group, watch, about)
        req.tally.agree(group)
        if report is None:
            return None
        if "samples" not in sides:
            return report
        report.warnings.extend(req.notes())
        nfe = int(req.tally) if about["nfe"] is None else about["nfe"]  # counted while the images were drawn
        return dataclasses.replace(report, details={**report.details, "nfe": nfe})

    def _check_pictures(self, model: Model, reference: Side) -> None:
        """Refuses to compare pictures of another field with images, since features are made for images."""
        field = model.preset.task.models
        spec = None if field is None or field == "image" else reference.fields.get(field)
        if "features" in self.extractors and spec is not None and spec.kind != "clip":
            raise UserError(
                f"{model.path} draws the field '{field}', but features compare them with the images of {reference.name}",
                f"draw some, `diffcli sample --ckpt {quoted(model.path)} --out drawn`, "
                "and score them: `diffcli fid drawn FOLDER`",
            )

    def _evaluated(
        self,
        sides: Mapping[Role, Side],
        extractors: dict[str, Extractor],
        group: Group,
        watch: Watch | None,
        details: Mapping[str, Any],
        size: int | None = None,
    ) -> Report | None:
        """The descriptions of all extractors for the details, without `features`, which have keys of their own."""
        details = {**details, **{k: v for extractor in extractors.values() for k, v in extractor.describe().items()}}
        extractors = without_network(self.extractors) | extractors
        if "features" in self.extractors and any(side.statistics is None for side in sides.values()):
            chosen = extractor_for(self.features or "inception", self.weights, group.device)
            extractors = {"features": over_clips(chosen, sides.values())} | extractors
        size = size or self.options.batch_size
        return evaluate(self.metrics, sides, extractors, group, batch_size=size, watch=watch, details=details)

    def _reference(self, model: Model) -> Side:
        """--ref, or else the training data of the model; for a bound, images are resized as in training."""
        if not self.ref:
            return own_side(model, "train")
        return (
            resolve(self.ref, model.preset.data.size, always=True) if "bound" in self.extractors else resolve(self.ref)
        )
