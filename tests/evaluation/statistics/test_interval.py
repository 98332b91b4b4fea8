"""Intervals of means: against a bootstrap written out, SciPy's and the normal distribution, and by symmetry."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap, norm, t

from maskmed_zoo.evaluation.metrics import metrics
from maskmed_zoo.evaluation.statistics.interval import FEWEST, RESAMPLES, mean_interval, resamples


def as_scores(values: np.ndarray) -> dict[str, float]:
    return {f"case{i}": float(value) for i, value in enumerate(values)}


def skewed(cases: int, seed: int = 0) -> np.ndarray:
    return 1 - np.random.default_rng(seed).gamma(1.5, 0.1, cases)


def test_the_studentized_bootstrap_written_out() -> None:
    values = skewed(12)
    ratios: list[float] = []
    for counts in resamples(12).astype(int):
        drawn = np.repeat(values, counts)
        # The variance of a resample has its own mean, and the same size as that of the sample.
        ratios.append((drawn.mean() - values.mean()) / (drawn.std(ddof=1) / 12**0.5))
    ends, tail = sorted(ratios), round(0.025 * RESAMPLES)
    error = values.std(ddof=1) / 12**0.5
    expected = values.mean() - ends[-tail - 1] * error, values.mean() - ends[tail] * error
    assert mean_interval([as_scores(values)]) == pytest.approx(expected)


def test_many_cases_have_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(size=800)
    width = norm.ppf(0.975) * values.std(ddof=1) / 800**0.5
    assert mean_interval([as_scores(values)]) == pytest.approx(
        (values.mean() - width, values.mean() + width), abs=0.1 * width
    )


def test_skewed_scores_have_skewed_intervals() -> None:
    """As SciPy's BCa has them, which is wider on the same side."""
    values = skewed(200)
    low, high = mean_interval([as_scores(values)]) or (0, 0)
    theirs = bootstrap((values,), np.mean, rng=np.random.default_rng(0), n_resamples=4000).confidence_interval
    width = theirs.high - theirs.low
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.08 * width)
    assert values.mean() - low > high - values.mean()
    mirrored = mean_interval([as_scores(-values)]) or (0, 0)
    assert mirrored[1] - mirrored[0] == pytest.approx(high - low, rel=0.05)
    assert -mirrored[1] + mirrored[0] + high - low == pytest.approx(0, abs=0.05 * (high - low))


def test_it_is_the_same_every_time_and_in_any_unit() -> None:
    values = skewed(20)
    first = mean_interval([as_scores(values)])
    assert first == mean_interval([as_scores(values)])
    scaled = mean_interval([as_scores(5 + 100 * values)])
    assert scaled == pytest.approx(tuple(5 + 100 * end for end in first or ()))


def test_few_cases_and_equal_scores() -> None:
    assert mean_interval([as_scores(skewed(FEWEST - 1))]) is None
    assert mean_interval([]) is None
    assert mean_interval([{"a": None}]) is None
    assert mean_interval([as_scores(np.full(10, 0.7))]) == pytest.approx((0.7, 0.7))
    assert mean_interval([as_scores(skewed(10)) | {"none": None}]) is not None


def test_the_interval_ends_where_scores_do() -> None:
    """Few cases with one failure: the studentized bootstrap alone leaves the range of Dice on both sides."""
    dice = as_scores(np.array([0.95, 0.97, 0.2, 0.96, 0.99] * 2))
    low, high = mean_interval([dice]) or (0, 0)
    assert low < 0
    assert mean_interval([dice], within=(0, 0.9)) == (0, 0.9)
    assert mean_interval([dice], within=metrics()["dice"].limits) == (0, high)
    assert mean_interval([{case: dice[case] for case in list(dice)[:5]}]) is None
    limits = [(metrics()[name].limits) for name in ("dice", "brier", "hd95")]
    assert limits == [(0, 1), (0, 1), (0, np.inf)]


def test_where_most_resamples_hold_one_value_the_end_is_students() -> None:
    values = np.array([1.0] * 9 + [0.5])
    low, high = mean_interval([as_scores(values)]) or (0, 0)
    assert np.isfinite([low, high]).all()
    assert low == pytest.approx(values.mean() - t.ppf(0.975, 9) * values.std(ddof=1) / 10**0.5)
    assert low < values.mean() < high


def test_runs_that_differ_make_the_interval_wider() -> None:
    values = skewed(30)
    same = [as_scores(values)] * 3
    shifted = [as_scores(values + shift) for shift in (-0.05, 0.0, 0.05)]
    alone, known = mean_interval([as_scores(values)]), mean_interval(same)
    assert known == pytest.approx(alone)
    low, high = mean_interval(shifted) or (0, 0)
    part = t.ppf(0.975, 2) * 0.05 / 3**0.5
    assert values.mean() - low == pytest.approx(np.hypot(values.mean() - (alone or (0, 0))[0], part))
    assert high - values.mean() == pytest.approx(np.hypot((alone or (0, 0))[1] - values.mean(), part))


def test_patients_are_drawn_and_not_their_cases() -> None:
    """Patients with three equal cases say as much as patients with one; and cases that differ share their patient."""
    values = skewed(10)
    once = mean_interval([as_scores(values)])
    patients = {f"case{i}": f"patient{i // 3}" for i in range(30)}
    three = mean_interval([as_scores(np.repeat(values, 3))], patients)
    assert three == pytest.approx(once)
    low, high = mean_interval([as_scores(np.repeat(values, 3))]) or (0, 0)
    assert high - low < 0.75 * ((once or (0, 0))[1] - (once or (0, 0))[0])
    assert mean_interval([as_scores(np.repeat(values, 3))], dict.fromkeys(patients, "one")) is None
