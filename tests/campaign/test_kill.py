"""The whole kill campaign, some ten minutes on one core; `python -m tests.kill --csv FILE` keeps its rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.kill.campaign import KINDS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", KINDS)
def test_no_interruption_changes_a_run(kind: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kill", kind], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if "skipped, " in done.stdout:
        pytest.skip(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr
