"""Scores of many cases to one summary.

Idea: an average means nothing without its definition, so the summary carries it in words. A label that was not
annotated in a case has no score there, whatever was predicted, and is counted apart.
Deviation from nnU-Net: its `foreground_mean` is our `mean_dice_over_labels`; `mean_dice` averages within cases first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import stdev
from typing import Any

from maskmed_zoo.errors import DataError
from maskmed_zoo.evaluation.calibration import summarize_calibration
from maskmed_zoo.evaluation.case import CaseScores, ScoredCase
from maskmed_zoo.evaluation.distribution import DEFINITION, distribution, interval_warning
from maskmed_zoo.evaluation.mean import mean
from maskmed_zoo.evaluation.metrics import DEFAULT, Metric, metrics
from maskmed_zoo.evaluation.metrics.objects import summarize_objects
from maskmed_zoo.labels import BACKGROUND, IGNORE
from maskmed_zoo.metric_settings import MetricSettings

COUNTS = ("absent", "missed", "false", "undefined", "unannotated")
"""Pairs of case and label that neither map has, only the reference, only the prediction, for which the metric has no
value although a map has the label, or that nobody annotated."""


def summarize_cases(
    cases: Sequence[ScoredCase],
    label_names: Sequence[str],
    wanted: Sequence[Metric],
    settings: MetricSettings | None = None,
) -> dict[str, Any]:
    """The summary of the default metric, whose `cases` tell patient and checksum of the reference too.

    Other metrics are under `metrics`, `instances` and `calibration` beside them, all settings under `metric_settings`.
    """
    patients = {case.identifier: case.patient for case in cases if case.patient is not None}
    tables = {
        metric.name: summarize([case.scores[metric.name] for case in cases], label_names, metric, settings, patients)
        for metric in wanted
    }
    summary = tables.pop(DEFAULT)
    for row, case in zip(summary["cases"], cases, strict=True):
        row |= {"patient": case.patient, "reference": case.reference}
    summary["metric_settings"] = (settings or MetricSettings()).model_dump(mode="json")
    if tables:
        summary["metrics"] = tables
    matches = {case.identifier: case.instances for case in cases if case.instances is not None}
    if matches:
        summary["instances"] = summarize_objects(matches, [name for name in label_names if name != BACKGROUND])
    calibrations = [case.calibration for case in cases if case.calibration is not None]
    if calibrations:
        summary["calibration"] = summarize_calibration(calibrations, label_names)
    return summary


def summarize(
    cases: Sequence[CaseScores],
    label_names: Sequence[str],
    metric: Metric | None = None,
    settings: MetricSettings | None = None,
    patients: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """A JSON-able summary of one metric (Dice by default), here called M, over the foreground labels `label_names`.

    Keys: `cases` (case, M, mean, and the labels unannotated, missed, false and absent), `labels` (name to mean, std, n,
    the counts and the `distribution`), `mean_M`, `mean_M_over_labels`, `over_cases`, the distribution behind mean_M,
    `interval_warning`, the sums of the counts `COUNTS`, `rules`, which say what a value is, `definition`, which
    adds how they are averaged, `unit` and `higher_is_better`. `patients` maps cases to patients, for the intervals.
    'background' and 'ignore' are not scored. Raises `DataError` if a case lacks a label's score altogether or two cases
    have one name.
    """
    metric = metric or metrics()[DEFAULT]
    names = [name for name in label_names if name not in (BACKGROUND, IGNORE)]
    settings = (settings or MetricSettings()).among(names)
    for case in cases:
        lacking = [name for name in names if name not in case.values and name not in case.unannotated]
        if lacking:
            raise DataError(f"case '{case.identifier}' has no score for {', '.join(lacking)}")
    if len({case.identifier for case in cases}) != len(cases):
        raise DataError("two cases to summarize have the same name")
    scored = [
        CaseScores(
            case.identifier,
            {name: None if name in case.unannotated else case.values[name] for name in names},
            case.unannotated & set(names),
            case.missed & set(names) - case.unannotated,
            case.false & set(names) - case.unannotated,
            case.absent & set(names) - case.unannotated,
        )
        for case in cases
    ]
    facts: dict[str, Any] = {"higher_is_better": metric.higher_is_better, "patients": patients, "within": metric.limits}
    labels = {
        name: _statistics(name, scored) | distribution({c.identifier: c.values[name] for c in scored}, **facts)
        for name in names
    }
    over_cases = distribution({c.identifier: c.mean for c in scored}, **facts)
    several = len({(patients or {}).get(c.identifier, c.identifier) for c in scored}) < len(scored)
    return {
        f"mean_{metric.name}": mean(case.mean for case in scored),
        f"mean_{metric.name}_over_labels": mean(label["mean"] for label in labels.values()),
        "over_cases": over_cases,
        "interval_warning": interval_warning([over_cases, *labels.values()], several=several),
        **{count: sum(label[count] for label in labels.values()) for count in COUNTS},
        "unit": metric.unit,
        "higher_is_better": metric.higher_is_better,
        "rules": metric.rules(settings),
        "definition": definition(metric, settings),
        "labels": labels,
        "cases": [
            {"case": c.identifier, metric.name: c.values, "mean": c.mean}
            | {"unannotated": sorted(c.unannotated), "missed": sorted(c.missed), "false": sorted(c.false)}
            | {"absent": sorted(c.absent)}
            for c in scored
        ],
    }


def definition(metric: Metric, settings: MetricSettings | None = None) -> str:
    """What the keys of a metric's summary mean."""
    name, title = metric.name, metric.title
    return (
        f"{metric.rules(settings)} mean_{name} is the mean over cases of each case's mean {title} over its scored "
        f"foreground labels; mean_{name}_over_labels is the mean over labels of each label's mean over those cases; a "
        f"label that was not annotated in a case is left out and counted in unannotated; std is the sample standard "
        f"deviation over cases; over_cases is about the cases' means; {DEFINITION}"
    )


def headline(summary: Mapping[str, Any]) -> float | None:
    """The one number of a summary by which runs are compared: the default metric, averaged within cases first."""
    return summary[f"mean_{DEFAULT}"]


def headline_by_case(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """The same of every case."""
    return {case["case"]: case["mean"] for case in summary["cases"]}


def patients_of(summary: Mapping[str, Any]) -> dict[str, str]:
    """Patient by case, of the cases of which that is known."""
    return {case["case"]: case["patient"] for case in summary["cases"] if case.get("patient") is not None}


def _statistics(name: str, cases: Sequence[CaseScores]) -> dict[str, Any]:
    values = [case.values[name] for case in cases if name not in case.unannotated]
    present = [value for value in values if value is not None]
    return {
        "mean": mean(present),
        "std": stdev(present) if len(present) > 1 else None,
        "n": len(present),
        "absent": sum(name in case.absent for case in cases),
        "missed": sum(name in case.missed for case in cases),
        "false": sum(name in case.false for case in cases),
        "undefined": sum(case.values[name] is None and name not in case.absent | case.unannotated for case in cases),
        "unannotated": len(cases) - len(values),
    }
