"""A summary of scores as a table for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from maskmed_zoo.errors import escaped
from maskmed_zoo.evaluation import aggregate, calibration
from maskmed_zoo.evaluation.metrics import DEFAULT, Metric, metrics
from maskmed_zoo.evaluation.metrics.objects import COUNTS, DEFINITION, MEANS


def score_table(summary: Mapping[str, Any], metric: Metric | None = None) -> Table:
    """One row per label of a `summarize` result (of Dice by default): mean, its interval where there are enough cases,
    sample SD, cases scored and cases absent.

    Cases in which the label was missed, was false or was not annotated follow where there are any. The last two rows
    are the mean over labels and the mean over cases; a value that does not exist is shown as –.
    """
    metric = metric or metrics()[DEFAULT]
    labels = summary["labels"]
    counts = ("n", *(count for count in aggregate.COUNTS if summary[count] or count == "absent"))
    table = Table(title=f"{metric.title}, {metric.unit}" if metric.unit else metric.title)
    table.add_column("label")
    over_cases = summary["over_cases"]
    has_intervals = any(row["interval"] for row in (over_cases, *labels.values()))
    for heading in ("mean", *(["95 %"] if has_intervals else []), "sd", *counts):
        table.add_column(heading, justify="right")

    number = _number_of(metric)

    def mean(value: float | None, found: Mapping[str, Any] | None) -> list[str]:
        ends = found["interval"] if found else None
        return [number(value), *([_interval(ends, metric)] if has_intervals else [])]

    for name, row in labels.items():
        numbers = [*mean(row["mean"], row), number(row["std"])]
        table.add_row(name, *numbers, *(str(row[count]) for count in counts))
    table.add_section()
    scored = sum(row["n"] > 0 for row in labels.values())
    table.add_row("mean over labels", *mean(summary[f"mean_{metric.name}_over_labels"], None), "", str(scored))
    scored = sum(case["mean"] is not None for case in summary["cases"])
    totals = (str(summary[count]) for count in counts[1:])
    table.add_row("mean over cases", *mean(summary[f"mean_{metric.name}"], over_cases), "", str(scored), *totals)
    return table


def distribution_line(summary: Mapping[str, Any], metric: Metric | None = None) -> str:
    """Median, quartiles and worst cases of the cases' means."""
    found, means = summary["over_cases"], {case["case"]: case["mean"] for case in summary["cases"]}
    if found["median"] is None:
        return "No case has a score."
    number = _number_of(metric or metrics()[DEFAULT])
    median, q1, q3 = (number(found[key]) for key in ("median", "q1", "q3"))
    worst = ", ".join(f"{escaped(case)} {number(means[case])}" for case in found["worst"])
    return f"Means of cases: median {median}, quartiles {q1} and {q3}; worst: {worst}."


def remarks(summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What holds for several tables of metrics by name, each once: what intervals are and are worth, and what a label
    gets that one map alone has, or neither.
    """
    rows = [row for found in summaries.values() for row in (found["over_cases"], *found["labels"].values())]
    lines = ["95 %: interval of the mean over other patients."] if any(row["interval"] for row in rows) else []
    lines += dict.fromkeys(found["interval_warning"] for found in summaries.values() if found["interval_warning"])
    of: dict[str, list[str]] = {}
    for name, found in summaries.items():
        metric = metrics()[name]
        if found["rules"].endswith(metric.absence):
            of.setdefault(metric.absence, []).append(metric.title)
    return [*lines, *(f"{', '.join(titles)}: {rule}" if len(of) > 1 else rule for rule, titles in of.items())]


def _meaning(summary: Mapping[str, Any], metric: Metric) -> str:
    """The metric's rules, but for what `remarks` says."""
    return summary["rules"].removesuffix(metric.absence).rstrip()


def object_table(summary: Mapping[str, Any]) -> Table:
    """One row per label of a `summarize_objects` result, and their mean and total."""
    table = Table(title="Objects")
    table.add_column("label")
    for heading in (*MEANS, *COUNTS):
        table.add_column(heading.replace("_", " "), justify="right")
    for name, row in summary["labels"].items():
        table.add_row(name, *(_number(row[key]) for key in MEANS), *(str(row[key]) for key in COUNTS))
    table.add_section()
    table.add_row("mean, total", *(_number(summary[key]) for key in MEANS), *(str(summary[key]) for key in COUNTS))
    return table


def calibration_table(summary: Mapping[str, Any]) -> Table:
    """One row per label of a `summarize_calibration` result, below that of each voxel's most probable label."""
    table = Table(title="Calibration, voxels of all cases together")
    table.add_column("label")
    for heading in ("ece", "brier", "voxels"):
        table.add_column(heading, justify="right")
    for name, row in calibration.curves(summary).items():
        table.add_row(name, _significant(row["ece"]), _significant(row["brier"]), str(row["voxels"]))
    return table


def fold_table(summary: Mapping[str, Any]) -> Table:
    """One row per fold of a study: its cases and their means, below it those of all cases together."""
    wanted = [metrics()[name] for name in (DEFAULT, *summary.get("metrics", {}))]
    table = Table(title="Means over cases, fold by fold")
    table.add_column("fold")
    for heading in ("cases", *(metric.title for metric in wanted)):
        table.add_column(heading, justify="right")
    for row in summary["folds"]:
        values = (_number_of(metric)(row[f"mean_{metric.name}"]) for metric in wanted)
        table.add_row(str(row["fold"]), str(row["cases"]), *values)
    table.add_section()
    together = {DEFAULT: summary, **summary.get("metrics", {})}
    values = (_number_of(metric)(together[metric.name][f"mean_{metric.name}"]) for metric in wanted)
    table.add_row("all cases", str(len(summary["cases"])), *values)
    return table


def tables(summary: Mapping[str, Any]) -> list[RenderableType]:
    """A `score_table` for each metric, its `distribution_line` and meaning, the `remarks`, and what else was scored."""
    scores = {DEFAULT: summary, **summary.get("metrics", {})}
    shown: list[RenderableType] = []
    for name, table in scores.items():
        metric = metrics()[name]
        shown += [score_table(table, metric), distribution_line(table, metric), f"{_meaning(table, metric)}\n"]
    shown.append("\n".join(remarks(scores)) + "\n")
    if "instances" in summary:
        shown += [object_table(summary["instances"]), f"Objects: {DEFINITION}\n"]
    if "folds" in summary:
        shown += [fold_table(summary), f"Folds: {summary['folds_definition']}\n"]
    if "calibration" in summary:
        shown += [calibration_table(summary["calibration"]), f"Calibration: {calibration.DEFINITION}\n"]
    return shown


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:z.4f}"


def _significant(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _number_of(metric: Metric) -> Callable[[float | None], str]:
    """Scores of probabilities are far below .0001 for a small organ: most voxels are background and known to be."""
    return _significant if metric.from_probabilities else _number


def _interval(ends: list[float] | None, metric: Metric) -> str:
    form = ".3g" if metric.from_probabilities else "z.3f"
    return "" if ends is None else f"{ends[0]:{form}} to {ends[1]:{form}}"
