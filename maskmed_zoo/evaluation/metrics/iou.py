"""The intersection over union of every label, or Jaccard index.

Source: Jaccard 1912, |A and B| / |A or B|; 2 IoU / (1 + IoU) is Dice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from maskmed_zoo.evaluation.metrics import Metric

if TYPE_CHECKING:
    from maskmed_zoo.evaluation.case import LabelMapPair


def _of_pair(pair: LabelMapPair, names: Sequence[str]) -> dict[str, float]:
    counts = {name: pair.voxels[name] for name in names}
    return {name: n.shared / (n.prediction + n.reference - n.shared) for name, n in counts.items()}


METRIC = Metric(
    name="iou",
    title="IoU",
    unit="",
    higher_is_better=True,
    definition="|A and B| / |A or B| of the voxels of a label in prediction and reference",
    both_absent=None,
    one_absent=0.0,
    compute=_of_pair,
)
