"""Every program in examples/ runs from a fresh folder and prints what its docstring promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PRINTS = {
    "create_and_predict.py": "label map (1, 32, 40, 32)",
    "instances.py": "panoptic quality 0.",
    "loose_parts.py": "step 2: loss",
}


def test_all_are_listed() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(PRINTS)


@pytest.mark.parametrize("program", PRINTS)
def test_runs(program: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / program)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert PRINTS[program] in done.stdout
    assert not any(tmp_path.iterdir())


def test_loose_parts_learn(tmp_path: Path) -> None:
    """Three steps lower the loss, and the program stays short enough to be copied."""
    source = EXAMPLES / "loose_parts.py"
    printed = subprocess.run(
        [sys.executable, str(source)], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    losses = [float(line.split()[3]) for line in printed]
    assert len(losses) == 3
    assert losses == sorted(losses, reverse=True)
    assert len(source.read_text(encoding="utf-8").splitlines()) <= 40
