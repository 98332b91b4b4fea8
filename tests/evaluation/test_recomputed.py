"""Tables of real references, all cases of a fold, computed once more with NumPy alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from maskmed_zoo.evaluation.case_table import write_cases
from maskmed_zoo.evaluation.folders import evaluate_folders

FOLDS = {"Dataset004_Hippocampus": 40, "Dataset101_HeadNeckCT": 25}


def dice_of(prediction: np.ndarray, reference: np.ndarray) -> float:
    """NaN where neither has a voxel."""
    both, size = np.logical_and(prediction, reference).sum(), prediction.sum() + reference.sum()
    return 2 * both / size if size else float("nan")


@pytest.mark.parametrize("dataset", FOLDS)
def test_tables_of_a_fold_are_those_computed_again(dataset: str, real_data: Path, tmp_path: Path) -> None:
    """Predictions are references moved by a voxel; every seventh lacks the first label, every ninth has none of it."""
    source = real_data / dataset
    cases = json.loads((source / "splits_final.json").read_text())[0]["val"]
    labels = {
        name: value for name, value in json.loads((source / "dataset.json").read_text())["labels"].items() if value
    }
    pred, ref = tmp_path / "pred", tmp_path / "ref"
    pred.mkdir()
    ref.mkdir()
    (ref / "dataset.json").symlink_to(source / "dataset.json")
    table = np.empty((len(cases), len(labels)))
    for index, case in enumerate(cases):
        image = nib.load(source / "labelsTr" / f"{case}.nii.gz")
        reference = np.asarray(image.dataobj).astype(np.int16)
        prediction = np.roll(reference, 1 + index % 2, axis=index % 3)
        if index % 7 == 0:
            prediction[prediction == 1] = 0
        if index % 9 == 0:
            reference[reference == 1] = 0
        for folder, array in ((pred, prediction), (ref, reference)):
            nib.save(nib.Nifti1Image(array, image.affine), folder / f"{case}.nii.gz")
        table[index] = [dice_of(prediction == value, reference == value) for value in labels.values()]
    summary = evaluate_folders(pred, ref)
    assert len(summary["cases"]) == len(cases) == FOLDS[dataset]
    assert [case["case"] for case in summary["cases"]] == sorted(cases)
    order = np.argsort(cases)
    found = [[np.nan if v is None else v for v in case["dice"].values()] for case in summary["cases"]]
    np.testing.assert_allclose(found, table[order], rtol=1e-12)
    means = np.nanmean(table, axis=1)
    assert summary["mean_dice"] == pytest.approx(means.mean(), rel=1e-12)
    assert summary["mean_dice_over_labels"] == pytest.approx(np.nanmean(table, axis=0).mean(), rel=1e-12)
    quartiles = [summary["over_cases"][key] for key in ("q1", "median", "q3")]
    assert quartiles == pytest.approx(np.percentile(means, (25, 50, 75)), rel=1e-12)
    assert summary["over_cases"]["worst"] == [cases[i] for i in np.argsort(means, kind="stable")[:5]]
    for column, (name, row) in enumerate(summary["labels"].items()):
        there = table[:, column][~np.isnan(table[:, column])]
        assert name == list(labels)[column]
        assert (row["mean"], row["std"]) == pytest.approx((there.mean(), there.std(ddof=1)), rel=1e-12)
        assert (row["n"], row["absent"]) == (len(there), len(cases) - len(there))
    first = summary["labels"][next(iter(labels))]
    assert first["missed"] == sum(i % 7 == 0 and i % 9 != 0 for i in range(len(cases)))
    assert first["false"] == sum(i % 9 == 0 and i % 7 != 0 for i in range(len(cases)))
    write_cases(summary, tmp_path / "cases.csv")
    with (tmp_path / "cases.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    values = [float(row["value"] or "nan") for row in rows]
    np.testing.assert_allclose(np.reshape(values, table.shape), table[order], rtol=1e-12)
