"""The text of tables of an ablation."""

from __future__ import annotations

from typing import Any

from maskmed_zoo.ablation.tables import COLUMNS, _remarks
from maskmed_zoo.evaluation.table import _number


def test_zero_has_no_sign_and_differences_say_of_how_many() -> None:
    difference: dict[str, Any] = {"mean": -0.00001, "interval": [-0.02, 0.00001], "p_holm": 0.125, "cases": 5}
    difference |= {"seeds": [3, 3], "p_methods_holm": 0.0004}
    row: dict[str, Any] = {"mean_dice": -0.00001, "sd_over_seeds": None, "seeds": [0, 1, 2], "difference": difference}
    assert COLUMNS["difference (95 %)"](row) == "+0.0000 (−0.0200 to +0.0000)"
    assert COLUMNS["Dice (seeds)"](row) == "0.0000 (3)"
    assert COLUMNS["p, Holm (cases, seeds)"](row) == "0.12 (5, 3)"
    assert COLUMNS["p over seeds too"](row) == "< 0.001"
    difference |= {"seeds": [3, 1], "interval": None, "p_methods_holm": None}
    assert COLUMNS["difference (95 %)"](row) == "+0.0000"
    assert COLUMNS["p, Holm (cases, seeds)"](row) == "0.12 (5, 3 and 1)"
    assert COLUMNS["p over seeds too"](row) == "–"
    assert _number(-0.00001) == "0.0000"


def test_what_single_runs_cannot_say_is_said_once() -> None:
    rows: list[dict[str, Any]] = [
        {"interval_warning": None, "seeds": [1, 3], "patients": 25},
        {"interval_warning": "With 3 cases", "seeds": [1, 1], "patients": 25},
        {"interval_warning": None, "seeds": [2, 3], "patients": 25, "p_methods": 0.03},
        {"interval_warning": None, "seeds": [2, 2], "patients": 1, "p_methods": None},
        {"interval_warning": None, "seeds": [3, 3], "patients": 25, "p_methods": 0.03},
    ]
    remarks = _remarks(rows)
    assert len(remarks) == 3
    assert "25 cases" in remarks[0]
    assert remarks[1] == "With 3 cases"
    assert remarks[2].startswith("With two runs the test over cases and runs")
