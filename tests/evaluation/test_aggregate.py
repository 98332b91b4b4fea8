"""Averages by hand, and folders with every kind of mistake in them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console

from maskmed_zoo.errors import DataError
from maskmed_zoo.evaluation.aggregate import summarize
from maskmed_zoo.evaluation.case import CaseScores
from maskmed_zoo.evaluation.folders import evaluate_folders
from maskmed_zoo.evaluation.metrics import chosen
from maskmed_zoo.evaluation.table import distribution_line, score_table

CASES = [
    CaseScores("a", {"liver": 0.8, "spleen": 0.4, "cyst": None}, absent=frozenset({"cyst"})),
    CaseScores("b", {"liver": 0.6, "spleen": None, "cyst": None}, absent=frozenset({"spleen", "cyst"})),
    CaseScores("c", {"liver": None, "spleen": None, "cyst": None}, absent=frozenset({"liver", "spleen", "cyst"})),
]
ROW = {"mean": None, "std": None, "n": 0, "absent": 0, "missed": 0, "false": 0, "unannotated": 0}
LIVER = {"mean": pytest.approx(0.7), "std": pytest.approx(0.2 / 2**0.5), "n": 2, "absent": 1}
LABELS = {"background": 0, "liver": 1, "spleen": 2, "cyst": 3}


def test_means_by_hand() -> None:
    summary = summarize(CASES, list(LABELS))
    assert summary["labels"]["liver"].items() >= (ROW | LIVER | {"unannotated": 0}).items()
    assert summary["labels"]["spleen"].items() >= (ROW | {"mean": 0.4, "n": 1, "absent": 2, "unannotated": 0}).items()
    assert summary["labels"]["cyst"].items() >= (ROW | {"mean": None, "n": 0, "absent": 3, "unannotated": 0}).items()
    assert list(summary["labels"]) == ["liver", "spleen", "cyst"]
    assert [case["mean"] for case in summary["cases"]] == [pytest.approx(0.6), 0.6, None]
    case = {"case": "b", "dice": {"liver": 0.6, "spleen": None, "cyst": None}, "mean": 0.6, "unannotated": []}
    assert summary["cases"][1].items() >= case.items()
    assert summary["mean_dice"] == pytest.approx(0.6)
    assert summary["mean_dice_over_labels"] == pytest.approx(0.55)
    assert (summary["absent"], summary["unannotated"]) == (6, 0)
    assert "mean over cases" in summary["definition"]
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_labels_that_were_not_annotated_are_neither_scored_nor_absent() -> None:
    some = [
        CaseScores("a", {"liver": 0.8, "spleen": 0.1}, frozenset({"spleen"})),
        CaseScores("b", {"liver": 0.6}, frozenset({"spleen", "other"})),
        CaseScores("c", {"spleen": None}, frozenset({"liver"}), absent=frozenset({"spleen"})),
        CaseScores("d", {"spleen": 0.5, "liver": None}, absent=frozenset({"liver"})),
    ]
    summary = summarize(some, ["liver", "spleen"])
    assert summary["labels"]["liver"].items() >= (ROW | LIVER | {"unannotated": 1}).items()
    assert summary["labels"]["spleen"].items() >= (ROW | {"mean": 0.5, "n": 1, "absent": 1, "unannotated": 2}).items()
    assert [case["mean"] for case in summary["cases"]] == [0.8, 0.6, None, 0.5]
    assert [case["unannotated"] for case in summary["cases"]] == [["spleen"], ["spleen"], ["liver"], []]
    assert summary["cases"][0]["dice"] == {"liver": 0.8, "spleen": None}
    assert summary["mean_dice"] == pytest.approx((0.8 + 0.6 + 0.5) / 3)
    assert summary["mean_dice_over_labels"] == pytest.approx(0.6)
    assert (summary["absent"], summary["unannotated"]) == (2, 3)
    assert "not annotated" in summary["definition"]
    lines = shown(summary)
    assert ["label", "mean", "sd", "n", "absent", "unannotated"] in lines
    assert ["spleen", "0.5000", "–", "1", "1", "2"] in lines
    assert ["mean", "over", "cases", "0.6333", "3", "2", "3"] in lines
    assert ["label", "mean", "sd", "n", "absent"] in shown(summarize(some[3:], ["liver", "spleen"]))


def test_absent_is_no_matter_of_the_value() -> None:
    there = frozenset({"cyst"})
    some = [CaseScores("a", {"liver": 0.8, "cyst": 1.0}, absent=there), CaseScores("b", {"liver": None, "cyst": 0.5})]
    summary = summarize(some, ["liver", "cyst"])
    assert (
        summary["labels"]["cyst"].items()
        >= (ROW | {"mean": 0.75, "std": pytest.approx(0.125**0.5), "n": 2, "absent": 1}).items()
    )
    assert summary["labels"]["liver"].items() >= (ROW | {"mean": 0.8, "n": 1, "undefined": 1}).items()
    assert [case["absent"] for case in summary["cases"]] == [["cyst"], []]
    assert ["label", "mean", "sd", "n", "absent", "undefined"] in shown(summary)


def test_only_the_named_labels_enter_the_means() -> None:
    summary = summarize([CaseScores("a", {"background": 1.0, "liver": 0.5, "other": 0.9})], ["background", "liver"])
    assert summary["mean_dice"] == summary["mean_dice_over_labels"] == 0.5
    assert summary["cases"][0]["dice"] == {"liver": 0.5}


def test_lacking_scores_and_double_cases_are_refused() -> None:
    with pytest.raises(DataError, match="case 'a' has no score for kidney"):
        summarize(CASES, ["liver", "kidney"])
    with pytest.raises(DataError, match="same name"):
        summarize([CASES[0], CASES[0]], ["liver"])


def shown(summary: dict[str, object]) -> list[list[str]]:
    console = Console(file=io.StringIO(), width=100)
    console.print(score_table(summary))
    return [line.replace("│", " ").replace("┃", " ").split() for line in console.file.getvalue().splitlines()]


def test_small_scores_of_probabilities_are_not_rounded_away() -> None:
    brier = chosen("brier")[-1]
    summary = summarize([CaseScores("a", {"liver": 2.5e-5}), CaseScores("b", {"liver": 3.5e-4})], ["liver"], brier)
    console = Console(file=io.StringIO(), width=100)
    console.print(score_table(summary, brier))
    assert "0.000188" in console.file.getvalue()
    assert "worst: b 0.00035, a 2.5e-05" in distribution_line(summary, brier)


def test_table_shows_every_number() -> None:
    lines = shown(summarize(CASES, list(LABELS)))
    assert ["liver", "0.7000", "0.1414", "2", "1"] in lines
    assert ["cyst", "–", "–", "0", "3"] in lines
    assert ["mean", "over", "labels", "0.5500", "2"] in lines
    assert ["mean", "over", "cases", "0.6000", "2", "6"] in lines


def _save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array.astype(np.uint8), np.eye(4) if affine is None else affine), path)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    pred, ref = tmp_path / "pred", tmp_path / "data" / "labelsTr"
    a, b = np.zeros((2, 4, 5, 6))
    a[:2], b[1:3] = 1, 1
    b[3, 0] = 2
    for name, reference, prediction in (("x", a, a), ("y", a, b)):
        _save(ref / f"{name}.nii.gz", reference)
        _save(pred / f"{name}.nii.gz", prediction)
    (ref.parent / "dataset.json").write_text(json.dumps({"labels": LABELS}))
    return pred, ref


def test_folders_by_hand(folders) -> None:
    pred, ref = folders
    _save(pred / "z.nii.gz", np.zeros((4, 5, 6)))
    summary = evaluate_folders(pred, ref, None)
    assert [case["case"] for case in summary["cases"]] == ["x", "y"]
    assert summary["cases"][0]["dice"] == {"liver": 1.0, "spleen": None, "cyst": None}
    assert summary["cases"][1]["dice"] == {"liver": 0.5, "spleen": 0.0, "cyst": None}
    assert summary["mean_dice"] == pytest.approx((1 + 0.25) / 2)
    assert summary["mean_dice_over_labels"] == pytest.approx((0.75 + 0) / 2)
    assert summary["unreferenced"] == ["z"]
    json.dumps(summary, allow_nan=False)


def test_prediction_in_another_orientation_is_the_same_prediction(folders) -> None:
    pred, ref = folders
    before = evaluate_folders(pred, ref)
    stored = nib.load(pred / "y.nii.gz")
    nib.save(stored.as_reoriented([[2, -1], [0, 1], [1, -1]]), pred / "y.nii.gz")
    assert nib.load(pred / "y.nii.gz").shape != stored.shape
    assert evaluate_folders(pred, ref) == before


def test_labels_given_found_or_beside_the_references(folders) -> None:
    pred, ref = folders
    given = evaluate_folders(pred, ref, {"background": 0, "L": 1, "ignore": 2})
    assert given["cases"][1]["dice"] == {"L": 0.5}
    (ref.parent / "dataset.json").rename(ref / "dataset.json")
    assert list(evaluate_folders(pred, ref)["labels"]) == ["liver", "spleen", "cyst"]
    (ref / "dataset.json").unlink()
    assert list(evaluate_folders(pred, ref)["labels"]) == ["label_1", "label_2"]


def test_annotated_labels_beside_the_references(folders) -> None:
    pred, ref = folders
    (ref.parent / "annotated.json").write_text(json.dumps({"x": [1, 2], "y": [1, 3], "elsewhere": [2]}))
    summary = evaluate_folders(pred, ref)
    assert summary["cases"][0]["dice"] == {"liver": 1.0, "spleen": None, "cyst": None}
    assert summary["cases"][1]["dice"] == {"liver": 0.5, "spleen": None, "cyst": None}  # a spleen is predicted in y
    assert [case["unannotated"] for case in summary["cases"]] == [["cyst"], ["spleen"]]
    assert summary["labels"]["spleen"].items() >= (ROW | {"mean": None, "n": 0, "absent": 1, "unannotated": 1}).items()
    (ref / "annotated.json").write_text(json.dumps({"x": [1], "y": [3]}))  # nearer, and y has a liver
    with pytest.raises(DataError, match=r"y\.nii\.gz: voxels of 'liver' \(1\), which .* for case 'y'"):
        evaluate_folders(pred, ref)
    (ref / "annotated.json").write_text(json.dumps({"x": [1]}))
    with pytest.raises(DataError, match="case 'y' is not listed"):
        evaluate_folders(pred, ref)


def test_ignored_reference_voxels_are_left_out(folders) -> None:
    pred, ref = folders
    array = np.zeros((4, 5, 6))
    array[1:3], array[3] = 1, 3
    _save(ref / "y.nii.gz", array)
    summary = evaluate_folders(pred, ref, {"background": 0, "liver": 1, "spleen": 2, "ignore": 3})
    assert summary["cases"][1]["dice"] == {"liver": 1.0, "spleen": None}


def test_mistakes_are_one_line(folders, tmp_path: Path) -> None:
    pred, ref = folders
    for call, message in (
        (lambda: evaluate_folders(tmp_path / "none", ref), "no such folder"),
        (lambda: evaluate_folders(pred, ref.parent), "no label maps"),
        (lambda: evaluate_folders(pred, ref, {"background": 0, "liver": 1}), "value 2 is no label"),
        (lambda: evaluate_folders(pred, ref, {"background": 0}), "no foreground"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    _save(pred / "y.nii.gz", np.zeros((4, 5, 6)), np.diag([1, 1, 2, 1.0]))
    with pytest.raises(DataError, match=r"y\.nii\.gz"):
        evaluate_folders(pred, ref)
    (pred / "y.nii.gz").unlink()
    with pytest.raises(DataError, match=r"no prediction for y\.nii\.gz of the 2 cases"):
        evaluate_folders(pred, ref)
    (ref.parent / "dataset.json").write_text('{"labels": {"tumour": [1, 2]}}')
    _save(pred / "y.nii.gz", np.zeros((4, 5, 6)))
    with pytest.raises(DataError, match=r"dataset\.json"):
        evaluate_folders(pred, ref)


def test_folders_that_nothing_describes(folders) -> None:
    pred, ref = folders
    (ref.parent / "dataset.json").unlink()
    for values, words in (
        (np.zeros((4, 5, 6)), "no foreground label"),
        (np.full((4, 5, 6), -1), "value -1 is no label"),
    ):
        for folder in folders:
            for name in "xy":
                nib.save(nib.Nifti1Image(values.astype(np.int16), np.eye(4)), folder / f"{name}.nii.gz")
        with pytest.raises(DataError, match=words) as caught:
            evaluate_folders(pred, ref)
        assert "\n" not in str(caught.value)
