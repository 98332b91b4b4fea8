"""A row of a table of differences: two methods, over all labels or of one label, on the same cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maskmed_zoo.evaluation.metrics import Metric
from maskmed_zoo.evaluation.statistics.coverage import shortfall
from maskmed_zoo.evaluation.statistics.holm import holm
from maskmed_zoo.evaluation.statistics.paired import paired_difference
from maskmed_zoo.evaluation.statistics.sample import Scores, several_cases, unpaired_cases

TESTS = ("p", "p_mean", "p_methods")
"""Keys of a row that Holm's correction is made of."""
DEFINITIONS = {
    "mean": "mean over seeds of each run's mean over the cases that all runs of the method have scores of; over all "
    "labels: of each case's mean over its labels",
    "interval": "95 %: of a mean, by Student's t with Hall's correction of skewness over patients, within what scores "
    "can be; of a difference, by Student's t over patients. Over other patients where a side has one run; over other "
    "training runs too where each has several, with the variance between runs as a part of its own. Patients are cases "
    "where nothing tells of patients",
    "sd_over_seeds": "sample standard deviation over seeds of the mean; of a difference: of that between one run "
    "of each; null where a side has one run",
    "difference": "first minus second, over the cases that all runs of both have scores of, each averaged over seeds",
    "p": "two-sided Wilcoxon signed-rank test over patients: about these trained networks and other patients; "
    "p_holm is corrected by Holm over the pairs of methods, in the rows by label over pairs and labels. "
    "Nothing is corrected for how many metrics are looked at",
    "p_mean": "two-sided Student's t test of the mean difference over patients: about these trained networks too; null "
    "for one patient; p_mean_holm as p_holm",
    "p_methods": "two-sided test of the difference over patients and runs, with Satterthwaite's degrees of freedom: "
    "about the methods; null where a side has one run; p_methods_holm as p_holm",
    "better, equal, worse": "cases in which the first is better, equal or worse",
    "missed, false": "pairs of case and label that only the reference has, and only the prediction, summed over runs; "
    "what they weigh in a mean is said in the rules",
    "unpredicted": "cases without a prediction: of a method their names, of a mean how many, summed over runs; "
    "missed_unpredicted: how many of the missed labels are theirs",
    "unpaired": "cases that some runs alone have a score of, for instance where only one predicts a label that is not "
    "there; left out of the row",
    "ranks": "by the mean over the cases that all runs have scores of; shares: of bootstrap resamples, over patients "
    "and runs, in which a method has rank 1, 2, …; ranking_stable: in which all have their rank",
}


def difference_row(
    pair: tuple[str, str],
    label: str | None,
    scores: Mapping[str, Sequence[Scores]],
    metric: Metric,
    patients: Mapping[str, str],
) -> dict[str, Any]:
    """First minus second with its interval, p and counts; the numbers are null where no case has scores in both."""
    first, second = pair
    runs = scores[first], scores[second]
    found = paired_difference(*runs, patients)
    row: dict[str, Any] = {"first": first, "second": second, "label": label}
    if found is None:
        numbers = dict.fromkeys(("mean", "interval", "interval_warning", "sd_over_seeds", *TESTS))
        return (
            row
            | numbers
            | {
                "better": 0,
                "equal": 0,
                "worse": 0,
                "cases": 0,
                "patients": 0,
                "unpaired": unpaired_cases([*runs[0], *runs[1]]),
            }
            | {"seeds": [len(side) for side in runs]}
        )
    better, worse = (found.higher, found.lower) if metric.higher_is_better else (found.lower, found.higher)
    return row | {
        "mean": found.mean,
        "interval": None if found.interval is None else list(found.interval),
        "interval_warning": found.interval
        and (several_cases(found.cases, found.patients) or shortfall("difference", found.patients, min(found.seeds))),
        "sd_over_seeds": found.std,
        "p": found.p,
        "p_mean": found.p_mean,
        "p_methods": found.p_methods,
        "better": better,
        "equal": found.equal,
        "worse": worse,
        "cases": found.cases,
        "patients": found.patients,
        "unpaired": found.unpaired,
        "seeds": list(found.seeds),
    }


def with_holm(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with `p_holm`, `p_mean_holm` and `p_methods_holm`, corrected over all of them."""
    corrected = {f"{key}_holm": holm([row[key] for row in rows]) for key in TESTS}
    return [row | {key: values[index] for key, values in corrected.items()} for index, row in enumerate(rows)]
