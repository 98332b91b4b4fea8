"""Scores of separated instances: panoptic quality, lesion-wise Dice and detection.

Source: panoptic quality, Kirillov et al. 2019; lesion-wise Dice, BraTS 2023 (arXiv 2305.17033). Compared in the tests
with MONAI's `compute_panoptic_quality`. Deviations from BraTS: no dilation of the reference, no smallest volume, and a
case without any object is left out where BraTS gives it a 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskmed_zoo.evaluation.matching import Ids, Quality, overlaps
from maskmed_zoo.evaluation.mean import mean

DEFINITION = (
    "objects are compared label by label. A predicted and a reference object are a pair (tp) if their IoU is over 0.5; "
    "objects without a partner are fp and fn. sq is the mean IoU of the pairs, rq = tp / (tp + fp/2 + fn/2), "
    "pq = sq x rq, from the counts of all cases together. lesion_dice: for every reference object the Dice with all "
    "predicted objects that overlap it, 0 if none does, and a 0 for every predicted object that overlaps no reference "
    "object (false); their mean within a case, then over cases. A reference object is found if a predicted one "
    "overlaps it, else missed; f1 = 2 found / (2 found + missed + false). n counts the cases with an object in the "
    "reference or the prediction; absent counts those without, which are left out; a case in which the label was not "
    "annotated is in neither. Overall means are over labels. No dilation, no smallest volume."
)
MEANS = ("pq", "sq", "rq", "lesion_dice", "f1")
COUNTS = ("tp", "fp", "fn", "found", "missed", "false")


@dataclass(frozen=True, eq=False)
class Separated:
    """Numbers of the instances (z y x) of a predicted and of a reference label map, 0 for none."""

    prediction: Ids
    reference: Ids


@dataclass(frozen=True)
class Matches:
    """What became of the objects of one label in one case.

    `ious` of the pairs; `dice` of each reference object with what overlaps it; `false` predicted objects overlap none.
    """

    ious: tuple[float, ...]
    dice: tuple[float, ...]
    predicted: int
    false: int

    @property
    def lesion_dice(self) -> float | None:
        """Mean over reference objects and false ones, None where there is neither."""
        count = len(self.dice) + self.false
        return sum(self.dice) / count if count else None


def match_objects(
    pred: tuple[Ids, Ids], ref: tuple[Ids, Ids], labels: Mapping[str, int], ignore: int | None = None
) -> dict[str, Matches]:
    """Matches for each of `labels` (name to value) of a prediction and a reference, each label map and object ids.

    All arrays are (z y x); id 0 is no object. Voxels whose reference label is `ignore` count on neither side.
    """
    counted = ref[0] != (-1 if ignore is None else ignore)
    found: dict[str, Matches] = {}
    for name, value in labels.items():
        ours, theirs = (np.where((side[0] == value) & counted, side[1], 0) for side in (pred, ref))
        found[name] = _match(ours, theirs)
    return found


def _match(pred: Ids, ref: Ids) -> Matches:
    met = overlaps(pred, ref)
    return Matches(tuple(met.pairs()), tuple(met.dice.tolist()), len(met.prediction), met.false)


def summarize_objects(cases: Mapping[str, Mapping[str, Matches]], label_names: Sequence[str]) -> dict[str, Any]:
    """A JSON-able summary of cases (identifier to label name to matches; a label that was not annotated is left out).

    Keys: `pq`, `sq`, `rq`, `lesion_dice`, `f1` (means over labels), the counts over all labels, `definition`,
    `labels` (name to the same, and `n`, `absent`) and `cases` (case, labels).
    """
    rows = {case: {name: _row(found) for name, found in labels.items()} for case, labels in cases.items()}
    return summarize_rows(rows, label_names)


def summarize_rows(cases: Mapping[str, Mapping[str, dict[str, Any]]], label_names: Sequence[str]) -> dict[str, Any]:
    """The same of each case's row for every label, as they stand under `cases` of a summary."""
    labels = {name: _together([case[name] for case in cases.values() if name in case]) for name in label_names}
    return {
        **{key: mean(row[key] for row in labels.values()) for key in MEANS},
        **{key: sum(row[key] for row in labels.values()) for key in COUNTS},
        "definition": DEFINITION,
        "labels": labels,
        "cases": [{"case": identifier, "labels": dict(case)} for identifier, case in cases.items()],
    }


def _row(found: Matches) -> dict[str, Any]:
    """Of one label in one case."""
    reference, hit = len(found.dice), sum(d > 0 for d in found.dice)
    tp, predicted = len(found.ious), found.predicted
    counts = (tp, predicted - tp, reference - tp, hit, reference - hit, found.false)
    there = int(bool(reference or predicted))
    return _quality(found.ious, found.lesion_dice, counts, there, 1)


def _together(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of one label in several cases, from the row of each."""
    ious = [row["sq"] for row in rows for _ in range(row["tp"])]
    counts = tuple(sum(row[key] for row in rows) for key in COUNTS)
    there = sum(row["n"] for row in rows)
    return _quality(ious, mean(row["lesion_dice"] for row in rows), counts, there, len(rows))


def _quality(
    ious: Sequence[float], lesion_dice: float | None, counts: Sequence[int], there: int, cases: int
) -> dict[str, Any]:
    """A row: `ious` are those of the pairs, or as many of the same mean; `counts` are `COUNTS`."""
    tp, fp, fn, found, missed, false = counts
    return {
        **Quality.of_pairs(ious, tp + fp, tp + fn)._asdict(),
        "lesion_dice": lesion_dice,
        "f1": 2 * found / (2 * found + missed + false) if there else None,
        **dict(zip(COUNTS, counts, strict=True)),
        "n": there,
        "absent": cases - there,
    }
