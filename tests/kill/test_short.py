"""A short part of the campaigns: processes killed at random moments and within a write, and a cut-off state."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_run_that_is_killed_again_and_again_ends_as_one_left_alone(tmp_path: Path) -> None:
    """It saves after every step, so that it loses the one that was being saved, or the one of the damaged state too."""
    words = [sys.executable, "-m", "tests.kill", "--short", "--seed", "1", "--csv", str(tmp_path / "rows.csv")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (tmp_path / "rows.csv").exists(), done.stdout + done.stderr
    rows = list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))
    assert [row["exit_code"] for row in rows] == ["-9"] * 4
    assert {row["differences"] for row in rows} == {"none"}
    assert [int(row["steps_lost"]) <= (2 if "truncate" in row["how"] else 1) for row in rows] == [True] * 4


def test_predictions_that_are_killed_end_as_those_left_alone() -> None:
    """Two processes on one folder compute each case once, and what cannot be used or written is told."""
    kinds = ["mid-write", "two-and-bad", "bad-cases", "read-only"]
    words = [sys.executable, "-m", "tests.kill.predicting", *kinds, "--times", "3", "--seed", "2"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == kinds
