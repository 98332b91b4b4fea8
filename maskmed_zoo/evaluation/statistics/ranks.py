"""Would other cases rank the methods alike? Ranks under the bootstrap (Wiesenfarth et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from maskmed_zoo.evaluation.statistics.sample import Scores, common_cases, sample

RESAMPLES = 2000


@dataclass(frozen=True)
class Ranks:
    """Of each method, in their order, its rank from 1 (equal means share the better one), and in which share of the
    resamples it has each rank; `stable` is the share with every method at its rank.
    """

    ranks: list[int]
    shares: list[list[float]]
    stable: float


def rank_stability(
    methods: Sequence[Sequence[Scores]], *, higher_is_better: bool, patients: Mapping[str, str] | None = None
) -> Ranks | None:
    """Ranks of the methods' means over the cases that all runs of all methods have scores for; None without any.

    Patients are drawn with replacement, and for each draw the runs of every method.
    """
    cases = common_cases([run for runs in methods for run in runs])
    if not cases:
        return None
    samples = [sample(runs, cases, patients) for runs in methods]
    counts = samples[0].by_patient(np.ones(len(cases)))
    size = len(counts)  # drawn: how often each patient is, the same in every call, so that results repeat
    drawn = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), RESAMPLES).astype(np.float64)
    random = np.random.default_rng(1)
    sign = -1 if higher_is_better else 1
    means, resampled = np.zeros(len(samples)), np.zeros((RESAMPLES, len(samples)))
    for index, found in enumerate(samples):
        runs = len(found.table)
        by_run = drawn @ found.by_patient(found.table).T / (drawn @ counts)[:, None]
        chosen = random.integers(0, runs, (RESAMPLES, runs))
        resampled[:, index] = sign * np.take_along_axis(by_run, chosen, axis=1).mean(1)
        means[index] = sign * found.table.mean()
    ranks, each = _ranks(means[None])[0], _ranks(resampled)
    shares = (each[:, :, None] == np.arange(1, len(samples) + 1)).mean(0)
    return Ranks(ranks.tolist(), shares.tolist(), float((each == ranks).all(1).mean()))


def _ranks(values: np.ndarray) -> np.ndarray:
    """1 for the smallest of each row; differences of rounding are none."""
    return 1 + (values[:, None, :] < values[:, :, None] - 1e-12).sum(2)
