"""What lies behind a mean: quartiles, worst cases, intervals, and the rows of the CSV; by hand."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from maskmed_zoo.errors import DataError
from maskmed_zoo.evaluation.aggregate import summarize, summarize_cases
from maskmed_zoo.evaluation.case import CaseScores, LabelMapPair, ScoredCase, score_case
from maskmed_zoo.evaluation.case_table import COLUMNS, is_case_table, rows, write_cases
from maskmed_zoo.evaluation.distribution import distribution
from maskmed_zoo.evaluation.metrics import chosen, metrics
from maskmed_zoo.evaluation.reference import checksum_of
from maskmed_zoo.evaluation.statistics.interval import mean_interval
from maskmed_zoo.evaluation.statistics.sample import SEVERAL_CASES
from maskmed_zoo.evaluation.table import distribution_line, remarks, score_table
from maskmed_zoo.labels import Labels

LABELS = Labels({"background": 0, "liver": 1, "cyst": 2})
SCORES = {"a": 0.9, "b": 0.5, "c": 0.7, "d": None, "e": 0.8, "f": 0.6, "g": 1.0, "h": 0.4}
MORE = {f"x{i}": 0.45 + i / 100 for i in range(4)}
"""Further cases, with which there are enough for an interval."""


def test_by_hand() -> None:
    found = distribution(SCORES, higher_is_better=True)
    assert (found["median"], found["q1"], found["q3"]) == pytest.approx((0.7, 0.55, 0.85))
    assert found["worst"] == ["h", "b", "f", "c", "e"]
    assert (found["interval"], found["patients"]) == (None, 7)
    found = distribution(SCORES | MORE, higher_is_better=True, within=(0.6, 1))
    assert found["interval"] == [0.6, (mean_interval([SCORES | MORE]) or (0, 0))[1]]
    assert distribution(SCORES, higher_is_better=False)["worst"] == ["g", "a", "e", "c", "f"]


def test_without_scores_or_with_few() -> None:
    assert distribution({"a": None}, higher_is_better=True) == {
        "median": None, "q1": None, "q3": None, "interval": None, "patients": 0, "worst": []
    }  # fmt: skip
    assert distribution({"a": 0.5}, higher_is_better=True)["interval"] is None


def test_patients_stand_for_their_cases() -> None:
    patients = dict.fromkeys("abc", "one") | dict.fromkeys("efgh", "two")
    found = distribution(SCORES, higher_is_better=True, patients=patients)
    assert (found["patients"], found["interval"]) == (2, None)


def test_a_summary_says_how_sure_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    cases = [CaseScores(case, {"liver": dice, "cyst": None}) for case, dice in (SCORES | MORE).items()]
    summary = summarize(cases, LABELS.names)
    assert summary["over_cases"] == {key: summary["labels"]["liver"][key] for key in summary["over_cases"]}
    assert "11 cases" in summary["interval_warning"]
    assert "Hall's correction of skewness" in summary["definition"]
    line = distribution_line(summary)
    assert "median 0.5000" in line
    assert "worst: h 0.4000, x0 0.4500" in line
    assert summary["interval_warning"] in remarks({"dice": summary})
    patients = dict.fromkeys("bh", "one")
    assert summarize(cases, LABELS.names, patients=patients)["interval_warning"] == SEVERAL_CASES
    assert "95 %" in [column.header for column in score_table(summary).columns]
    many = [CaseScores(f"{i}", {"liver": i / 200}) for i in range(200)]
    assert summarize(many, ["liver"])["interval_warning"] is None
    few = summarize(cases[:3], LABELS.names)
    assert (few["over_cases"]["interval"], few["interval_warning"]) == (None, None)
    assert "95 %" not in [column.header for column in score_table(few).columns]


def scored(identifier: str, prediction: list[int], reference: list[int], annotated: set[str]) -> ScoredCase:
    maps = [np.array(values)[None, None] for values in (prediction, reference)]
    pair = LabelMapPair(identifier, maps[0], maps[1], LABELS, frozenset(annotated), (1, 1, 1), patient="p\n1")
    return score_case(pair, chosen(["brats_dice", "lesion_sq"]))


def test_names_are_no_formulas_of_a_spreadsheet(tmp_path: Path) -> None:
    names = ["=1+1", "+a", "-b", "@c", "d=e"]
    summary = summarize_cases([scored(name, [1], [1], {"liver", "cyst"}) for name in names], LABELS.names, chosen(()))
    write_cases(summary, tmp_path / "cases.csv")
    with (tmp_path / "cases.csv").open(newline="", encoding="utf-8") as file:
        found = [row["case"] for row in csv.DictReader(file) if row["label"] == "liver"]
    assert found == ["'=1+1", "'+a", "'-b", "'@c", "d=e"]


def test_rows_of_the_table_of_cases(tmp_path: Path) -> None:
    cases = [
        scored("a", [1, 1, 0, 0], [1, 0, 0, 0], {"liver", "cyst"}),
        scored("b", [2, 2, 0, 0], [1, 0, 0, 0], {"liver", "cyst"}),
        scored("c", [1, 0, 0, 0], [1, 0, 0, 0], {"liver"}),
    ]
    summary = summarize_cases(cases, LABELS.names, chosen(["brats_dice", "lesion_sq"]))
    found = [tuple(row.values()) for row in rows(summary)]
    assert len(found) == 3 * 3 * 2
    assert found[:6] == [
        ("a", "p\n1", "liver", "dice", pytest.approx(2 / 3), "scored"),
        ("a", "p\n1", "cyst", "dice", None, "absent"),
        ("b", "p\n1", "liver", "dice", 0, "missed"),
        ("b", "p\n1", "cyst", "dice", 0, "false"),
        ("c", "p\n1", "liver", "dice", 1, "scored"),
        ("c", "p\n1", "cyst", "dice", None, "unannotated"),
    ]
    assert {row[3] for row in found[6:]} == {"brats_dice", "lesion_sq"}
    assert found[7][2:] == ("cyst", "brats_dice", 1.0, "absent")
    assert found[12][2:] == ("liver", "lesion_sq", None, "undefined")  # an IoU of 0.5, which is no pair
    states = {row["state"] for row in rows(summary | {"unpredicted": ["b"]}) if row["case"] == "b"}
    assert states == {"unpredicted", "false"}, "missed labels alone"
    path = tmp_path / "scores.csv"
    write_cases(summary, path)
    with path.open(newline="", encoding="utf-8") as file:
        read = list(csv.reader(file))
    assert tuple(read[0]) == COLUMNS
    assert read[2] == ["a", "p\\n1", "cyst", "dice", "", "absent"]
    assert len(path.read_text().splitlines()) == 19
    assert is_case_table(path)
    path.write_text("case,mine\n")
    assert not is_case_table(path)


def test_a_reference_is_known_by_the_names_of_its_labels() -> None:
    reference = np.array([[[0, 1, 2, 1]]], np.int16)
    other = Labels({"background": 0, "cyst": 1, "liver": 7, "ignore": 8}, gaps=True)
    swapped = np.array([[[0, 7, 1, 7]]], np.uint8)
    assert checksum_of(reference, LABELS) == checksum_of(swapped, other)
    ignored = np.array([[[8, 7, 1, 7]]], np.int16)
    assert checksum_of(swapped, other) != checksum_of(ignored, other)
    assert checksum_of(reference, LABELS) != checksum_of(np.roll(reference, 1), LABELS)
    assert checksum_of(reference, LABELS) != checksum_of(reference.reshape(1, 2, 2), LABELS)
    assert checksum_of(reference, LABELS) != checksum_of(reference, Labels({"background": 0, "liver": 1, "kidney": 2}))


def test_metrics_of_which_less_is_better_name_other_cases() -> None:
    cases = [CaseScores("near", {"liver": 1.0}), CaseScores("far", {"liver": 9.0})]
    assert summarize(cases, ["liver"], metrics()["hd95"])["over_cases"]["worst"] == ["far", "near"]
    with pytest.raises(DataError, match="same name"):
        summarize([cases[0], cases[0]], ["liver"], metrics()["hd95"])


def test_names_of_the_worst_cases_are_one_line() -> None:
    assert "worst: a\\nb 0.5000." in distribution_line(summarize([CaseScores("a\nb", {"liver": 0.5})], ["liver"]))
