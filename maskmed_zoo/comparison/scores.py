"""Scores as `evaluate` gives and writes them, checked in everything that a comparison uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from maskmed_zoo.errors import DataError
from maskmed_zoo.evaluation.metrics import DEFAULT, Metric
from maskmed_zoo.evaluation.metrics import metrics as known_metrics
from maskmed_zoo.evaluation.statistics.sample import Scores
from maskmed_zoo.files import read_json

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
LARGEST = 1e15
"""In any unit; the squares of larger scores could not be added up."""
_VALUES = TypeAdapter(dict[str, float | None], config=_STRICT)


class _Case(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")

    case: str
    mean: float | None
    unannotated: list[str]
    missed: list[str] = []
    false: list[str] = []
    patient: str | None = None
    reference: str | None = None


class _Table(BaseModel):
    model_config = _STRICT

    unit: str
    higher_is_better: bool
    """Checked against the metric's."""
    rules: str
    cases: list[_Case]
    unpredicted: list[str] = []
    """Of the document alone."""


@dataclass(frozen=True)
class MetricScores:
    """One metric's scores of a run: `overall`, each case's mean over its labels, and `labels`, by label name.

    `missed` and `false` count the cases in which only the reference, or only the prediction, has a label, by its name.
    """

    rules: str
    overall: Scores
    labels: dict[str, Scores]
    missed: Counter[str]
    false: Counter[str]


@dataclass(frozen=True)
class RunScores:
    """All scores of a run. `place` is where they are from.

    `unpredicted` are the cases that were scored without a prediction, and `missed_there` counts their missed labels.
    `references` (checksum of the reference), `patients` and `unannotated` (names of labels) are by case; the first two
    hold those cases of which they are known.
    """

    place: str
    metrics: dict[str, MetricScores]
    references: dict[str, str]
    patients: dict[str, str]
    unannotated: dict[str, frozenset[str]]
    unpredicted: list[str]
    missed_there: int

    @property
    def cases(self) -> list[str]:
        """Their names."""
        return list(self.unannotated)

    @property
    def labels(self) -> list[str]:
        """Names of the labels that are scored."""
        return list(next(iter(self.metrics.values())).labels)


def read_scores(path: Path, wanted: Sequence[Metric]) -> tuple[dict[str, Any], RunScores]:
    """A file of `evaluate`, and its scores; raises `DataError` for one that is missing or holds something else."""
    document = read_json(path)
    return document, scores_of(document, str(path), wanted)


def scores_of(document: Any, place: str, wanted: Sequence[Metric]) -> RunScores:
    """The scores of the `wanted` metrics in a summary of `evaluate`, or of all that it has where none are wanted.

    Metrics that this version does not know are left out. Raises `DataError` for a document of another form, without
    cases or labels, with a case twice, with a score that its metric cannot have, or with tables of other cases or
    labels, and for a wanted metric that it does not have.
    """
    try:
        tables: dict[str, Any] = {DEFAULT: document, **document.get("metrics", {})}
        names = [metric.name for metric in wanted] or [name for name in tables if name in known_metrics()]
        for name in names:
            if name not in tables:
                known = ", ".join(tables)
                raise DataError(
                    f"{place}: no scores of '{name}', only of {known}; evaluate again with --metrics {name}, or give "
                    f"--ref, which scores all anew"
                )
        metrics = {name: _metric(tables[name], known_metrics()[name]) for name in names}
        table = _Table.model_validate(document)
        cases, unpredicted = table.cases, set(table.unpredicted)
        if not unpredicted <= {case.case for case in cases}:
            raise ValueError  # caught below
    except (ValidationError, ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
        raise DataError(f"{place}: no scores as 'evaluate' of this version writes them; evaluate again") from error
    unannotated = {case.case: frozenset(case.unannotated) for case in cases}
    found = RunScores(
        place,
        metrics,
        {case.case: case.reference for case in cases if case.reference},
        {case.case: case.patient for case in cases if case.patient is not None},
        unannotated,
        [case.case for case in cases if case.case in unpredicted],
        sum(len(case.missed) for case in cases if case.case in unpredicted),
    )
    if not cases or not found.labels:
        raise DataError(f"{place}: no cases or no labels are scored; there is nothing to compare")
    for name, metric in metrics.items():
        if list(metric.overall) != found.cases or list(metric.labels) != found.labels:
            raise DataError(f"{place}: '{name}' is of other cases or labels than '{DEFAULT}'; evaluate again")
    return found


def _metric(table: Any, metric: Metric) -> MetricScores:
    """Raises `ValueError` for a table of another form, with a case twice, without a score of some label, with a score
    that the metric cannot have, or in another unit or direction.
    """
    checked = _Table.model_validate(table)
    values = {case.case: _VALUES.validate_python((case.model_extra or {})[metric.name]) for case in checked.cases}
    labels = list(next(iter(values.values()), {}))
    if len(values) != len(checked.cases) or any(list(row) != labels for row in values.values()):
        raise ValueError
    low, high = metric.limits[0], min(metric.limits[1], LARGEST)
    scores = [*(case.mean for case in checked.cases), *(score for row in values.values() for score in row.values())]
    if any(score is not None and not low <= score <= high for score in scores):
        raise ValueError
    if (checked.unit, checked.higher_is_better) != (metric.unit, metric.higher_is_better):
        raise ValueError
    by_label: dict[str, Scores] = {label: {case: row[label] for case, row in values.items()} for label in labels}
    missed, false = (
        Counter(label for case in checked.cases for label in getattr(case, state)) for state in ("missed", "false")
    )
    return MetricScores(checked.rules, {case.case: case.mean for case in checked.cases}, by_label, missed, false)


def common_metrics(runs: Sequence[RunScores]) -> list[str]:
    """Metrics that all have, in the order of the first."""
    return [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]


def check_alike(runs: Sequence[RunScores]) -> None:
    """Raise `DataError` unless all are of the same cases, labels, references, annotated labels and rules of metrics,
    and none contradicts another about a case's patient.
    """
    first = runs[0]
    patients, references = dict(first.patients), dict(first.references)
    for other in runs[1:]:
        where = f"{other.place} and {first.place}"
        for ours, theirs in ((first, other), (other, first)):
            lacking = [case for case in ours.cases if case not in theirs.unannotated]
            if lacking:
                raise DataError(
                    f"{theirs.place}: lacks {some(lacking)} of {ours.place}; compare methods on the same cases"
                )
            names = [label for label in ours.labels if label not in theirs.labels]
            if names:
                raise DataError(
                    f"{theirs.place}: no scores of {some(names, 'label')} of {ours.place}; score the same labels"
                )
        remedy = "score both against the same references (--ref)"
        _check_same(where, "reference", remedy, references, other.references)
        remedy = "score both with the same groups.json"
        _check_same(where, "patient", remedy, patients, other.patients)
        patients |= other.patients
        references |= other.references
        remedy = "score both with the same annotated.json"
        _check_same(where, "set of annotated labels", remedy, first.unannotated, other.unannotated)
        for name in common_metrics(runs):
            if first.metrics[name].rules != other.metrics[name].rules:
                raise DataError(f"{where}: '{name}' is defined otherwise (other settings?); score both alike")


def _check_same(where: str, what: str, remedy: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    different = [case for case, value in ours.items() if case in theirs and theirs[case] != value]
    if different:
        raise DataError(f"{where}: another {what} in {some(different)}; {remedy}")


def some(names: Sequence[str], what: str = "case") -> str:
    """Up to three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what}{'' if len(names) == 1 else 's'} {', '.join(map(repr, names[:3]))}{more}"
