"""Scores of many cases to one summary, and whole folders of label maps to scores.

Idea: an average means nothing without its definition, so the summary carries it in words. A label absent in both maps
has no score and is counted, not averaged; a label that only one map has scores 0. A label that nobody looked for in a
case has no score there either, whatever was predicted, and is counted apart.
Deviation from nnU-Net: its `foreground_mean` is our `mean_dice_over_labels`; `mean_dice` averages within cases first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from maskmed_zoo.data.dataset import (
    ANNOTATED,
    ENDING,
    NO_OBJECT,
    annotated_labels,
    check_annotated,
    declared_labels,
    foreground_labels,
)
from maskmed_zoo.data.nifti import check_same_geometry, read_labels
from maskmed_zoo.data.predicted import is_objects_file, labels_of, objects_beside, renumbered
from maskmed_zoo.errors import DataError
from maskmed_zoo.evaluation.metrics.dice import dice_per_label
from maskmed_zoo.evaluation.metrics.objects import Matches, match_files, summarize_objects

DEFINITION = (
    "mean_dice is the mean over cases of each case's mean Dice over the foreground labels present in its reference or "
    "prediction; mean_dice_over_labels is the mean over labels of each label's mean over those cases; "
    "a label absent in both is left out and counted in absent; a label that was not looked for in a case is left out "
    "and counted in unannotated; std is the sample standard deviation over cases."
)


@dataclass
class CaseScores:
    """Dice in [0, 1] of one case by label name, `None` where prediction and reference both lack the label.

    `unannotated` names the labels that were not looked for in the case; scores they may have do not count.
    """

    identifier: str
    dice: dict[str, float | None]
    unannotated: frozenset[str] = frozenset()

    @property
    def mean(self) -> float | None:
        """Mean over the labels that have a score, `None` if none has."""
        return _mean(self.dice.values())


def summarize(cases: Sequence[CaseScores], label_names: Sequence[str]) -> dict[str, Any]:
    """A JSON-able summary of `cases` over the foreground labels `label_names`.

    Keys: `cases` (case, dice, mean, unannotated), `labels` (name to mean, std, n, absent, unannotated), `mean_dice`,
    `mean_dice_over_labels`, `absent`, `unannotated` and `definition`, which says how they are averaged. 'background'
    and 'ignore' are not scored. Raises `DataError` if a case lacks a label's score altogether or two cases have one
    name.
    """
    names = [name for name in label_names if name not in NO_OBJECT]
    for case in cases:
        lacking = [name for name in names if name not in case.dice and name not in case.unannotated]
        if lacking:
            raise DataError(f"case '{case.identifier}' has no score for {', '.join(lacking)}")
    if len({case.identifier for case in cases}) != len(cases):
        raise DataError("two cases to summarize have the same name")
    scored = [
        CaseScores(
            case.identifier,
            {name: None if name in case.unannotated else case.dice[name] for name in names},
            case.unannotated & set(names),
        )
        for case in cases
    ]
    labels = {
        name: _statistics([case.dice[name] for case in scored if name not in case.unannotated], len(cases))
        for name in names
    }
    return {
        "mean_dice": _mean(case.mean for case in scored),
        "mean_dice_over_labels": _mean(label["mean"] for label in labels.values()),
        "absent": sum(label["absent"] for label in labels.values()),
        "unannotated": sum(label["unannotated"] for label in labels.values()),
        "definition": DEFINITION,
        "labels": labels,
        "cases": [
            {"case": c.identifier, "dice": c.dice, "mean": c.mean, "unannotated": sorted(c.unannotated)} for c in scored
        ],
    }


def evaluate_folders(pred: Path, ref: Path, labels: dict[str, int] | None = None) -> dict[str, Any]:
    """`summarize` over every `*.nii.gz` in `ref` and the file of the same name in `pred`.

    `labels` maps names to values, with 'background' 0 and perhaps 'ignore'. Without it they come from `dataset.json` in
    `ref` or beside it, else from the values found, named `label_1`, …. Label maps of `predict` are compared by the
    names of their labels, whatever the values: see `data.predicted`. An `annotated.json` in `ref` or beside it says
    which labels were looked for in each case; it has to list every reference. Predictions without a reference are left
    out and listed under `unreferenced`. Where predictions have maps of objects beside them, these are scored too, under
    `instances`; see `match_files`. Raises `DataError` for no cases, a missing prediction, maps that do not lie on one
    another, values that are no label, and an annotated.json that the references contradict.
    """
    pred, ref = Path(pred), Path(ref)
    for folder in (pred, ref):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder")
    names = sorted(path.name for path in ref.glob(f"*{ENDING}") if not is_objects_file(path))
    predicted = {path.name for path in pred.glob(f"*{ENDING}") if not is_objects_file(path)}
    if not names:
        raise DataError(f"{ref}: no label maps (*{ENDING})")
    missing = [name for name in names if name not in predicted]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(f"{pred}: no prediction for {', '.join(missing[:3])}{more} of the {len(names)} cases in {ref}")
    labels = labels or _labels_of_dataset(ref)
    is_named = labels is not None
    labels = labels or _labels_found([folder / name for folder in (pred, ref) for name in names])
    scored = foreground_labels(labels)
    if not scored:
        raise DataError(f"no foreground label to score among {labels}")
    source = _beside(ref, ANNOTATED)
    identifiers = [name.removesuffix(ENDING) for name in names]
    annotated = annotated_labels(source, labels, identifiers, others=True) if source else {}
    cases: list[CaseScores] = []
    has_objects = any(objects_beside(pred / name).is_file() for name in names)
    objects: dict[str, dict[str, Matches]] = {}
    for name, identifier in zip(names, identifiers, strict=True):
        reference, prediction = read_labels(ref / name), read_labels(pred / name)
        check_same_geometry(reference, prediction)
        own = labels_of(pred / name) if is_named else None
        prediction = replace(prediction, array=renumbered(prediction.array, own, labels))
        for volume in (reference, prediction):
            values = set(np.unique(volume.array).tolist())
            unknown = values - {0, *labels.values()}
            if unknown:
                raise DataError(f"{volume.path}: value {min(unknown)} is no label; labels are {labels}")
            if volume is reference:
                check_annotated(values, volume.path, labels, annotated.get(identifier, scored))
        dice = dice_per_label(prediction.array, reference.array, list(scored.values()), labels.get("ignore"))
        found = {label: dice[value] for label, value in scored.items()}
        unannotated = frozenset(scored) - annotated.get(identifier, frozenset(scored))
        cases.append(CaseScores(identifier, found, unannotated))
        if has_objects:
            wanted = {label: value for label, value in scored.items() if label not in unannotated}
            objects[identifier] = match_files(prediction, reference, wanted, labels.get("ignore"))
    summary = summarize(cases, list(scored))
    summary["unreferenced"] = sorted(name.removesuffix(ENDING) for name in predicted - set(names))
    if objects:
        summary["instances"] = summarize_objects(objects, list(scored))
    return summary


def _beside(ref: Path, name: str) -> Path | None:
    """A file in the folder of references or beside it."""
    return next((path for path in (ref / name, ref.parent / name) if path.is_file()), None)


def _labels_of_dataset(ref: Path) -> dict[str, int] | None:
    source = _beside(ref, "dataset.json")
    return declared_labels(source) if source else None


def _labels_found(paths: Iterable[Path]) -> dict[str, int]:
    values = {value for path in paths for value in np.unique(read_labels(path).array).tolist()}
    return {"background": 0} | {f"label_{value}": value for value in sorted(values - {0})}


def _statistics(values: Sequence[float | None], cases: int) -> dict[str, Any]:
    present = [value for value in values if value is not None]
    return {
        "mean": _mean(present),
        "std": stdev(present) if len(present) > 1 else None,
        "n": len(present),
        "absent": len(values) - len(present),
        "unannotated": cases - len(values),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return fmean(present) if present else None
