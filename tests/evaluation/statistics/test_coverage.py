"""What users are told of intervals is what was simulated, and the simulation can be run."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from maskmed_zoo.evaluation.statistics.coverage import (
    ENOUGH,
    MEASURED,
    ONE_RUN,
    TWO_RUNS,
    level_warning,
    shortfall,
    told_apart,
)

BENCHMARKS = Path(__file__).resolve().parents[3] / "docs" / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`docs/benchmarks/intervals.py`, which is no package."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    spec = importlib.util.spec_from_file_location("simulated_coverage", BENCHMARKS / "intervals.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "simulated_coverage", module)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_that_of_the_benchmark(script: ModuleType) -> None:
    with (BENCHMARKS / "intervals.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * 4 * 4
    measured, one_run = script.lowest(rows)
    assert measured == MEASURED
    assert {cases: share for cases, share in one_run.items() if cases >= 10} == ONE_RUN


def test_the_test_over_runs_holds_its_level() -> None:
    """And the signed-rank test does where networks are equal, but not where runs differ, which is why there are two."""
    with (BENCHMARKS / "intervals.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    chance = 3 * (0.05 * 0.95 / int(rows[0]["simulations"])) ** 0.5
    methods = [float(row["methods"]) for row in rows if row["methods"]]
    assert len(methods) == 72
    assert max(float(row["methods"]) for row in rows if int(row["seeds"]) > 2) <= 0.05 + chance
    assert max(float(row["methods"]) for row in rows if row["seeds"] == "2") == TWO_RUNS
    assert f"{100 * TWO_RUNS:.1f} %" in (level_warning(2) or "")
    assert level_warning(3) is None
    equal = [float(row["signed_rank"]) for row in rows if float(row["run_sd"]) == 0]
    assert max(equal) <= 0.05 + chance
    assert max(float(row["signed_rank"]) for row in rows if float(row["run_sd"]) > 0) > 0.5


def test_one_cell_of_the_simulation(script: ModuleType) -> None:
    world = script.World.of(script.SCENES["even"], 0.03)
    scores, networks = world.draw(np.random.default_rng(0), 2000, 3)
    assert scores.shape == (4, 3, 2000)
    assert scores.mean(2) == pytest.approx(networks, abs=0.006)
    assert world.method(0) == pytest.approx(0.86, abs=0.005)
    row = script.row_of(world, cases=10, seeds=2, simulations=10)
    assert set(row) >= {"mean_methods", "difference_methods", "shifted_methods", "signed_rank", "methods"}
    assert set(row) >= {"mean_width", "difference_width"}
    assert all(0 <= float(share) <= 1 for share in row.values())
    few = script.row_of(world, cases=5, seeds=1, simulations=2)
    assert (few["mean_networks"], few["mean_width"], few["methods"]) == ("", "", "")


def test_words_where_the_share_is_too_small() -> None:
    found = [
        (share, cases, shortfall(kind, cases, runs))
        for kind, by_cases in MEASURED.items()
        for cases, by_runs in by_cases.items()
        for runs, share in by_runs.items()
    ]
    for share, cases, words in found:
        assert (words is None) == (share >= ENOUGH)
        if words is not None:
            assert f"With {cases} cases" in words
            assert f"in as few as {100 * share:.1f} %" in words
    assert any(words for *_, words in found)
    assert shortfall("mean", 12) == (shortfall("mean", 10) or "").replace("10 cases", "12 cases")
    assert "so few were not simulated" in (shortfall("difference", 3) or "")


def test_single_runs_of_equal_methods() -> None:
    assert told_apart(9) == ""
    assert "the test over 25 cases told two apart" in told_apart(40)
    assert f"{100 * ONE_RUN[100]:.0f} %" in told_apart(1000)
