"""`progress.png`: the curves of a run, drawn anew while it is trained."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maskmed_zoo.recipe import Recipe
from maskmed_zoo.report.progress import Curves, progress_figure
from maskmed_zoo.runner import row_words as words
from maskmed_zoo.runner.callbacks import Callback
from maskmed_zoo.runner.metrics_file import DICE, SINCE_BEST, loss_columns, number

SHARE = 0.01
"""Of the time of training that goes into drawing, at most: quick epochs are drawn several at once."""
Rows = Sequence[Mapping[str, Any]]


class ProgressPicture(Callback):
    """Draws the rows of a run, those before a resume included. An error costs the run the picture alone."""

    def __init__(self, path: Path, rows: Rows) -> None:
        self.path, self.rows = path, rows
        self._due, self._is_new = 0.0, False

    def on_start(self, run: Path, recipe: Recipe, step: int) -> None:
        """Know what is drawn."""
        self.recipe = recipe

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """Draw, if it is time to; the last epoch always."""
        self._is_new = True
        if time.monotonic() >= self._due or row["epoch"] + 1 == self.recipe.train.epochs:
            self._draw()

    def on_end(self, error: BaseException | None) -> None:
        """Draw what has come since."""
        if self._is_new:
            self._draw()

    def _draw(self) -> None:
        begun = time.monotonic()
        progress_figure(self.path, _title(self.recipe, self.rows[-1]), curves_of(self.rows))
        self._is_new = False
        self._due = time.monotonic() + (time.monotonic() - begun) / SHARE


def curves_of(rows: Rows) -> Curves:
    """What is drawn of the rows of a run, however they came."""
    last: Mapping[str, Any] = {name: row[name] for row in rows for name in row}
    columns = {
        "losses": ["loss", *loss_columns(last)] if "loss" in last else [],
        "dice": [name for name in (DICE, f"{DICE}_average") if name in last],
        "labels": [name for name in last if name.startswith(f"{DICE}/")],
        "rates": [name for name in last if name.startswith("lr_")],
        "norms": [name for name in ("gradient_norm",) if name in last],
    }
    return Curves(
        **{
            panel: {_short(name): [(int(row["epoch"]) + 1, v) for row in rows if (v := number(row, name)) is not None]
                    for name in names}
            for panel, names in columns.items()
        }
    )  # fmt: skip


def _short(name: str) -> str:
    renamed = {DICE: "mean", f"{DICE}_average": "mean, smoothed", "gradient_norm": "before clipping"}
    return renamed.get(name) or name.removeprefix(f"{DICE}/").removeprefix("lr_")


def _title(recipe: Recipe, row: Mapping[str, Any]) -> str:
    since, patience = number(row, SINCE_BEST), recipe.train.patience
    early = ", ended early" if since is not None and patience is not None and since >= patience else ""
    return f"{recipe.name}: epoch {int(row['epoch']) + 1} of {recipe.train.epochs}{early}, {words.pace(row)}"
