"""A summary of scores as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def score_table(summary: Mapping[str, Any]) -> Table:
    """One row per label of a `summarize` result with mean Dice, sample SD, cases scored and cases absent.

    Cases in which the label was not looked for follow where there are any. The last two rows are the mean over labels
    and the mean over cases; a value that does not exist is shown as –.
    """
    labels = summary["labels"]
    counts = ("n", "absent", *(["unannotated"] if summary["unannotated"] else []))
    table = Table(title="Dice")
    table.add_column("label")
    for heading in ("mean", "sd", *counts):
        table.add_column(heading, justify="right")
    for name, row in labels.items():
        table.add_row(name, _number(row["mean"]), _number(row["std"]), *(str(row[count]) for count in counts))
    table.add_section()
    scored = sum(row["n"] > 0 for row in labels.values())
    table.add_row("mean over labels", _number(summary["mean_dice_over_labels"]), "", str(scored))
    scored = sum(case["mean"] is not None for case in summary["cases"])
    totals = (str(summary[count]) for count in counts[1:])
    table.add_row("mean over cases", _number(summary["mean_dice"]), "", str(scored), *totals)
    return table


def object_table(summary: Mapping[str, Any]) -> Table:
    """One row per label of a `summarize_objects` result, and their mean and total."""
    table = Table(title="Objects")
    columns = ("pq", "sq", "rq", "lesion_dice", "f1")
    counts = ("tp", "fp", "fn", "found", "missed", "false")
    table.add_column("label")
    for heading in (*columns, *counts):
        table.add_column(heading.replace("_", " "), justify="right")
    for name, row in summary["labels"].items():
        table.add_row(name, *(_number(row[key]) for key in columns), *(str(row[key]) for key in counts))
    table.add_section()
    table.add_row("mean, total", *(_number(summary[key]) for key in columns), *(str(summary[key]) for key in counts))
    return table


def tables(summary: Mapping[str, Any]) -> list[Table]:
    """`score_table` and, where objects are told apart, `object_table`."""
    return [score_table(summary), *([object_table(summary["instances"])] if "instances" in summary else [])]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
