"""What is drawn, against nnU-Net's training transforms: docs/benchmarks/policy.py with fewer draws."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from maskmed_zoo.data.augmentation import nnunet

SCRIPT = Path(__file__).resolve().parents[3] / "docs/benchmarks/policy.py"
ROWS = 35
"""14 probabilities and 21 distributions of isotropic patches."""


def load_script() -> Any:
    spec = importlib.util.spec_from_file_location("policy", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["policy"] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script() -> Any:
    return load_script()


@pytest.mark.parametrize(("kind", "draws"), [("isotropic", 2000), ("anisotropic", 800)])
def test_draws_are_nnunets(script: Any, kind: str, draws: int) -> None:
    rows = script.compared(kind, draws)
    assert len(rows) == (ROWS if kind == "isotropic" else ROWS - 2)
    different = [(row["step"], row["what"], row["ours"], row["theirs"]) for row in rows if row["verdict"] != "equal"]
    assert not different


def test_another_probability_or_range_is_found(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nnunet, "NOISE", 0.25)
    monkeypatch.setattr(nnunet.intensity, "GAMMAS", (0.7, 2.5))
    rows = script.compared("isotropic", 400)
    different = {(row["step"], row["what"]) for row in rows if row["verdict"] != "equal"}
    assert {("noise", "probability"), ("gamma", "factor")} <= different
