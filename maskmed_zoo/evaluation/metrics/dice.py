"""The Dice coefficient of every label of two label maps, from one joint histogram.

Source: Dice 1945, 2 |A and B| / (|A| + |B|). A label absent in both maps has no Dice: `None`, neither 0 nor 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.errors import DataError
from maskmed_zoo.evaluation.metrics import Metric

if TYPE_CHECKING:
    from maskmed_zoo.evaluation.case import LabelMapPair

CHUNK_VOXELS = 2**22
"""Voxels counted at a time, so that large volumes need little extra memory."""


def dice_per_label(
    pred: NDArray[np.generic], ref: NDArray[np.generic], labels: Sequence[int], ignore: int | None = None
) -> dict[int, float | None]:
    """Dice in [0, 1] of each of `labels` between two integer label maps of one shape, `None` if absent in both.

    Voxels whose reference is `ignore` are left out. Raises `DataError` for unequal shapes, values that are not
    integers, and `labels` that repeat, contain `ignore` or are not in 0 … 65535.
    """
    if pred.shape != ref.shape:
        raise DataError(f"prediction {pred.shape} and reference {ref.shape} differ in shape")
    for name, array in (("prediction", pred), ("reference", ref)):
        if array.dtype.kind not in "iub":
            raise DataError(f"the {name} holds {array.dtype} values, a label map holds integers")
    if len(set(labels)) != len(labels) or ignore in labels or not all(0 <= label <= 65535 for label in labels):
        raise DataError(
            f"labels to score must be different integers from 0 to 65535, none of them the ignored {ignore}, "
            f"got {list(labels)}"
        )
    joint = _joint_histogram(np.atleast_1d(pred), np.atleast_1d(ref), labels, ignore)
    shared, volumes = joint.diagonal(), joint.sum(0) + joint.sum(1)
    return {
        label: 2 * int(shared[index]) / int(volumes[index]) if volumes[index] else None
        for index, label in enumerate(labels, start=1)
    }


def _of_pair(pair: LabelMapPair, names: Sequence[str]) -> dict[str, float]:
    values = [pair.labels[name] for name in names]
    found = dice_per_label(pair.prediction, pair.reference, values, pair.labels.ignore)
    return {name: found[value] or 0.0 for name, value in zip(names, values, strict=True)}


METRIC = Metric(
    name="dice",
    title="Dice",
    unit="",
    higher_is_better=True,
    definition="2 |A and B| / (|A| + |B|) of the voxels of a label in prediction and reference",
    both_absent=None,
    one_absent=0.0,
    compute=_of_pair,
)


def _joint_histogram(
    pred: NDArray[np.generic], ref: NDArray[np.generic], labels: Sequence[int], ignore: int | None
) -> NDArray[np.int64]:
    """(n+1 n+1) voxel counts, reference by prediction; row and column 0 gather all other values."""
    size = len(labels) + 1
    table = np.zeros(max(labels, default=0) + 3, np.int64)  # values -1 (and below) to largest label + 1 (and above)
    table[np.asarray(labels, np.int64) + 1] = np.arange(1, size)
    joint = np.zeros(size * size, np.int64)
    rows = max(1, CHUNK_VOXELS // max(1, ref[:1].size))
    for start in range(0, len(ref), rows):
        r = ref[start : start + rows].astype(np.int64).ravel()
        p = pred[start : start + rows].astype(np.int64).ravel()
        if ignore is not None:
            keep = r != ignore
            r, p = r[keep], p[keep]
        r, p = r.clip(-1, table.size - 2) + 1, p.clip(-1, table.size - 2) + 1
        joint += np.bincount(table[r] * size + table[p], minlength=size * size)
    return joint.reshape(size, size)
