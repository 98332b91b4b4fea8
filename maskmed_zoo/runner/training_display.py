"""What a person sees of a training run: on a terminal a bar of all steps, and under it what the last epoch and the last
validation gave; elsewhere a line per epoch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from maskmed_zoo.errors import escaped
from maskmed_zoo.recipe import Recipe
from maskmed_zoo.runner import row_words as words
from maskmed_zoo.runner.callbacks import Callback
from maskmed_zoo.runner.display import Display

LATELY = 20
"""Epochs of this session by which the time that is left is reckoned."""


class TrainingDisplay(Callback):
    """Shows a run of so many epochs of so many steps each."""

    def __init__(self, display: Display, bar: TrainingBar, epochs: int, steps: int) -> None:
        self.display, self.bar, self.epochs, self.steps = display, bar, epochs, steps
        self._seconds: deque[float] = deque(maxlen=LATELY)
        self._dice = ""
        self._task = bar.add_task("training", total=epochs * steps, left="")

    def on_start(self, run: Path, recipe: Recipe, step: int) -> None:
        """Where the bar begins."""
        self._move(step)

    def on_step(self, values: Mapping[str, float]) -> None:
        """Move the bar."""
        self._move(int(values["iteration"]))

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """Show the row; a validation's until the next one."""
        done, dice = row["epoch"] + 1, words.dice(row)
        self._seconds.append(row["seconds"])
        left = words.duration(fmean(self._seconds) * (self.epochs - done))
        self._dice = f"{dice}, epoch {done}" if dice else self._dice
        lines = (f"{words.loss(row)}, epoch {done}", self._dice, words.optimisation(row), words.pace(row))
        self.bar.lines = "\n".join(escaped(line) for line in lines if line)
        self.bar.update(self._task, left=f", {left} left")
        if not self.display.console.is_terminal:
            parts = (words.loss(row), dice, words.optimisation(row), words.pace(row), f"left {left}")
            self.display.say("  ".join([f"epoch {done}/{self.epochs}", *filter(None, parts)]))

    def _move(self, step: int) -> None:
        epoch = min(self.epochs, step // self.steps + 1)
        self.bar.update(self._task, completed=step, description=f"epoch {epoch}/{self.epochs}")


@contextmanager
def training_display(display: Display, epochs: int, steps: int) -> Generator[TrainingDisplay]:
    """A context while training."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %{task.fields[left]}", markup=False),
    )
    with TrainingBar(*columns, console=display.console, disable=not display.console.is_terminal) as bar:
        yield TrainingDisplay(display, bar, epochs, steps)


class TrainingBar(Progress):
    """A bar with lines below it."""

    lines = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, and the lines."""
        yield from super().get_renderables()
        if self.lines:
            yield Text(self.lines, style="dim")
