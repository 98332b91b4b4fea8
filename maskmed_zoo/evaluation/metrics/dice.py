"""The Dice coefficient of every label of two label maps, from one joint histogram.

Source: Dice 1945, 2 |A and B| / (|A| + |B|). A label absent in both maps has no Dice: `None`, neither 0 nor 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from maskmed_zoo.errors import DataError
from maskmed_zoo.evaluation.joint import joint_histogram
from maskmed_zoo.evaluation.metrics import Metric

if TYPE_CHECKING:
    from maskmed_zoo.evaluation.case import LabelMapPair


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
    joint = joint_histogram(np.atleast_1d(pred), np.atleast_1d(ref), labels, ignore)
    shared, volumes = joint.diagonal(), joint.sum(0) + joint.sum(1)
    return {
        label: 2 * int(shared[index]) / int(volumes[index]) if volumes[index] else None
        for index, label in enumerate(labels, start=1)
    }


def _of_pair(pair: LabelMapPair, names: Sequence[str]) -> dict[str, float]:
    counts = {name: pair.voxels[name] for name in names}
    return {name: 2 * n.shared / (n.prediction + n.reference) for name, n in counts.items()}


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
