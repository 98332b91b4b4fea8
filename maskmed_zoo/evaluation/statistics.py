"""Two configurations on the same cases: the paired difference, and whether chance explains it.

Source: Wilcoxon 1945, the signed-rank test, as SciPy has it (two-sided; exact for few cases without ties).
The test speaks about other cases, not about other training runs: how much runs differ shows in the spread over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from scipy.stats import wilcoxon

Scores = Mapping[str, float | None]
"""Case to Dice, None where it has none."""


@dataclass(frozen=True)
class PairedDifference:
    """`mean` over `cases` cases of first minus second; `p` of the signed-rank test; `std` over seeds, from two on."""

    mean: float
    p: float
    std: float | None
    cases: int


def paired_difference(first: Sequence[Scores], second: Sequence[Scores]) -> PairedDifference | None:
    """`first` minus `second`, one mapping per seed in each, seed i of one beside seed i of the other.

    The scores of a case are averaged over seeds before they are compared. Cases without a score somewhere are left
    out; None if no case or no seed is left.
    """
    tables = [{case: dice for case, dice in scores.items() if dice is not None} for scores in (*first, *second)]
    cases = [case for case in tables[0] if all(case in table for table in tables)] if tables else []
    if not cases:
        return None
    pairs = list(zip(tables[: len(first)], tables[len(first) :], strict=True))
    by_seed = [[a[case] - b[case] for case in cases] for a, b in pairs]
    by_case = [fmean(row[index] for row in by_seed) for index in range(len(cases))]
    test: Any = wilcoxon(by_case) if any(by_case) else None  # of nothing but zeros SciPy divides 0 by 0
    spread = stdev(fmean(row) for row in by_seed) if len(by_seed) > 1 else None
    return PairedDifference(fmean(by_case), float(test.pvalue) if test else 1.0, spread, len(cases))
