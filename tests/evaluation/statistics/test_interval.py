"""Intervals of means: against Hall's transformation solved, SciPy's and the normal distribution, and by symmetry."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import bootstrap, norm, skew, t

from maskmed_zoo.evaluation.metrics import metrics
from maskmed_zoo.evaluation.statistics.interval import FEWEST, mean_interval


def as_scores(values: np.ndarray) -> dict[str, float]:
    return {f"case{i}": float(value) for i, value in enumerate(values)}


def skewed(cases: int, seed: int = 0) -> np.ndarray:
    return 1 - np.random.default_rng(seed).gamma(1.5, 0.1, cases)


@pytest.mark.parametrize("sign", [1, -1])
def test_halls_transformation_solved(sign: int) -> None:
    """Eq. 2.1 of Hall 1992, with a = 1/3 and b = 1/6, for the studentized mean that it makes a quantile of."""
    values = sign * skewed(12)
    skewness, error = float(skew(values)), values.std(ddof=1) / 12**0.5

    def transformed(x: float) -> float:
        k = skewness / 12**0.5
        return x + k * x**2 / 3 + k**2 * x**3 / 27 + k / 6

    quantile = t.ppf(0.975, 11)
    below, above = (brentq(lambda x, q=q: transformed(x) - q, -1e3, 1e3) for q in (quantile, -quantile))
    expected = values.mean() - error * below, values.mean() - error * above
    assert abs(skewness) > 0.5
    assert mean_interval([as_scores(values)]) == pytest.approx(expected)


def test_symmetric_scores_have_students_interval() -> None:
    values = np.array([*range(10), *range(0, -10, -1)], dtype=float)
    for off in (0.0, 1e-7, 1e-5):  # below and above where the series is taken
        shifted = values + off * values**2
        width = t.ppf(0.975, 19) * shifted.std(ddof=1) / 20**0.5
        low, high = mean_interval([as_scores(shifted)]) or (0, 0)
        assert (low, high) == pytest.approx((shifted.mean() - width, shifted.mean() + width), abs=20 * off + 1e-12)


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
    """Few cases with failures: the interval alone leaves the range of Dice."""
    dice = as_scores(np.array([0.95, 0.97, 0.2, 0.96, 0.99] * 2))
    low, high = mean_interval([dice]) or (0, 0)
    assert low < 0
    assert mean_interval([dice], within=(0, 0.9)) == (0, 0.9)
    assert mean_interval([dice], within=metrics()["dice"].limits) == (0, high)
    assert mean_interval([{case: dice[case] for case in list(dice)[:5]}]) is None
    limits = [(metrics()[name].limits) for name in ("dice", "brier", "hd95")]
    assert limits == [(0, 1), (0, 1), (0, np.inf)]


def test_few_failures_do_not_move_the_ends_anywhere() -> None:
    """Where the studentized bootstrap ends at three times the largest distance of all."""
    distances = np.array([73.0, 73.0, *np.linspace(0.8, 1.4, 38)])
    low, high = mean_interval([as_scores(distances)], within=metrics()["hd95"].limits) or (0, 0)
    assert 0 < low < distances.mean() < high < 40


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
