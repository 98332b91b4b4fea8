"""Methods on the same cases: means and differences with their intervals, tests, ranks, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from maskmed_zoo.comparison.costs import COSTS, costs_of
from maskmed_zoo.comparison.differences import DEFINITIONS, difference_row, with_holm
from maskmed_zoo.comparison.methods import Method, References, read_methods
from maskmed_zoo.comparison.notes import notes
from maskmed_zoo.comparison.scores import common_metrics
from maskmed_zoo.comparison.words import sentences
from maskmed_zoo.evaluation.mean import mean
from maskmed_zoo.evaluation.metrics import Metric, metrics
from maskmed_zoo.evaluation.statistics.coverage import shortfall
from maskmed_zoo.evaluation.statistics.interval import mean_interval
from maskmed_zoo.evaluation.statistics.ranks import rank_stability
from maskmed_zoo.evaluation.statistics.sample import Scores, common_cases, several_cases, spread, unpaired_cases

FORMAT = "maskmed-zoo comparison 1"


def compare(
    given: Mapping[str, Sequence[Path]], wanted: Sequence[Metric] = (), references: References | None = None
) -> dict[str, Any]:
    """A JSON-able comparison of methods by name, each of one or several runs; see `methods.read_methods`.

    Keys: `format`, `methods` (name, runs, costs, `unpredicted` cases), `cases`, `patients` (how many, where that is
    known), `labels`, `metrics` (by name: what `_compared` gives), `notes`, `definitions`. `wanted`: the metrics; none:
    all that every run has scores of.
    """
    methods = read_methods(given, wanted, references or References())
    runs = [run.scores for method in methods for run in method.runs]
    patients = {case: patient for run in runs for case, patient in run.patients.items()}
    compared = {name: _compared(methods, name, patients) for name in common_metrics(runs)}
    return {
        "format": FORMAT,
        "methods": [
            {"name": method.name, "runs": [run.scores.place for run in method.runs], "costs": costs_of(method.runs)}
            | {"unpredicted": sorted({case for run in method.runs for case in run.scores.unpredicted})}
            for method in methods
        ],
        "cases": runs[0].cases,
        "patients": len(set(patients.values())) if patients else None,
        "labels": runs[0].labels,
        "references_checked": all(set(run.references) == set(run.cases) for run in runs),
        "metrics": compared,
        "notes": notes(compared.values()),
        "definitions": DEFINITIONS | {f"costs.{key}": meaning for key, meaning in COSTS.items()},
    }


def _compared(methods: Sequence[Method], name: str, patients: Mapping[str, str]) -> dict[str, Any]:
    """One metric: of methods, of pairs of them over all labels and by label, and in words."""
    metric, first, over = metrics()[name], methods[0].runs[0].scores, "patient" if patients else "case"
    labels: list[str | None] = [None, *first.labels]
    scores = {label: {method.name: _scores(method, name, label) for method in methods} for label in labels}
    pairs = list(combinations([method.name for method in methods], 2))

    def rows(chosen: Sequence[str | None]) -> list[dict[str, Any]]:
        return with_holm(
            [difference_row(pair, label, scores[label], metric, patients) for pair in pairs for label in chosen]
        )

    overall = rows([None])
    means = {
        method.name: {"all": _mean(scores[None][method.name], metric, patients) | _counts(method, name, None)}
        | {
            "labels": {
                label: _mean(scores[label][method.name], metric, patients) | _counts(method, name, label)
                for label in first.labels
            }
        }
        for method in methods
    }
    ranks = rank_stability([*scores[None].values()], higher_is_better=metric.higher_is_better, patients=patients)
    return {
        "title": metric.title,
        "unit": metric.unit,
        "higher_is_better": metric.higher_is_better,
        "rules": first.metrics[name].rules,
        "methods": means,
        "ranks": None
        if ranks is None
        else {
            method.name: {"rank": rank, "shares": shares}
            for method, rank, shares in zip(methods, ranks.ranks, ranks.shares, strict=True)
        },
        "ranking_stable": None if ranks is None else ranks.stable,
        "differences": overall,
        "label_differences": rows(labels[1:]),
        "words": [
            {"first": row["first"], "second": row["second"]}
            | sentences(row, metric, {row[side]: means[row[side]]["all"] for side in ("first", "second")}, over)
            for row in overall
        ],
    }


def _scores(method: Method, name: str, label: str | None) -> list[Scores]:
    """Of each run, over all labels or of one."""
    found = [run.scores.metrics[name] for run in method.runs]
    return [metric.overall if label is None else metric.labels[label] for metric in found]


def _mean(runs: Sequence[Scores], metric: Metric, patients: Mapping[str, str]) -> dict[str, Any]:
    """Mean over runs of each run's mean over the cases all have scores of, its interval, and the spread over runs."""
    cases = common_cases(runs)
    means = [mean(run[case] for case in cases) for run in runs]
    interval = mean_interval(runs, patients, metric.limits)
    count = len({patients.get(case, case) for case in cases})
    return {
        "mean": mean(means),
        "interval": None if interval is None else list(interval),
        "interval_warning": None
        if interval is None
        else several_cases(len(cases), count) or shortfall("mean", count, len(runs)),
        "sd_over_seeds": spread(means),
        "cases": len(cases),
        "unpaired": unpaired_cases(runs),
        "seeds": len(runs),
    }


def _counts(method: Method, name: str, label: str | None) -> dict[str, int]:
    """Missed and false labels of all runs; over all labels also those of cases without a prediction, and these."""
    found = [run.scores.metrics[name] for run in method.runs]
    if label is not None:
        return {"missed": sum(one.missed[label] for one in found), "false": sum(one.false[label] for one in found)}
    return {
        "missed": sum(one.missed.total() for one in found),
        "false": sum(one.false.total() for one in found),
        "unpredicted": sum(len(run.scores.unpredicted) for run in method.runs),
        "missed_unpredicted": sum(run.scores.missed_there for run in method.runs),
    }
