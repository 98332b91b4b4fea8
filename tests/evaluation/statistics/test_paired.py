"""Paired differences: by hand, and against SciPy: the signed-rank test, also by counting all signs, and Student's t."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.stats import rankdata, t, ttest_rel, wilcoxon

from maskmed_zoo.evaluation.statistics.paired import paired_difference


def signed_rank_p(differences: np.ndarray) -> float:
    """Two-sided, exact: the share of sign patterns with a statistic at least as extreme."""
    ranks = rankdata(np.abs(differences))
    observed = abs(float((ranks * np.sign(differences)).sum()))
    sums = [abs(float((ranks * signs).sum())) for signs in product((-1, 1), repeat=len(ranks))]
    return float(np.mean([total >= observed - 1e-9 for total in sums]))


def test_by_hand() -> None:
    first = [{"a": 0.9, "b": 0.5, "c": 0.8}, {"a": 0.7, "b": 0.5, "c": 0.8}]
    second = [{"a": 0.6, "b": 0.6, "c": 0.5}, {"a": 0.6, "b": 0.4, "c": 0.5}]
    found = paired_difference(first, second)
    assert found is not None
    assert found.cases == 3
    assert found.mean == pytest.approx((0.2 + 0.0 + 0.3) / 3)
    spreads = np.std([2.2 / 3, 2.0 / 3], ddof=1), np.std([1.7 / 3, 1.5 / 3], ddof=1)
    assert found.std == pytest.approx(np.hypot(*spreads))
    assert (found.higher, found.equal, found.lower, found.patients, found.unpaired) == (2, 1, 0, 3, 0)
    assert (found.seeds, found.over_seeds) == ((2, 2), True)


def test_p_is_that_of_the_signed_rank_test() -> None:
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.5, 2.0):
        pairs = rng.normal(size=(2, 9)) + np.array([[shift], [0.0]])
        first, second = ({f"case{i}": float(v) for i, v in enumerate(row)} for row in pairs)
        found = paired_difference([first], [second])
        assert found is not None
        assert found.p == pytest.approx(signed_rank_p(pairs[0] - pairs[1]))
        assert found.p == pytest.approx(wilcoxon(*pairs).pvalue)
        assert found.std is None, "one seed has no spread"


def test_only_cases_with_scores_everywhere_count() -> None:
    found = paired_difference([{"a": 0.5, "b": None, "c": 0.2}], [{"a": 0.4, "b": 0.1, "d": 0.3}])
    assert found is not None
    assert (found.cases, found.mean) == (1, pytest.approx(0.1))
    assert found.unpaired == 3, "b, which the second alone has a score of, c and d"
    assert (found.interval, found.p_mean) == (None, None), "of one case"
    assert paired_difference([{"a": None}], [{"a": 0.4}]) is None
    assert paired_difference([], []) is None


@pytest.mark.filterwarnings("error")
def test_no_difference_is_no_evidence() -> None:
    scores = {"a": 0.5, "b": 0.7}
    found = paired_difference([scores], [scores])
    assert found is not None
    assert (found.mean, found.p, found.interval) == (0, 1, (0, 0))
    found = paired_difference([scores, scores], [scores, scores])
    assert found is not None
    assert (found.mean, found.p, found.p_methods, found.equal) == (0, 1, 1, 2)


@pytest.mark.parametrize("cases", [1, 2, 5, 8, 30, 50, 90])
def test_p_with_and_without_ties_and_zeros_is_scipys(cases: int) -> None:
    rng = np.random.default_rng(cases)
    for ties in (False, True) if cases in (1, 2, 5, 8, 90) else (False,):  # else SciPy's is no exact one
        pairs = rng.integers(0, 4, (2, cases)) / 4 if ties else rng.random((2, cases))
        found = paired_difference(as_scores(pairs[:1]), as_scores(pairs[1:]))
        assert found is not None
        difference = pairs[0] - pairs[1]
        assert found.p == pytest.approx(wilcoxon(difference).pvalue if difference.any() else 1)


def as_scores(table: np.ndarray) -> list[dict[str, float]]:
    return [{f"case{i}": float(v) for i, v in enumerate(run)} for run in table]


def test_cases_that_some_runs_of_a_side_alone_have_scores_of_are_counted() -> None:
    whole, part = {"a": 0.5, "b": 0.4, "c": 0.2}, {"a": 0.5, "b": None, "c": 0.3}
    found = paired_difference([whole, part], [{"a": 0.4, "c": 0.1}])
    assert found is not None
    assert (found.cases, found.unpaired) == (2, 1)


def test_rounding_breaks_no_ties() -> None:
    """0.1 + 0.2 - 0.2 and 0.1 are the same difference."""
    first, second = [0.3, 0.8, 0.1, 0.6, 0.2], [0.2, 0.7, 0.2, 0.5, 0.1]
    noisy = np.array(first) - np.array(second)
    assert len(set(np.abs(noisy).tolist())) > 1
    found = paired_difference(as_scores(np.array([first])), as_scores(np.array([second])))
    assert found is not None
    assert found.p == pytest.approx(signed_rank_p(np.array([0.1, 0.1, -0.1, 0.1, 0.1])))
    other = [1.1, 0.3 - 0.2, 0.5]
    found = paired_difference(as_scores(np.array([other])), as_scores(np.array([[1.0, 0.2, 0.4]])))
    assert found is not None
    assert found.p == 1


def test_the_interval_of_single_runs_is_students() -> None:
    pairs = np.random.default_rng(1).normal(size=(2, 12))
    found = paired_difference(as_scores(pairs[:1]), as_scores(pairs[1:]))
    assert found is not None
    assert found.interval == pytest.approx(ttest_rel(*pairs).confidence_interval(0.95))
    assert found.p_mean == pytest.approx(ttest_rel(*pairs).pvalue)
    assert (found.p_methods, found.std, found.over_seeds) == (None, None, False)


def test_runs_are_a_level_of_their_own() -> None:
    """By mean squares of the two-way layout, cases by runs, written out."""
    rng = np.random.default_rng(2)
    runs, cases = 3, 8
    sides = rng.normal(size=(2, runs, cases)) + rng.normal(size=(2, runs, 1)) + rng.normal(size=cases)
    difference = sides[0].mean(0) - sides[1].mean(0)
    between_cases = difference.var(ddof=1) / cases
    parts = [(between_cases, cases - 1.0)]
    variance = between_cases
    for side in sides:
        rows, columns, all_of_it = side.mean(1), side.mean(0), side.mean()
        of_runs = cases * sum((row - all_of_it) ** 2 for row in rows) / (runs - 1)
        error = sum((side[i, j] - rows[i] - columns[j] + all_of_it) ** 2 for i in range(runs) for j in range(cases)) / (
            (runs - 1) * (cases - 1)
        )
        variance += (of_runs - error) / (runs * cases)
        parts += [(of_runs / (runs * cases), runs - 1), (error / (runs * cases), (runs - 1) * (cases - 1))]
    freedom = variance**2 / sum(part**2 / left for part, left in parts)
    found = paired_difference(as_scores(sides[0]), as_scores(sides[1]))
    assert found is not None
    width = t.ppf(0.975, freedom) * variance**0.5
    assert found.interval == pytest.approx((difference.mean() - width, difference.mean() + width))
    assert found.p_methods == pytest.approx(2 * t.sf(abs(difference.mean()) / variance**0.5, freedom))
    single = paired_difference(as_scores(sides[0]), as_scores(sides[1, :1]))
    assert single is not None
    assert (single.seeds, single.p_methods, single.std) == ((3, 1), None, None)


def test_first_and_second_change_places() -> None:
    rng = np.random.default_rng(3)
    one, other = as_scores(rng.random((2, 9))), as_scores(rng.random((3, 9)))
    there, back = paired_difference(one, other), paired_difference(other, one)
    assert there is not None
    assert back is not None
    assert back.mean == pytest.approx(-there.mean)
    assert back.interval == pytest.approx(tuple(-end for end in reversed(there.interval or ())))
    assert (back.p, back.p_methods, back.std) == pytest.approx((there.p, there.p_methods, there.std))
    assert (back.higher, back.equal, back.lower) == (there.lower, there.equal, there.higher)


def test_cases_of_a_patient_count_once() -> None:
    """Patients with two equal cases say as much as patients with one."""
    pairs = np.random.default_rng(4).random((2, 2, 7))
    once = paired_difference(as_scores(pairs[0]), as_scores(pairs[1]))
    both = np.repeat(pairs, 2, axis=2)
    patients = {f"case{i}": f"p{i // 2}" for i in range(14)}
    twice = paired_difference(as_scores(both[0]), as_scores(both[1]), patients)
    assert once is not None
    assert twice is not None
    assert (twice.cases, twice.patients, once.patients) == (14, 7, 7)
    assert twice.interval == pytest.approx(once.interval)
    assert (twice.p, twice.p_methods) == pytest.approx((once.p, once.p_methods))
