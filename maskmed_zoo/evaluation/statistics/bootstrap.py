"""Paired bootstrap over patients, of many changes at once: the interval of each mean, and whether chance explains it.

Source: Efron and Tibshirani 1993, percentile intervals. The resamples are the same for all changes and in every call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from maskmed_zoo.evaluation.statistics.interval import CONFIDENCE
from maskmed_zoo.evaluation.statistics.sample import Scores, Vector

RESAMPLES = 20000
AT_ONCE = 1000


@dataclass(frozen=True)
class Bootstrap:
    """Ends of the 95 % interval of a mean, and two-sided p of its being 0: twice the share of resamples beyond 0."""

    interval: tuple[float, float]
    p: float


def paired_bootstrap(changes: Sequence[Scores], patients: Mapping[str, str] | None = None) -> list[Bootstrap]:
    """Of each mapping of cases to changes the `Bootstrap` of its mean over the cases that have one.

    Patients are drawn with replacement, each with all of its cases; a resample without any case of a change counts as
    no change.
    """
    patient_of = {case: (patients or {}).get(case, case) for change in changes for case in change}
    place = {patient: index for index, patient in enumerate(dict.fromkeys(patient_of.values()))}
    sums, counts = np.zeros((2, len(place), len(changes)))
    for column, change in enumerate(changes):
        for case, value in change.items():
            if value is not None:
                sums[place[patient_of[case]], column] += value
                counts[place[patient_of[case]], column] += 1
    means = _means(sums, counts)
    ends = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    tails = np.minimum((means <= 0).sum(0), (means >= 0).sum(0))
    p = np.minimum(1, 2 * (tails + 1) / (len(means) + 1))
    return [Bootstrap((low, high), value) for low, high, value in zip(*ends.tolist(), p.tolist(), strict=True)]


def _means(sums: Vector, counts: Vector) -> Vector:
    """(resamples, changes) from sums and numbers of cases (patients, changes)."""
    random, patients, found = np.random.default_rng(0), len(sums), list[Vector]()
    for start in range(0, RESAMPLES, AT_ONCE):
        size = min(AT_ONCE, RESAMPLES - start)
        drawn = random.multinomial(patients, np.full(patients, 1 / patients), size).astype(np.float64)
        found.append(drawn @ sums / np.maximum(drawn @ counts, 1))
    return np.concatenate(found)
