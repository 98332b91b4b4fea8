"""The whole fuzz campaign, some fifteen minutes on one core; `python -m tests.fuzz --csv FILE` keeps count of it."""

from __future__ import annotations

import pytest

from tests.fuzz.harness import campaign
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_breaks_the_package(name: str) -> None:
    result = campaign(TARGETS[name], 0, TARGETS[name].cases)
    assert not result.faults
    assert result.counts["read"] + result.counts["refused"] == TARGETS[name].cases
