"""Cells of an ablation: one recipe with one seed on one fold each, a job named after what it is trained with.

A cell is named after recipe, data sets, fold and seed, so grids that share a folder share equal cells; the version of
the package that trained it is in its manifest and not in its name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from maskmed_zoo.data.preprocess import PREPROCESSING
from maskmed_zoo.errors import UserError
from maskmed_zoo.recipe import Recipe
from maskmed_zoo.recipe.difference import what_trains
from maskmed_zoo.renamed import as_first_written
from maskmed_zoo.runner.job import Job
from maskmed_zoo.runner.run_folder import RunFolder


@dataclass(frozen=True)
class Cell(Job):
    """One row of a grid with one seed, which the recipe holds, on one fold."""

    row: str


class CellFolder:
    """The folder of all cells of an output folder, found by what they were trained with.

    A cell's name is a checksum of its recipe as the version that made it wrote it, without `evaluation`. Where there is
    no folder of today's name, the recipes that lie there are read again and compared, so that a setting that has been
    added since, with a default that changes nothing, makes no new cell of a finished one.
    """

    def __init__(self, out: Path, names: Sequence[str], fold: int) -> None:
        self.path, self.names, self.fold = out / "cells", tuple(names), fold

    def cell(self, row: str, recipe: Recipe) -> Cell:
        """The cell of a recipe on the data sets and fold."""
        content = [as_first_written(what_trains(recipe)), list(self.names), self.fold]
        key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
        run = RunFolder(self.path / key)
        run = run if run.exists() else self._known(recipe) or run
        return Cell(f"row '{row}', seed {recipe.train.seed}, fold {self.fold}", recipe, run, self.fold, row)

    def _known(self, recipe: Recipe) -> RunFolder | None:
        """The run of an equal recipe; channels and labels left to the data set are what it gave."""
        wanted = what_trains(recipe)
        left_open = [key for key in ("channels", "labels") if wanted["data"][key] is None]
        for run, held in self._held:
            content = held | {"data": held["data"] | dict.fromkeys(left_open)}
            if content == wanted:
                return run
        return None

    @cached_property
    def _held(self) -> list[tuple[RunFolder, dict[str, Any]]]:
        """Runs on these data sets and fold, and their recipes in today's form."""
        held: list[tuple[RunFolder, dict[str, Any]]] = []
        for file in sorted(self.path.glob("*/recipe.yaml")):
            run = RunFolder(file.parent)
            try:
                manifest = run.manifest()
                found = manifest["dataset"], manifest["fold"], manifest["preprocessing"]
                if found == (" + ".join(self.names), self.fold, PREPROCESSING):
                    held.append((run, what_trains(run.recipe())))
            except UserError:
                continue  # half-made, or of another world; the cell of its name says so itself
        return held
