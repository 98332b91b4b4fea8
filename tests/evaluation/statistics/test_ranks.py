"""Ranks of methods: clear ones, equal ones, and how often a resample changes them, by counting."""

from __future__ import annotations

import numpy as np
import pytest

from maskmed_zoo.evaluation.statistics.ranks import rank_stability

CASES = [f"case{i}" for i in range(10)]


def runs(*values: np.ndarray) -> list[dict[str, float]]:
    return [dict(zip(CASES, map(float, run), strict=True)) for run in values]


def test_a_clear_order_is_kept() -> None:
    base = np.linspace(0.5, 0.9, 10)
    methods = [runs(base), runs(base + 0.05), runs(base - 0.05)]
    found = rank_stability(methods, higher_is_better=True)
    assert found is not None
    assert (found.ranks, found.stable) == ([2, 1, 3], 1)
    assert found.shares == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]
    lower = rank_stability(methods, higher_is_better=False)
    assert lower is not None
    assert lower.ranks == [2, 3, 1]


def test_equal_methods_share_the_better_rank() -> None:
    base = np.linspace(0.5, 0.9, 10)
    found = rank_stability([runs(base), runs(base), runs(base - 0.1)], higher_is_better=True)
    assert found is not None
    assert (found.ranks, found.stable) == ([1, 1, 3], 1)


def test_one_case_that_decides() -> None:
    """The second is better in one case of ten alone, and by so much that it is better wherever that is drawn."""
    base = np.full(10, 0.5)
    other = base - 0.01
    other[3] = 1.0
    found = rank_stability([runs(base), runs(other)], higher_is_better=True)
    assert found is not None
    assert found.ranks == [2, 1]
    assert found.stable == pytest.approx(1 - 0.9**10, abs=0.03)
    assert found.shares[0] == pytest.approx([1 - found.stable, found.stable])


def test_runs_are_drawn_too() -> None:
    """Of two runs one is better and one worse than the other method: both are drawn worse in a quarter."""
    base = np.linspace(0.5, 0.9, 10)
    found = rank_stability([runs(base + 0.05, base - 0.03), runs(base)], higher_is_better=True)
    assert found is not None
    assert found.ranks == [1, 2]
    assert found.stable == pytest.approx(0.75, abs=0.03)


def test_cases_that_some_run_lacks_are_left_out() -> None:
    base = np.linspace(0.5, 0.9, 10)
    assert rank_stability([[{"a": None}], [{"a": 0.5}]], higher_is_better=True) is None
    first = [dict.fromkeys(CASES, 0.5) | {"case0": None}]
    found = rank_stability([first, runs(base - 10 * (base == 0.5))], higher_is_better=True)
    assert found is not None
    assert found.ranks == [2, 1]
