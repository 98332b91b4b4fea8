"""A summary of scores as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def score_table(summary: Mapping[str, Any]) -> Table:
    """One row per label of a `summarize` result with mean Dice, sample SD, cases scored and cases absent.

    The last two rows are the mean over labels and the mean over cases; a value that does not exist is shown as –.
    """
    labels = summary["labels"]
    table = Table(title="Dice")
    table.add_column("label")
    for heading in ("mean", "sd", "n", "absent"):
        table.add_column(heading, justify="right")
    for name, row in labels.items():
        table.add_row(name, _number(row["mean"]), _number(row["std"]), str(row["n"]), str(row["absent"]))
    table.add_section()
    scored = sum(row["n"] > 0 for row in labels.values())
    table.add_row("mean over labels", _number(summary["mean_dice_over_labels"]), "", str(scored), "")
    scored = sum(case["mean"] is not None for case in summary["cases"])
    table.add_row("mean over cases", _number(summary["mean_dice"]), "", str(scored), str(summary["absent"]))
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
