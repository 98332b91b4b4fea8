"""A cell of an ablation: one recipe with one seed, trained and scored in a process of its own.

Idea: a process per cell, so that a crash stays in its cell and the peak memory is that of one network. A cell is named
after recipe, data sets, fold and seed, so grids that share a folder share equal cells; the version of the package that
trained it is in its manifest and not in its name. Beside the run folder `KEY/` lie `KEY.lock`, held for as long as
somebody works on the cell, `KEY.log`, what the process said, and `KEY.failed`, in one line why it ended early.
"""

from __future__ import annotations

import csv
import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from maskmed_zoo.ablation.lock import holder
from maskmed_zoo.errors import UserError
from maskmed_zoo.recipe import Recipe
from maskmed_zoo.renamed import as_first_written
from maskmed_zoo.runner.run_folder import RunFolder

RESOURCES = "resources.json"
"""In the run folder: peak memory."""


@dataclass(frozen=True)
class Cell:
    """One row of a grid with one seed, which the recipe holds."""

    row: str
    recipe: Recipe
    run: RunFolder

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.recipe.train.seed

    @property
    def lock(self) -> Path:
        """Held by whoever works on the cell."""
        return self._beside("lock")

    @property
    def log(self) -> Path:
        """What the cell's process said."""
        return self._beside("log")

    @property
    def failed(self) -> Path:
        """Why the cell ended early; there while nobody has begun it anew."""
        return self._beside("failed")

    def scores(self) -> dict[str, Any] | None:
        """`evaluation.json` of the whole training run; None where it is missing, cut off or of an earlier epoch."""
        scores = _read_json(self.run.evaluation_file)
        is_whole = scores is not None and {"mean_dice", "cases", "weights"} <= scores.keys()
        is_final = len(self.epochs()) == self.recipe.train.epochs
        return scores if scores is not None and is_whole and is_final and scores["weights"] == "last" else None

    def epochs(self) -> list[dict[str, str]]:
        """The rows of `metrics.csv`."""
        try:
            with self.run.metrics_file.open(newline="", encoding="utf-8") as file:
                return list(csv.DictReader(file))
        except OSError:
            return []

    def resources(self) -> dict[str, Any]:
        """Peak memory of the training run, empty where it is not known."""
        return _read_json(self.run.path / RESOURCES) or {}

    def state(self) -> str:
        """Finished, running, failed, unfinished or new, in words."""
        worker = holder(self.lock)
        return f"running, {worker}" if worker is not None and self.scores() is None else self.progress()

    def progress(self) -> str:
        """The same as far as the files tell it; a cell at work is unfinished or new."""
        if self.scores() is not None:
            return "finished"
        if self.failed.exists():
            return f"failed: {self.failed.read_text(encoding='utf-8').strip()}"
        return f"unfinished, {len(self.epochs())} of {self.recipe.train.epochs} epochs" if self.run.exists() else "new"

    def _beside(self, suffix: str) -> Path:
        return self.run.path.with_name(f"{self.run.path.name}.{suffix}")


@dataclass(frozen=True)
class Task:
    """What every cell of an ablation is made with."""

    data: tuple[str, ...]
    fold: int
    device: str | None


class CellFolder:
    """The folder of all cells of an output folder, found by what they were trained with.

    A cell's name is a checksum of its recipe as the version that made it wrote it. Where there is no folder of today's
    name, the recipes that lie there are read again and compared, so that a setting that has been added since, with a
    default that changes nothing, makes no new cell of a finished one.
    """

    def __init__(self, out: Path, names: Sequence[str], fold: int) -> None:
        self.path, self.names, self.fold = out / "cells", tuple(names), fold

    def cell(self, row: str, recipe: Recipe) -> Cell:
        """The cell of a recipe on the data sets and fold."""
        content = [as_first_written(recipe.model_dump(mode="json")), list(self.names), self.fold]
        key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
        run = RunFolder(self.path / key)
        return Cell(row, recipe, run if run.exists() else self._known(recipe) or run)

    def _known(self, recipe: Recipe) -> RunFolder | None:
        """The run of an equal recipe; channels and labels left to the data set are what it gave."""
        wanted = recipe.model_dump(mode="json")
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
                if (manifest["dataset"], manifest["fold"]) == (" + ".join(self.names), self.fold):
                    held.append((run, run.recipe().model_dump(mode="json")))
            except UserError:
                continue  # half-made, or of another world; the cell of its name says so itself
        return held


def order(cell: Cell, task: Task) -> dict[str, Any]:
    """The order to a cell's process; JSON-able."""
    return {
        "recipe": cell.recipe.model_dump(mode="json"),
        "out": str(cell.run.path),
        "data": task.data,
        "fold": task.fold,
        "device": task.device,
    }


def run_in_process(cell: Cell, task: Task, lock: IO[str]) -> str | None:
    """Train and score a cell in a child that holds `lock` too; returns None, or in one line why that failed."""
    command = [sys.executable, "-m", "maskmed_zoo.ablation.cell_process"]
    with cell.log.open("w", encoding="utf-8") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, pass_fds=(lock.fileno(),)
        )
        try:
            child.communicate(json.dumps(order(cell, task)))
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
    if child.returncode < 0:
        return f"ended by signal {-child.returncode} ({signal.Signals(-child.returncode).name}); see {cell.log}"
    if child.returncode:
        lines = cell.log.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {child.returncode}")
    return None if cell.scores() is not None else f"ended without a whole {cell.run.evaluation_file}; see {cell.log}"


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
