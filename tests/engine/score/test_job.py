"""`diffcli fid` as a whole: metrics of several extractors in one call, their options, and the one report of all of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from diffcli.engine.score import npz
from diffcli.engine.score.report import SCHEMA
from tests.conftest import Cli

KEPT = Path(__file__).parent.parent.parent / "fixtures" / "format1"
ALWAYS = {"schema", "scores", "metrics", "extractors", "images", "reference", "warnings"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFCLI_CACHE", str(tmp_path / "cache"))


def fid(cli: Cli, *arguments: object) -> dict[str, Any]:
    done = cli("fid", *arguments, "--device", "cpu", "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def of_run(cli: Cli, metrics: str, *more: object) -> dict[str, Any]:
    reference = ("--ref", KEPT / "reference.npz", "--n", 12)
    return fid(cli, "--ckpt", KEPT / "diffusion", *reference, "--metrics", metrics, *more)


def test_metrics_of_several_extractors_are_scored_in_one_call(cli: Cli) -> None:
    features = ("--features", KEPT / "classifier")
    one, other = of_run(cli, "fid", *features), of_run(cli, "bpd")
    both = of_run(cli, "bpd,fid", *features, "--steps", 4)  # which the samples heed, and the bound does not
    assert both["scores"] == {**other["scores"], **one["scores"]}
    assert list(both["extractors"]) == ["features", "bound"]
    assert both["terms"] == other["terms"]
    assert both["extractors"]["bound"]["n"] == 12
    assert (both["images"]["n"], both["reference"]["n"], other["reference"]["n"]) == (12, 24, 12)
    assert (both["condition"], both["sampler"], both["features"]) == (
        other["condition"],
        one["sampler"],
        one["features"],
    )


def test_one_pass_over_a_side_feeds_every_metric(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, take = [], npz.take

    def counted(file: Any, dtype: Any, shape: tuple[int, ...]) -> Any:
        rows.append(shape[0] if len(shape) > 1 else 0)
        return take(file, dtype, shape)

    monkeypatch.setattr(npz, "take", counted)
    of_run(cli, "fid,kid,precision,recall,bpd", "--features", KEPT / "classifier", "--batch-size", 5)
    assert rows.count(5) == 4, rows
    assert sum(rows) == 24


def test_evaluations_that_are_counted_while_samples_are_drawn_are_reported(cli: Cli) -> None:
    report = of_run(cli, "is", "--features", KEPT / "classifier", "--sampler", "ode", "--steps", 3, "--guidance", 1)
    assert isinstance(report["nfe"], int)
    assert report["nfe"] >= 3


@pytest.mark.parametrize("metrics", ["fid", "bpd"])
def test_every_report_has_one_schema(cli: Cli, metrics: str) -> None:
    features = ("--features", KEPT / "classifier") if metrics == "fid" else ()
    report = of_run(cli, metrics, *features)
    assert report.keys() >= ALWAYS
    assert report["schema"] == SCHEMA
    assert list(report["metrics"]) == [metrics]
    assert (report["images"] is None) == (metrics == "bpd")
    assert report["reference"].keys() == {"name", "n"}


def test_options_of_metrics_change_scores_and_are_reported_where_they_differ(cli: Cli) -> None:
    sides = (KEPT / "reference.npz", "digits:test", "--features", KEPT / "classifier", "--metrics", "fid,kid")
    usual, other = fid(cli, *sides), fid(cli, *sides, "--set", "metrics.kid.subset_size=10")
    assert usual["metrics"] == {"fid": {}, "kid": {}}
    assert other["metrics"] == {"fid": {}, "kid": {"subset_size": 10}}
    assert other["scores"]["fid"] == usual["scores"]["fid"]
    assert other["scores"]["kid"] != usual["scores"]["kid"]
    assert fid(cli, *sides, "--set", "metrics.kid.subset_size=1000")["metrics"] == usual["metrics"]
    lines = cli("fid", *sides, "--set", "metrics.kid.subset_size=10", "--device", "cpu").out.splitlines()
    assert lines[1].startswith("kid ")
    assert lines[1].endswith("(subset_size 10)")


@pytest.mark.parametrize(
    ("metrics", "item", "words"),
    [
        ("kid", "metrics.kid.subset_sise=5", ("metrics.kid.subset_sise", "subset_size")),
        ("kid", "metrics.kid.subset_size=1", ("metrics.kid.subset_size is 1",)),
        ("kid", "metrics.kid.subset_size=[", ("metrics.kid.subset_size", "'['")),
        ("fid", "metrics.kid.subsets=5", ("'kid' is not among --metrics fid", "add kid")),
        ("kid", "metrics.kid=5", ("metrics.kid=5", "metrics.kid.subset_size=500")),
    ],
)
def test_options_that_no_metric_has_are_refused(cli: Cli, metrics: str, item: str, words: tuple[str, ...]) -> None:
    cli("fid", "digits:train", "digits:test", "--metrics", metrics, "--set", item).refused(*words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("digits:train", "digits:test", "--metrics", "fid,bpd"), ("--metrics fid,bpd needs a model", "--ckpt RUN")),
        (("digits:train", "digits:test", "--metrics", "cosine"), ("--metrics cosine needs a prior", "--ckpt RUN")),
        (("--ckpt", "RUN", "--metrics", "cosine,bpd"), ("bpd compares images", "choose among cosine, mse, retrieval")),
        (
            ("--ckpt", "RUN", "--metrics", "bpd", "--features", "inception"),
            ("--features inception", "leave --features out"),
        ),
        (("--ckpt", "RUN", "--metrics", "mse", "--prior", "y"), ("--prior y", "leave --prior out")),
        (("digits:train", "--metrics", "fid"), ("1 given",)),
    ],
)
def test_metrics_whose_extractors_nothing_can_give_are_refused(
    cli: Cli, trained: Path, arguments: tuple, words: tuple[str, ...]
) -> None:
    cli("fid", *(trained if word == "RUN" else word for word in arguments)).refused(*words)
