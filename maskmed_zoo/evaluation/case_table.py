"""Every score of a summary as a row of a CSV: what a spreadsheet or a statistician starts from."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from maskmed_zoo.errors import escaped
from maskmed_zoo.evaluation.metrics import DEFAULT
from maskmed_zoo.files import write_atomically

CASES = "evaluation.csv"
"""In a run's folder."""
COLUMNS = ("case", "patient", "label", "metric", "value", "state")
FORMULA = ("=", "+", "-", "@")
"""Characters with which a spreadsheet's formulas begin."""
STATES = ("unannotated", "missed", "false", "absent")
"""What may be said of a label in a case besides that it was scored."""


def rows(summary: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Row by row, metric after metric, with the keys `COLUMNS`; `value` is None where there is none.

    `state`: `scored`; `missed` and `false`, in the reference or the prediction alone, whose value is the metric's rule;
    `unpredicted`, missed in a case without a prediction; `absent` from both; `unannotated`; `undefined`, for which the
    metric has no value although both have the label.
    """
    patients = {case["case"]: case.get("patient") for case in summary["cases"]}
    unpredicted = set(summary.get("unpredicted", ()))
    for name, table in {DEFAULT: summary, **summary.get("metrics", {})}.items():
        for case in table["cases"]:
            for label, value in case[name].items():
                state = next(
                    (state for state in STATES if label in case[state]), "undefined" if value is None else "scored"
                )
                if state == "missed" and case["case"] in unpredicted:
                    state = "unpredicted"
                known = {"case": case["case"], "patient": patients[case["case"]], "label": label, "metric": name}
                yield known | {"value": value, "state": state}


def write_cases(summary: Mapping[str, Any], path: Path) -> None:
    """Write the rows as CSV; raises `OutputError` if that cannot be done."""
    write_atomically(path, lambda temporary: _write(summary, temporary))


def is_case_table(path: Path) -> bool:
    """Whether a file begins as one that `write_cases` wrote, and may be replaced."""
    with path.open("rb") as file:
        return file.read(200).startswith(",".join(COLUMNS).encode())


def _write(summary: Mapping[str, Any], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in rows(summary):
            writer.writerow(_text(cell) if isinstance(cell, str) else cell for cell in row.values())


def _text(cell: str) -> str:
    """In one line, and behind a quote where a spreadsheet would take it for a formula."""
    return f"{chr(39) if cell[:1] in FORMULA else ''}{escaped(cell)}"
