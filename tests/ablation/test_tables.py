"""The text of tables of an ablation."""

from __future__ import annotations

from typing import Any

from maskmed_zoo.ablation.tables import COLUMNS
from maskmed_zoo.evaluation.table import _number


def test_zero_has_no_sign_and_p_says_of_how_many() -> None:
    difference: dict[str, Any] = {"mean": -0.00001, "sd_over_seeds": -0.0, "p": 0.125, "cases": 5, "seeds": [0, 1, 2]}
    row: dict[str, Any] = {"mean_dice": -0.00001, "sd_over_seeds": None, "seeds": [0, 1, 2], "difference": difference}
    assert COLUMNS["difference"](row) == "+0.0000 ± 0.0000"
    assert COLUMNS["Dice (seeds)"](row) == "0.0000 (3)"
    assert COLUMNS["p (cases, seeds)"](row) == "0.125 (5, 3)"
    assert _number(-0.00001) == "0.0000"
