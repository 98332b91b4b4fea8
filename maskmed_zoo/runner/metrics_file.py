"""`metrics.csv`: a row per epoch, for people, plots and tables; what training goes on from does not depend on it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from maskmed_zoo.errors import DataError
from maskmed_zoo.files import read_text

DICE = "validation_dice"
"""The column of the mean over labels; that of a label is `validation_dice/<label>`."""
SINCE_BEST = "validations_since_best"
"""The column of what `train.patience` counts."""


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write all rows, their columns in the order in which they come up first."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path, iterations_per_epoch: int) -> list[dict[str, str]]:
    """Rows in the order of their epochs; of a file that is missing or damaged what is left of it.

    A row that is cut off, or does not belong to so many `iterations_per_epoch`, is left out, and so are two that say
    different things about one epoch.
    """
    try:
        text = read_text(path)
    except DataError:
        return []
    found: dict[int, dict[str, str]] = {}
    refused: set[int] = set()
    for row in _rows(text[: text.rfind("\n") + 1]):
        epoch = _epoch(row, iterations_per_epoch)
        if epoch is not None and found.setdefault(epoch, row) != row:
            refused.add(epoch)
    return [found[epoch] for epoch in sorted(found.keys() - refused)]


def number(row: Mapping[str, Any], column: str) -> float | None:
    """What stands in a column of a row, read or about to be written; None where it is empty or no column."""
    value = row.get(column)
    return None if value is None or value == "" else float(value)


def loss_columns(row: Mapping[str, Any]) -> list[str]:
    """The columns of a loss's parts, which stand between it and the gradient norm."""
    names = [*row]
    if not {"loss", "gradient_norm"} <= row.keys():
        return []
    return names[names.index("loss") + 1 : names.index("gradient_norm")]


def trained_epochs(rows: Sequence[dict[str, str]]) -> int:
    """Of how many whole epochs the rows tell, some of which may be lost."""
    return int(rows[-1]["epoch"]) + 1 if rows else 0


def _rows(text: str) -> Iterator[dict[str, str]]:
    """Those that have as many fields as the header, up to what is no CSV."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        for fields in reader:
            if len(fields) == len(header) == len(set(header)):
                yield dict(zip(header, fields, strict=True))
    except csv.Error:
        return


def _epoch(row: dict[str, str], iterations_per_epoch: int) -> int | None:
    """The number of a row's epoch; None unless it and all else there are numbers, and it is of such epochs."""
    try:
        epoch = int(row["epoch"])
        for value in row.values():
            float(value or "nan")
        return epoch if epoch >= 0 and int(row["iterations"]) == (epoch + 1) * iterations_per_epoch else None
    except (KeyError, ValueError):
        return None
