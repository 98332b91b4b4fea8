"""What looks at a training run while it is trained: the protocol of callbacks, and who calls them.

A run's steps and its warnings are callbacks too, and end it where they cannot be written. Any other, the picture of its
progress among them, costs the run nothing but its time: one that raises an error is told in a line and left out from
there on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from maskmed_zoo.errors import first_line
from maskmed_zoo.recipe import Recipe


class Callback:
    """Something to do while a run is trained, in the process that writes it; here nothing, to be overwritten.

    What is given is to be read, not changed.
    """

    def on_start(self, run: Path, recipe: Recipe, step: int) -> None:
        """Training in the folder `run` begins, or goes on after so many steps; those after it are told (again)."""

    def on_step(self, values: Mapping[str, float]) -> None:
        """A step was made: a line of `steps.jsonl`; `iteration` counts from 1."""

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """An epoch has ended: a row of `metrics.csv`, without what is empty there."""

    def on_save(self) -> None:
        """The state is to be written: a run that is interrupted after it goes on after what was told by now."""

    def on_end(self, error: BaseException | None) -> None:
        """Training has ended, or this session of it by an error, a signal's included."""


class Callbacks:
    """The run's own callbacks and those of others: a context while training."""

    def __init__(self, own: Sequence[Callback], others: Sequence[Callback], say: Callable[[str], None]) -> None:
        self.own, self.others, self.say = own, [*others], say

    def start(self, run: Path, recipe: Recipe, step: int) -> Self:
        """To be entered at once."""
        self._tell("on_start", lambda callback: callback.on_start(run, recipe, step))
        return self

    def step(self, values: Mapping[str, float]) -> None:
        """Of every step."""
        self._tell("on_step", lambda callback: callback.on_step(values))

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Of every epoch, before it is saved."""
        self._tell("on_epoch", lambda callback: callback.on_epoch(row))

    def save(self) -> None:
        """Before the state is written."""
        self._tell("on_save", lambda callback: callback.on_save())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tell("on_end", lambda callback: callback.on_end(error))

    def _tell(self, name: str, call: Callable[[Callback], None]) -> None:
        for callback in self.own:
            call(callback)
        for callback in [*self.others]:
            try:
                call(callback)
            except Exception as error:  # whatever it is: a run of a week does not end for it
                self.others.remove(callback)
                what = f"{type(error).__name__}: {first_line(error)}"
                self.say(f"callback {type(callback).__name__}: {name} failed ({what}); it is left out from here on")
