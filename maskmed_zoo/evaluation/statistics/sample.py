"""Scores of several runs on the same cases as one table, and what belongs to one patient.

Cases of one patient are no independent observations, so patients are what is resampled and counted. Where nothing says
which cases belong together, every case is a patient of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev

import numpy as np
from numpy.typing import NDArray

Scores = Mapping[str, float | None]
"""Case to score, None where it has none."""
Vector = NDArray[np.float64]
SEVERAL_CASES = (
    "Some patients have several cases: how well 95 % intervals and tests over patients hold then was not simulated."
)


@dataclass(frozen=True, eq=False)
class Sample:
    """`table` of scores (runs, cases), and the index of each case's patient (cases)."""

    table: Vector
    patient_of: NDArray[np.int64]

    @property
    def over_runs(self) -> Vector:
        """The mean over runs of each case (cases)."""
        return self.table.mean(0)

    def by_patient(self, values: Vector) -> Vector:
        """Sums over the cases of each patient, of values (…, cases)."""
        rows = np.array([np.bincount(self.patient_of, row) for row in np.atleast_2d(values)], np.float64)
        return rows.reshape(*values.shape[:-1], -1)


def common_cases(runs: Sequence[Scores]) -> list[str]:
    """Cases that have a score in every run, in the order of the first."""
    there = [{case for case, score in run.items() if score is not None} for run in runs]
    return [case for case in runs[0] if all(case in cases for cases in there)] if runs else []


def unpaired_cases(runs: Sequence[Scores]) -> int:
    """How many cases have a score in some run, and none in another."""
    there = {case for run in runs for case, score in run.items() if score is not None}
    return len(there) - len(common_cases(runs))


def sample(runs: Sequence[Scores], cases: Sequence[str], patients: Mapping[str, str] | None = None) -> Sample:
    """The scores of these cases, which every run has; `patients` maps cases to patients."""
    numbers: dict[str, int] = {}
    for case in cases:
        numbers.setdefault((patients or {}).get(case, case), len(numbers))
    index = [numbers[(patients or {}).get(case, case)] for case in cases]
    return Sample(np.array([[run[case] for case in cases] for run in runs], np.float64), np.array(index, np.int64))


def several_cases(cases: int, patients: int) -> str | None:
    """What is to be said where patients have several cases, as in no simulation; else None."""
    return SEVERAL_CASES if patients < cases else None


def spread(values: Sequence[float | None]) -> float | None:
    """Sample standard deviation of the values there are; None for fewer than two."""
    present = [value for value in values if value is not None]
    return stdev(present) if len(present) > 1 else None
