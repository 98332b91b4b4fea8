"""Two methods on the same cases: the paired difference, its interval, and whether chance explains it.

Sources: Wilcoxon 1945, the signed-rank test, compared with SciPy's (two-sided); cases and
training runs as two crossed levels with Satterthwaite's degrees of freedom, as readers and cases are in studies of
several readers (Dorfman, Berbaum and Metz 1992; Hillis 2007). Differences are nearly symmetric, and there Student's t
holds its 95 % better than any bootstrap (`docs/benchmarks/intervals.py`).

The signed-rank test speaks about other patients and these trained networks. About the methods, which another training
run would change too, speaks the interval, and `p_methods`, where each side has several runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import hypot
from statistics import fmean, stdev
from typing import Any

import numpy as np
from scipy.special import stdtr
from scipy.stats import rankdata, wilcoxon

from maskmed_zoo.evaluation.statistics.interval import run_variance, standard_error, student
from maskmed_zoo.evaluation.statistics.sample import Sample, Scores, Vector, common_cases, sample, unpaired_cases

EXACT = 50
"""Patients up to which the signed-rank test counts, as SciPy's without ties."""
EQUAL = 1e-12
"""Differences of scores up to which two are the same number, calculated otherwise."""


@dataclass(frozen=True)
class PairedDifference:
    """First minus second.

    `mean` over `cases` cases of `patients` patients, each averaged over the `seeds` runs of both sides; `interval` its
    95 % interval, over runs too if `over_seeds`; None for one patient. `p` of the signed-rank test over patients.
    `p_mean`: of the mean, by Student's t over patients, None for one patient. `p_methods`: of the mean over patients
    and runs, None unless both sides have several runs. `std`: standard deviation of the difference between one run of
    each, likewise. Cases in which the first is `higher`, `equal` or `lower`, and those that some runs alone have a
    score of, `unpaired`, which are left out.
    """

    mean: float
    interval: tuple[float, float] | None
    p: float
    p_mean: float | None
    p_methods: float | None
    std: float | None
    higher: int
    equal: int
    lower: int
    cases: int
    patients: int
    unpaired: int
    seeds: tuple[int, int]

    @property
    def over_seeds(self) -> bool:
        """Whether interval and `p_methods` speak about other training runs too."""
        return min(self.seeds) > 1


def paired_difference(
    first: Sequence[Scores], second: Sequence[Scores], patients: Mapping[str, str] | None = None
) -> PairedDifference | None:
    """`first` minus `second`, one mapping per run in each; `patients` maps cases to patients.

    The scores of a case are averaged over runs before they are compared. Cases without a score in some run are left
    out; None if no case or no run is left.
    """
    cases = common_cases([*first, *second]) if first and second else []
    if not cases:
        return None
    one, other = (sample(side, cases, patients) for side in (first, second))
    differences = one.over_runs - other.over_runs
    differences[np.abs(differences) <= EQUAL] = 0
    sums, counts = one.by_patient(differences), one.by_patient(np.ones_like(differences))
    interval, p_methods = _interval(one, other, differences)
    means: list[list[float]] = [side.table.mean(1).tolist() for side in (one, other)]
    return PairedDifference(
        mean=fmean(differences),
        interval=interval,
        p=_signed_rank(sums / counts),
        p_mean=_over_patients(sums, counts, differences),
        p_methods=p_methods,
        std=hypot(*map(stdev, means)) if min(map(len, means)) > 1 else None,
        higher=int((differences > 0).sum()),
        equal=int((differences == 0).sum()),
        lower=int((differences < 0).sum()),
        cases=len(cases),
        patients=len(sums),
        unpaired=unpaired_cases([*first, *second]),
        seeds=(len(first), len(second)),
    )


def _interval(one: Sample, other: Sample, differences: Vector) -> tuple[tuple[float, float] | None, float | None]:
    """The interval of the mean, and p of no difference where runs are a level of it."""
    mean = float(differences.mean())
    sums, counts = one.by_patient(differences - mean), one.by_patient(np.ones_like(differences))
    if len(sums) == 1:
        return None, None
    over_cases = standard_error(sums, counts) ** 2
    variance, freedom = over_cases, len(sums) - 1.0
    over_seeds = min(len(one.table), len(other.table)) > 1
    if over_seeds:
        runs, chance = zip(*map(run_variance, (one, other)), strict=True)
        variance += max(0.0, sum(runs) - sum(chance))
        parts = over_cases**2 / freedom
        for side, between, within in zip((one, other), runs, chance, strict=True):
            left = len(side.table) - 1
            parts += between**2 / left + within**2 / (left * (len(sums) - 1))
        freedom = max(1.0, variance**2 / parts) if parts else freedom
    error = variance**0.5
    width = student(freedom) * error
    p = None
    if over_seeds:
        p = float(2 * stdtr(freedom, -abs(mean) / error)) if error else float(mean == 0)
    return (mean - width, mean + width), p


def _over_patients(sums: Vector, counts: Vector, differences: Vector) -> float | None:
    """Two-sided p of the mean difference, by Student's t; None for one patient."""
    mean = float(differences.mean())
    if len(sums) == 1:
        return None
    error = standard_error(sums - mean * counts, counts)
    return float(2 * stdtr(len(sums) - 1, -abs(mean) / error)) if error else float(mean == 0)


def _signed_rank(differences: Vector) -> float:
    """Two-sided p, of nothing but zeros 1; zeros are left out.

    Differences that are equal but for rounding are ties. Exact up to `EXACT` patients, ties or not: SciPy, which goes
    through all signs where there are ties, takes a second for 13. Its approximation beyond.
    """
    differences = np.rint(differences / EQUAL) * EQUAL
    differences = differences[differences != 0]
    if len(differences) > EXACT:
        test: Any = wilcoxon(differences)
        return float(test.pvalue)
    ranks = np.rint(2 * rankdata(np.abs(differences))).astype(int)  # middle ranks of ties are halves
    counts = np.ones(1)  # sign patterns by the sum of the ranks that are positive in them
    for rank in ranks:
        counts = np.pad(counts, (0, rank)) + np.pad(counts, (rank, 0))
    observed = int(ranks[differences > 0].sum())
    tails = counts[: observed + 1].sum(), counts[observed:].sum()
    return min(1.0, 2 * float(min(tails)) / 2 ** len(ranks))
