"""Paired differences: by hand, and the signed-rank test against SciPy and against counting all signs."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.stats import rankdata, wilcoxon

from maskmed_zoo.evaluation.statistics import paired_difference


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
    assert found.std == pytest.approx(np.std([(0.3 - 0.1 + 0.3) / 3, (0.1 + 0.1 + 0.3) / 3], ddof=1))


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
    assert paired_difference([{"a": None}], [{"a": 0.4}]) is None
    assert paired_difference([], []) is None


@pytest.mark.filterwarnings("error")
def test_no_difference_is_no_evidence() -> None:
    scores = {"a": 0.5, "b": 0.7}
    found = paired_difference([scores], [scores])
    assert found is not None
    assert (found.mean, found.p) == (0, 1)
