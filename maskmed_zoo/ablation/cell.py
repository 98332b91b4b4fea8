"""A cell of an ablation: one recipe with one seed, trained and scored in a process of its own.

Idea: a process per cell, so that a crash stays in its cell and the peak memory is that of one network. A cell is named
after recipe, data sets, fold and seed, so grids that share a folder share equal cells; the version of the package that
trained it is in its manifest and not in its name. Beside the run folder `KEY/` lie `KEY.lock`, held for as long as
somebody works on the cell, `KEY.log`, what the process said, and `KEY.failed`, in one line why it ended early.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from maskmed_zoo.data.preprocess import PREPROCESSING
from maskmed_zoo.errors import DataError, UserError, printable
from maskmed_zoo.evaluation.written import read_summary
from maskmed_zoo.files import read_text, unwritable
from maskmed_zoo.lock import holder
from maskmed_zoo.recipe import Recipe
from maskmed_zoo.recipe.difference import what_trains
from maskmed_zoo.renamed import as_first_written
from maskmed_zoo.runner.metrics_file import read_rows, trained_epochs
from maskmed_zoo.runner.resources import read_resources
from maskmed_zoo.runner.run_folder import RunFolder

TAIL = 2**16
"""Bytes of a log in which its last line is looked for."""


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
        scores = read_summary(self.run.evaluation_file)
        if scores is None or scores.get("weights") != "last":
            return None
        trained = scores.get("epochs") or self.trained()  # earlier versions did not write how many there were
        return scores if trained == self.recipe.train.epochs else None

    def epochs(self) -> list[dict[str, str]]:
        """The rows of `metrics.csv`, of which some may be lost."""
        return read_rows(self.run.metrics_file, self.recipe.train.iterations_per_epoch)

    def trained(self) -> int:
        """How many whole epochs `metrics.csv` tells of."""
        return trained_epochs(self.epochs())

    def resources(self) -> dict[str, Any]:
        """Peak memory of the training run, empty where it is not known."""
        return read_resources(self.run.path)

    def state(self) -> str:
        """Finished, running, failed, unfinished or new, in words."""
        worker = holder(self.lock)
        return f"running, {worker}" if worker is not None and self.scores() is None else self.progress()

    def progress(self) -> str:
        """The same as far as the files tell it; a cell at work is unfinished or new."""
        if self.scores() is not None:
            return "finished"
        if self.failed.exists():
            return f"failed: {self._why()}"
        return f"unfinished, {self.trained()} of {self.recipe.train.epochs} epochs" if self.run.exists() else "new"

    def _why(self) -> str:
        try:
            return printable(" ".join(read_text(self.failed).split())) or "nobody knows why"
        except DataError as error:
            return str(error)

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
        return Cell(row, recipe, run if run.exists() else self._known(recipe) or run)

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
    with _new(cell.log) as log:
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
        return _last_line(cell.log) or f"exit code {child.returncode}"
    return None if cell.scores() is not None else f"ended without a whole {cell.run.evaluation_file}; see {cell.log}"


def _new(path: Path) -> IO[str]:
    """A new file in place of what was there, a link or not."""
    try:
        path.unlink(missing_ok=True)
        return path.open("x", encoding="utf-8")
    except OSError as error:
        raise unwritable(path, error) from error


def _last_line(path: Path) -> str:
    """The last line that says something, among the last of a text of any length."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        text = file.read().decode("utf-8", errors="replace")
    return next((printable(line.strip()) for line in reversed(text.split("\n")) if line.strip()), "")
