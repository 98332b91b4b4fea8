"""How sure a mean over cases is: its 95 % interval.

Source: Student's t with Hall's transformation, which takes the skewness out of the studentized mean (Hall 1992, J. R.
Stat. Soc. B 54: 221-228), over patients; those of several cases by the linearized ratio of sums. Several runs are a
level of their own: what another training run would change is added by the rule for the sum of two independent parts
(Zou and Donner 2008). Chosen by simulation among t, percentile, BCa, the studentized bootstrap and this one: scores are
skewed, and the first three miss more often on the side of the failures; the studentized bootstrap holds as often, but
with one or two failures the ends of this one move less. `docs/benchmarks/intervals.py` is the simulation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import stdtr, stdtrit

from maskmed_zoo.evaluation.statistics.sample import Sample, Scores, Vector, common_cases, sample

CONFIDENCE = 0.95
FEWEST = 10
"""Patients below which a mean of skewed scores gets no interval: its width is then chance's."""
ANY = (-np.inf, np.inf)
STRAIGHT = 1e-6
"""Below it Hall's transformation is as good as its series, and the cube root loses digits."""


def mean_interval(
    runs: Sequence[Scores], patients: Mapping[str, str] | None = None, within: tuple[float, float] = ANY
) -> tuple[float, float] | None:
    """The 95 % interval of the mean over cases and runs; None for fewer than `FEWEST` patients.

    `within`: lowest and highest value that a score can have, and so its mean; the interval ends there.

    Over other patients for one run; over other patients and other training runs for several. Cases without a score in
    some run are left out.
    """
    cases = common_cases(runs)
    found = sample(runs, cases, patients) if cases else None
    ends = None if found is None else interval_of(found)
    return None if ends is None else (max(ends[0], within[0]), min(ends[1], within[1]))


def interval_of(found: Sample) -> tuple[float, float] | None:
    """The same of a `Sample`, of scores without limits."""
    values = found.over_runs
    mean = float(values.mean())
    sums, counts = found.by_patient(values - mean), found.by_patient(np.ones_like(values))
    if len(sums) < FEWEST:
        return None
    below, above = _distances(sums, counts)
    seeds = 0.0
    if len(found.table) > 1:
        runs, error = run_variance(found)
        quantile = student(len(found.table) - 1)
        seeds = quantile**2 * max(0.0, runs - error)
    return mean - float(np.hypot(below, seeds**0.5)), mean + float(np.hypot(above, seeds**0.5))


def run_variance(found: Sample) -> tuple[float, float]:
    """Variance of the mean over runs as the runs' means show it, and the part of it that chance in cases explains.

    For two runs and two patients or more. The second is the interaction of runs and patients: their difference is what
    runs differ by on all cases alike.
    """
    table = found.table
    runs, cases = table.shape
    residuals = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    sums = found.by_patient(residuals)
    patients = sums.shape[1]
    error = float((sums**2).sum()) * patients / (patients - 1) / (runs - 1) / runs / cases**2
    return float(table.mean(1).var(ddof=1)) / runs, error


def _distances(sums: Vector, counts: Vector) -> tuple[float, float]:
    """From the mean down and up to the ends, for centred sums and numbers of cases of each patient."""
    error, patients = standard_error(sums, counts), len(sums)
    if error == 0:
        return 0.0, 0.0
    quantile, skewness = student(patients - 1), _skewness(sums)
    return error * _skewed(quantile, skewness), -error * _skewed(-quantile, skewness)


def mean_p(scores: Scores, patients: Mapping[str, str] | None = None) -> float:
    """Two-sided p of a mean of 0 over patients, by the same correction; 1 for one patient, and where it turns the sign.

    Cases without a score are left out; there is one at least that has one.
    """
    found = sample([scores], common_cases([scores]), patients)
    values = found.over_runs
    mean = float(values.mean())
    sums, counts = found.by_patient(values - mean), found.by_patient(np.ones_like(values))
    if len(sums) == 1:
        return 1.0
    error = standard_error(sums, counts)
    if error == 0:
        return float(mean == 0)
    ratio, skewness = mean / error, _skewness(sums)
    quantile = ratio + skewness * (ratio**2 / 3 + 1 / 6) + skewness**2 * ratio**3 / 27
    return float(2 * stdtr(len(sums) - 1, -abs(quantile))) if quantile * ratio > 0 else 1.0


def _skewness(sums: Vector) -> float:
    """Of a mean, from centred sums of patients that are not all 0: their skewness over the root of their number."""
    return float((sums**3).mean() / (sums**2).mean() ** 1.5) / len(sums) ** 0.5


def _skewed(quantile: float, skewness: float) -> float:
    """The studentized mean that Hall's transformation makes a quantile of, for a skewness / sqrt(n) of the scores."""
    shifted = quantile - skewness / 6
    if abs(skewness) < STRAIGHT:
        return shifted - skewness * shifted**2 / 3
    return float(3 / skewness * (np.cbrt(1 + skewness * shifted) - 1))


def student(freedom: float) -> float:
    """Half the width of an interval in standard errors, by Student's t with these degrees of freedom."""
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def standard_error(sums: Vector, counts: Vector) -> float:
    """Of a mean over cases, from centred sums and numbers of cases of each patient, two or more."""
    patients = len(sums)
    return float(np.sqrt((sums**2).sum() * patients / (patients - 1)) / counts.sum())
