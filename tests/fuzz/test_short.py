"""The first cases of the campaign, in this process: each is read, or refused in a line that can be shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.fuzz.harness import campaign, one
from tests.fuzz.targets import TARGETS
from tests.fuzz.wrong import WAYS, WRONG

CASES = 25
SLOW = {target.name for target in TARGETS.values() if target.prepare.__module__.endswith("runs")}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[Path], Any]], Any]:
    """The originals of a target, made once for all targets that share them."""
    return cache(lambda prepare: prepare(tmp_path_factory.mktemp("originals")))


@pytest.mark.filterwarnings("ignore")  # of NumPy and nibabel on numbers that are none
@pytest.mark.parametrize("name", TARGETS)
def test_first_cases(name: str, prepared: Callable[[Callable[[Path], Any]], Any], tmp_path: Path) -> None:
    target = TARGETS[name]
    original = prepared(target.prepare)
    cases = CASES // 5 if name in SLOW else CASES
    outcomes = {number: one(target, original, 0, number, tmp_path / "case") for number in range(cases)}
    wrong = {number: outcome for number, outcome in outcomes.items() if outcome not in ("read", "refused")}
    assert not wrong
    assert "refused" in outcomes.values() or name in SLOW, "mutations that harm nothing test nothing"


def test_the_harness_sees_what_goes_wrong() -> None:
    cases = 10
    result = campaign(WRONG, 0, cases, hang=2)
    expected = Counter(Random(f"0:wrong:{number}").choice(WAYS) for number in range(cases))
    assert result.counts == expected
    assert set(expected) == set(WAYS), "the seed tries every way"
    assert len(result.faults) == cases - expected["read"] - expected["refused"]
