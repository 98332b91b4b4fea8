"""Scores of many cases to one summary, and whole folders of label maps to scores.

Idea: an average means nothing without its definition, so the summary carries it in words. A label absent in both maps
has no score and is counted, not averaged; a label that only one map has scores 0.
Deviation from nnU-Net: its `foreground_mean` is our `mean_dice_over_labels`; `mean_dice` averages within cases first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from maskmed_zoo.data.dataset import ENDING, declared_labels
from maskmed_zoo.data.nifti import check_same_geometry, read_labels
from maskmed_zoo.errors import DataError
from maskmed_zoo.evaluation.dice import dice_per_label

NOT_SCORED = ("background", "ignore")
DEFINITION = (
    "mean_dice is the mean over cases of each case's mean Dice over the foreground labels present in its reference or "
    "prediction; mean_dice_over_labels is the mean over labels of each label's mean over those cases; "
    "a label absent in both is left out and counted in absent; std is the sample standard deviation over cases."
)


@dataclass
class CaseScores:
    """Dice in [0, 1] of one case by label name, `None` where prediction and reference both lack the label."""

    identifier: str
    dice: dict[str, float | None]

    @property
    def mean(self) -> float | None:
        """Mean over the labels that have a score, `None` if none has."""
        return _mean(self.dice.values())


def summarize(cases: Sequence[CaseScores], label_names: Sequence[str]) -> dict[str, Any]:
    """A JSON-able summary of `cases` over the foreground labels `label_names`.

    Keys: `cases` (case, dice, mean), `labels` (name to mean, std, n, absent), `mean_dice`, `mean_dice_over_labels`,
    `absent` and `definition`, which says how they are averaged. 'background' and 'ignore' are not scored. Raises
    `DataError` if a case lacks a label's score altogether or two cases have one name.
    """
    names = [name for name in label_names if name not in NOT_SCORED]
    for case in cases:
        lacking = [name for name in names if name not in case.dice]
        if lacking:
            raise DataError(f"case '{case.identifier}' has no score for {', '.join(lacking)}")
    if len({case.identifier for case in cases}) != len(cases):
        raise DataError("two cases to summarize have the same name")
    scored = [CaseScores(case.identifier, {name: case.dice[name] for name in names}) for case in cases]
    labels = {name: _statistics([case.dice[name] for case in scored]) for name in names}
    return {
        "mean_dice": _mean(case.mean for case in scored),
        "mean_dice_over_labels": _mean(label["mean"] for label in labels.values()),
        "absent": sum(label["absent"] for label in labels.values()),
        "definition": DEFINITION,
        "labels": labels,
        "cases": [{"case": case.identifier, "dice": case.dice, "mean": case.mean} for case in scored],
    }


def evaluate_folders(pred: Path, ref: Path, labels: dict[str, int] | None = None) -> dict[str, Any]:
    """`summarize` over every `*.nii.gz` in `ref` and the file of the same name in `pred`.

    `labels` maps names to values, with 'background' 0 and perhaps 'ignore'. Without it they come from `dataset.json` in
    `ref` or beside it, else from the values found, named `label_1`, …. Predictions without a reference are left out and
    listed under `unreferenced`. Raises `DataError` for no cases, a missing prediction, maps that do not lie on one
    another, and values that are no label.
    """
    pred, ref = Path(pred), Path(ref)
    for folder in (pred, ref):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder")
    names = sorted(path.name for path in ref.glob(f"*{ENDING}"))
    predicted = {path.name for path in pred.glob(f"*{ENDING}")}
    if not names:
        raise DataError(f"{ref}: no label maps (*{ENDING})")
    missing = [name for name in names if name not in predicted]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(f"{pred}: no prediction for {', '.join(missing[:3])}{more} of the {len(names)} cases in {ref}")
    labels = (
        labels or _labels_of_dataset(ref) or _labels_found([folder / name for folder in (pred, ref) for name in names])
    )
    ignore = labels.get("ignore")
    foreground = {name: value for name, value in labels.items() if name not in NOT_SCORED}
    if not foreground:
        raise DataError(f"no foreground label to score among {labels}")
    cases: list[CaseScores] = []
    for name in names:
        reference, prediction = read_labels(ref / name), read_labels(pred / name)
        check_same_geometry(reference, prediction)
        for volume in (reference, prediction):
            unknown = set(np.unique(volume.array).tolist()) - {0, *labels.values()}
            if unknown:
                raise DataError(f"{volume.path}: value {min(unknown)} is no label; labels are {labels}")
        dice = dice_per_label(prediction.array, reference.array, list(foreground.values()), ignore)
        scores = {label: dice[value] for label, value in foreground.items()}
        cases.append(CaseScores(name.removesuffix(ENDING), scores))
    summary = summarize(cases, list(foreground))
    summary["unreferenced"] = sorted(name.removesuffix(ENDING) for name in predicted - set(names))
    return summary


def _labels_of_dataset(ref: Path) -> dict[str, int] | None:
    paths = (ref / "dataset.json", ref.parent / "dataset.json")
    return next((declared_labels(path) for path in paths if path.is_file()), None)


def _labels_found(paths: Iterable[Path]) -> dict[str, int]:
    values = {value for path in paths for value in np.unique(read_labels(path).array).tolist()}
    return {"background": 0} | {f"label_{value}": value for value in sorted(values - {0})}


def _statistics(values: Sequence[float | None]) -> dict[str, Any]:
    present = [value for value in values if value is not None]
    return {
        "mean": _mean(present),
        "std": stdev(present) if len(present) > 1 else None,
        "n": len(present),
        "absent": len(values) - len(present),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return fmean(present) if present else None
