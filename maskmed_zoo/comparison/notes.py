"""What holds for all tables of a comparison, each sentence once: what its tests and intervals are worth."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from maskmed_zoo.evaluation.statistics.coverage import level_warning, told_apart
from maskmed_zoo.evaluation.statistics.sample import SEVERAL_CASES

FAMILY = "p is corrected for the pairs of one metric, by label for pairs and labels, and not for other metrics."


def notes(tables: Collection[Mapping[str, Any]]) -> list[str]:
    """Sentences about the compared metrics."""
    return [FAMILY, *dict.fromkeys(_notes(tables))]


def _notes(tables: Collection[Mapping[str, Any]]) -> Iterator[str]:
    rows = [row for table in tables for row in table["differences"] if row["mean"] is not None]
    simulated = [row for row in rows if row["patients"] == row["cases"]]
    patients = [row["patients"] for row in simulated if min(row["seeds"]) == 1]
    if patients and (words := told_apart(max(patients))):
        yield words
    for row in simulated:
        if row["p_methods"] is not None and (words := level_warning(min(row["seeds"]))):
            yield words
    for table in tables:
        methods = table["methods"].values()
        means = [found for method in methods for found in (method["all"], *method["labels"].values())]
        yield from _warnings("means", means)
        yield from _warnings("differences", [*table["differences"], *table["label_differences"]])


def _warnings(what: str, rows: list[Mapping[str, Any]]) -> Iterator[str]:
    """Of intervals that hold less than they say; one about patients is for all intervals and tests."""
    for warning in dict.fromkeys(row["interval_warning"] for row in rows if row["interval_warning"]):
        yield warning if warning == SEVERAL_CASES else f"Intervals of {what}: {warning}"
