"""What is wrong with a case or a file of a data set, in parts, and what becomes of it: refused at once, or told.

Idea: every check is written once. Whoever opens a data set to train on it lets the first problem end the work, whoever
checks it collects them all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from maskmed_zoo.errors import DataError, UserError

Kind = Literal[
    "file name",
    "missing image",
    "missing channel",
    "surplus channel",
    "missing label",
    "unreadable file",
    "not finite",
    "geometry",
    "value range",
    "label values",
    "annotated labels",
    "splits",
    "description",
    "no foreground",
    "constant image",
    "duplicate image",
    "absent label",
    "spacing",
    "shape",
    "orientation",
    "intensity",
]
"""What a problem is about; from 'no foreground' on, what is read without a word."""


class ProblemError(DataError):
    """One problem: of which file or folder, what is wrong and what was expected, what to do, and whose case it is."""

    def __init__(self, path: Path, what: str, remedy: str, *, kind: Kind, case: str = "") -> None:
        super().__init__(f"{path}: {what}; {remedy}")
        self.path, self.what, self.remedy, self.case = path, what, remedy, case
        self.kind: Kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        """From one process to another."""
        return partial(ProblemError, kind=self.kind, case=self.case), (self.path, self.what, self.remedy)


def problem_of(error: UserError, path: Path, kind: Kind, case: str = "") -> ProblemError:
    """Somebody else's error about a file, taken apart: a remedy stands behind the last semicolon of a line."""
    if isinstance(error, ProblemError):
        return error
    body = str(error).removeprefix(f"{path}: ")
    what, _, remedy = body.rpartition("; ")
    problem = ProblemError(path, what or remedy, remedy if what else "mend the file", kind=kind, case=case)
    problem.args = error.args
    return problem


Tell = Callable[[ProblemError], None]
"""What becomes of a problem; whoever calls it goes on if it returns."""


def refuse(problem: ProblemError) -> None:
    """Raise it."""
    raise problem
