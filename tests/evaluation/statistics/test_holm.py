"""Holm's correction by hand, and how often it errs."""

from __future__ import annotations

import numpy as np
import pytest

from maskmed_zoo.evaluation.statistics.holm import holm


def test_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6, 0.9]) == [1, 1, 1]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_what_has_no_p_is_no_test() -> None:
    assert holm([None, 0.02, None, 0.01]) == [None, 0.02, None, 0.02]
    assert holm([None]) == [None]


def test_order_does_not_matter_and_the_larger_stays_the_larger() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(20) ** 3
    order = rng.permutation(20)
    corrected = np.array(holm(p.tolist()), float)
    assert np.array(holm(p[order].tolist()), float) == pytest.approx(corrected[order])
    assert (np.diff(corrected[np.argsort(p)]) >= 0).all()
    assert (corrected >= p).all()


def test_one_in_twenty_families_errs() -> None:
    """Of five true hypotheses, whose p are uniform: 1 - .99^5, the share of families with a p below 1 %."""
    rng = np.random.default_rng(1)
    errs = [min(x for x in holm(rng.random(5).tolist()) if x is not None) < 0.05 for _ in range(4000)]
    assert np.mean(errs) == pytest.approx(1 - 0.99**5, abs=0.01)
