"""Are the tables of `evaluate` right? Those of real runs, computed once more by other means.

Of every run the label maps in `predictions/` and the references of its data set are read with nibabel, and overlaps,
volumes and means come from NumPy, NSD, HD and HD95 from DeepMind's `surface-distance` (`pip install
surface-distance==0.1`), with the worst value for a label that one side lacks and none for one that both lack. Nothing
of this package computes anything. One row per run and metric: how many values of cases and labels there are, how many
of them missed or false, and the largest difference of a value and of a mean over labels or cases to those in
`evaluation.json`.

    maskmed-zoo evaluate runs/mine --metrics iou,precision,recall,volume_difference,nsd,hd,hd95
    python docs/benchmarks/recomputed.py runs/mine --csv docs/benchmarks/recomputed.csv
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from measure import Row, machine, write

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it asks for names that SciPy has moved
    import surface_distance

METRICS = ("dice", "iou", "precision", "recall", "volume_difference", "nsd", "hd", "hd95")
TOLERANCE = 2.0
"""Of NSD, mm: the default."""


def case_values(prediction: np.ndarray, reference: np.ndarray, spacing: np.ndarray) -> dict[str, float]:
    """Of two masks (i j k); NaN where neither has a voxel."""
    both, ours, theirs = (int(mask.sum()) for mask in (prediction & reference, prediction, reference))
    if not ours and not theirs:
        return dict.fromkeys(METRICS, np.nan)
    values = {
        "dice": 2 * both / (ours + theirs),
        "iou": both / (ours + theirs - both),
        "precision": both / ours if ours else 0.0,
        "recall": both / theirs if theirs else 0.0,
        "volume_difference": abs(ours - theirs) * float(np.prod(spacing)) / 1000,
    }
    if not ours or not theirs:
        worst = float(np.linalg.norm(np.array(prediction.shape) * spacing))
        return values | {"nsd": 0.0, "hd": worst, "hd95": worst}
    found: dict[str, Any] = surface_distance.compute_surface_distances(reference, prediction, spacing)
    return values | {
        "nsd": float(surface_distance.compute_surface_dice_at_tolerance(found, TOLERANCE)),
        "hd": float(surface_distance.compute_robust_hausdorff(found, 100)),
        "hd95": float(surface_distance.compute_robust_hausdorff(found, 95)),
    }


def recomputed(run: Path) -> list[Row]:
    """Rows of a run that `evaluate` has scored with all `METRICS`."""
    manifest, scores = (json.loads((run / name).read_text()) for name in ("manifest.json", "evaluation.json"))
    source = Path(manifest["data"][0]["path"])
    labels = {name: value for name, value in manifest["data"][0]["labels"].items() if value and name != "ignore"}
    cases = [case["case"] for case in scores["cases"]]
    table = np.empty((len(METRICS), len(cases), len(labels)))
    lacking = 0
    for index, case in enumerate(cases):
        reference = nib.load(source / "labelsTr" / f"{case}.nii.gz")
        arrays = [np.asarray(image.dataobj) for image in (nib.load(run / "predictions" / f"{case}.nii.gz"), reference)]
        spacing = np.linalg.norm(reference.affine[:3, :3], axis=0)
        for column, value in enumerate(labels.values()):
            masks = [array == value for array in arrays]
            lacking += masks[0].any() != masks[1].any()
            values = case_values(*masks, spacing)
            table[:, index, column] = [values[name] for name in METRICS]
    rows: list[Row] = []
    for metric, expected in zip(METRICS, table, strict=True):
        stored = scores if metric == "dice" else scores["metrics"][metric]
        found = [[case[metric][name] for name in labels] for case in stored["cases"]]
        found = np.array([[np.nan if value is None else value for value in row] for row in found])
        if (np.isnan(found) != np.isnan(expected)).any():
            raise SystemExit(f"{run}: {metric}: other cases have a value")
        means = [stored["labels"][name]["mean"] for name in labels]
        over_labels = np.abs(np.array(means) - np.nanmean(expected, axis=0)).max()
        over_cases = abs(np.nanmean([case["mean"] for case in stored["cases"]]) - np.nanmean(np.nanmean(expected, 1)))
        rows.append(
            {
                "dataset": manifest["dataset"],
                "fold": manifest["fold"],
                "recipe": manifest["recipe"],
                "cases": len(cases),
                "labels": len(labels),
                "metric": metric,
                "values": int(np.isfinite(expected).sum()),
                "missed_or_false": lacking,
                "largest_difference": float(np.nanmax(np.abs(found - expected))),
                "largest_difference_of_means": float(max(over_labels, over_cases)),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, with evaluation.json")
    parser.add_argument("--csv", type=Path, default=Path("recomputed.csv"))
    args = parser.parse_args()
    facts = machine()
    write(args.csv, [row | facts for run in args.runs for row in recomputed(run)])


if __name__ == "__main__":
    main()
