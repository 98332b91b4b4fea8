"""`steps.jsonl`: a line of JSON per training step, in their order.

Lines are kept until the state is about to be written, and are on the disk before it is, so that none is missing of the
steps that a resumed run goes on from; those of later steps, which it makes again, are cut off when it begins.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from maskmed_zoo.errors import OutputError
from maskmed_zoo.files import unwritable
from maskmed_zoo.recipe import Recipe
from maskmed_zoo.runner.callbacks import Callback

LONGEST = 2**16
"""Bytes of a line."""


class StepsFile(Callback):
    """Raises `OutputError` where nothing can be written."""

    def __init__(self, path: Path) -> None:
        self.path, self._lines = path, list[str]()

    def on_start(self, run: Path, recipe: Recipe, step: int) -> None:
        """Cut off what comes after the step that training goes on from, and what is damaged there."""
        if not self.path.exists():
            return
        if not self.path.is_file():
            raise OutputError(f"{self.path}: is no plain file, so nothing is written there; move it away")
        try:
            os.truncate(self.path, _end_of(self.path, step))
        except OSError as error:
            raise unwritable(self.path, error) from error

    def on_step(self, values: Mapping[str, float]) -> None:
        """Keep a line; what is no number, such as the gradient norm that a loss scaler was waiting for, is null."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._lines.append(json.dumps(finite) + "\n")

    def on_save(self) -> None:
        """Append the lines, or none of them."""
        if not self._lines:
            return
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("ab") as file:
                file.write("".join(self._lines).encode("ascii"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError):
                os.truncate(self.path, size)
            raise unwritable(self.path, error) from error
        self._lines.clear()


def _end_of(path: Path, step: int) -> int:
    """Where the last whole line up to a step ends."""
    end = place = 0
    with path.open("rb") as file:
        while line := file.readline(LONGEST):
            place += len(line)
            iteration = _iteration(line)
            if iteration is not None and iteration > step:
                break
            end = end if iteration is None else place
    return end


def _iteration(line: bytes) -> int | None:
    """The step of a line; None of one that is damaged."""
    try:
        iteration = json.loads(line)["iteration"] if line.endswith(b"\n") else None
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return iteration if type(iteration) is int else None
