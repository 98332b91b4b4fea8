"""What sentences say of a row: every reading once, and never more than the numbers."""

from __future__ import annotations

import re
from typing import Any

import pytest

from maskmed_zoo.comparison.words import sentences
from maskmed_zoo.evaluation.metrics import metrics

ROW: dict[str, Any] = {
    "first": "A", "second": "B", "label": None, "mean": 0.02, "interval": [0.01, 0.03], "interval_warning": None,
    "sd_over_seeds": None, "p_holm": 0.004, "p_mean_holm": 0.004, "p_methods_holm": None, "better": 20,
    "equal": 0, "worse": 5, "cases": 25, "patients": 25, "unpaired": 0, "seeds": [1, 1],
}  # fmt: skip
COUNTS = {"missed": 0, "false": 0, "unpredicted": 0, "missed_unpredicted": 0}
NONE = {"A": COUNTS, "B": COUNTS}
SEVERAL = {"seeds": [3, 3], "p_methods_holm": 0.02, "sd_over_seeds": 0.005}
CASES: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "single runs": (
        {},
        "The trained network of A is better than that of B in Dice, by 0.0200 (95 % interval over cases +0.0100 to "
        "+0.0300); p = 0.004 over other cases.",
        ["That other training runs would show the same: A and B have one run."],
    ),
    "the second is better": (
        {"mean": -0.02, "interval": [-0.03, -0.01], "better": 5, "worse": 20},
        "The trained network of B is better than that of A in Dice, by 0.0200 (95 % interval over cases +0.0100 to "
        "+0.0300); p = 0.004 over other cases.",
        ["That other training runs"],
    ),
    "one single run": (
        {"seeds": [3, 1]},
        "The trained networks of A are better than that of B in Dice",
        ["That other training runs would show the same: B has one run."],
    ),
    "methods": (
        SEVERAL,
        "A is better than B in Dice, by 0.0200 (95 % interval over cases and runs +0.0100 to +0.0300); p = 0.020 over "
        "other cases and other training runs.",
        ["That it holds for cases of another kind, or for every label"],
    ),
    "methods of two runs": (
        SEVERAL | {"seeds": [2, 3]},
        "A is better than B in Dice",
        ["That it holds", "That p over runs is exact: two runs are few."],
    ),
    "methods, more than it varies by": (
        SEVERAL | {"sd_over_seeds": 0.05},
        "A is better than B",
        ["That it holds", "That one run of each would show it: the difference is smaller than the spread over seeds"],
    ),
    "networks alone": (
        SEVERAL | {"p_methods_holm": 0.3, "interval": [-0.01, 0.05]},
        "The trained networks of A and B differ in Dice over other cases (p = 0.004); A minus B is +0.0200 (95 % "
        "interval over cases and runs −0.0100 to +0.0500).",
        [
            "That one is the better method (p = 0.30 over cases and runs): runs of one method differ so much that "
            "their choice may explain it.",
        ],
    ),
    "networks alone, by outliers": (
        SEVERAL | {"p_methods_holm": 0.3, "p_mean_holm": 0.4, "interval": [-0.01, 0.05]},
        "The trained networks of A and B differ in Dice over other cases (p = 0.004)",
        [
            "That one is the better method (p = 0.30 over cases and runs): the mean is not sure over cases alone "
            "either (p = 0.40, Student's t)",
        ],
    ),
    "not in the mean": (
        {"interval": [-0.01, 0.05], "better": 5, "worse": 20},
        "The trained networks of A and B differ in Dice over other cases (p = 0.004), but not surely in the mean: A "
        "minus B is +0.0200 (95 % interval over cases −0.0100 to +0.0500). A is better in 5 cases and worse in 20.",
        ["That other training runs"],
    ),
    "nothing": (
        {"p_holm": 0.5, "interval": [-0.01, 0.05]},
        "No difference between A and B in Dice is shown (p = 0.50); A minus B is +0.0200 (95 % interval over cases "
        "−0.0100 to +0.0500).",
        ["That they are equal: every difference in the interval goes with these scores.", "That other training runs"],
    ),
    "identical": (
        {"p_holm": 1.0, "mean": 0.0, "interval": [0.0, 0.0], "better": 0, "equal": 25, "worse": 0},
        "The scores of A and B in Dice are identical in all 25 cases.",
        ["That they are equal: other cases may show a difference.", "That other training runs"],
    ),
    "better in the mean, in few cases": (
        SEVERAL | {"better": 5, "worse": 20},
        "A is better than B",
        ["That it holds", "That A is better in most cases: it is in 5, and worse in 20."],
    ),
    "one patient": (
        {"p_holm": 1.0, "p_mean_holm": None, "interval": None, "patients": 1},
        "No difference between A and B in Dice is shown (p = 1.00); A minus B is +0.0200 (one patient, no interval).",
        [
            "That they are equal: one patient cannot show that.",
            "That other training runs would show the same: A and B have one run.",
        ],
    ),
    "what is left out, and what the interval is worth": (
        SEVERAL | {"unpaired": 3, "interval_warning": "With 5 cases."},
        "A is better than B",
        [
            "That it holds",
            "Anything about 3 cases that not every run has a score of.",
            "That the interval is exact (see the notes).",
        ],
    ),
    "no cases": (
        {"mean": None, "cases": 0},
        "Nothing: no case has a score of both A and B.",
        [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_reading(case: str) -> None:
    change, follows, limits = CASES[case]
    found = sentences(ROW | change, metrics()["dice"], NONE)
    (line,) = found["follows"]
    assert line.startswith(follows)
    assert len(found["does_not_follow"]) == len(limits)
    for line, words in zip(found["does_not_follow"], limits, strict=True):
        assert line.startswith(words)
        assert line.endswith(".")


def test_less_is_better() -> None:
    row = ROW | {"mean": -3.0, "interval": [-4.0, -2.0]}
    (line,) = sentences(row, metrics()["hd95"], NONE)["follows"]
    assert line.startswith("The trained network of A is better than that of B in HD95, by 3.00 mm (95 % interval over")
    assert "+2.00 mm to +4.00 mm" in line


def test_over_patients() -> None:
    for row in (ROW, SEVERAL | {"p_methods_holm": 0.3, "p_mean_holm": 0.4}, {"p_holm": 0.5}, SEVERAL):
        found = sentences(ROW | row, metrics()["dice"], NONE, "patient")
        words = " ".join([*found["follows"], *found["does_not_follow"]])
        assert "interval over patients" in words
        assert not re.search(r"over (other )?cases", words), words


MISSED = {"missed": 5, "unpredicted": 2, "missed_unpredicted": 4}
FAILED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "the worse missed": (
        "dice", {}, MISSED,
        "That B is worse where it predicts: its mean counts 2 cases without a prediction (4 missed labels) and 1 other "
        "missed label as 0, the worst value.",
    ),
    "of distances": (
        "hd95", MISSED, {},
        "That A is worse where it predicts: its mean counts 2 cases without a prediction (4 missed labels) and 1 other "
        "missed label as the image's diagonal, the largest distance there is.",
    ),
    "no reference label in them": (
        "dice", {}, {"unpredicted": 1},
        "That B is worse where it predicts: its mean counts 1 case without a prediction as 0",
    ),
    "both": (
        "relative_volume_difference", {"missed": 1}, {"false": 2},
        "That it is so where both maps have a label: the means count others as 100 % (A: 1 missed label; B: 2 false "
        "labels).",
    ),
    "the better": (
        "volume_difference", {}, {"missed": 1},
        "That it is so where both maps have a label: the means count others as the metric's rules say (B: 1 missed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILED)
def test_missed_labels_and_cases_without_a_prediction_are_told(case: str) -> None:
    name, first, second, expected = FAILED[case]
    methods = {"A": COUNTS | first, "B": COUNTS | second}
    found = sentences(ROW, metrics()[name], methods)["does_not_follow"]
    assert sum(line.startswith(expected) for line in found) == 1, found


def test_small_quantities_keep_their_digits() -> None:
    row = ROW | {"mean": -0.00421, "interval": [-0.0063, -0.0021]}
    (line,) = sentences(row, metrics()["volume_difference"], NONE)["follows"]
    assert "by 0.00421 mL (95 % interval over cases +0.00210 mL to +0.00630 mL)" in line
