"""The Brier score of a label: how far its probabilities are from what the reference says.

The definition and its sources are in `evaluation.calibration`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from maskmed_zoo.evaluation.metrics import Metric

if TYPE_CHECKING:
    from maskmed_zoo.evaluation.case import LabelMapPair


def _of_pair(pair: LabelMapPair, names: Sequence[str]) -> dict[str, float]:
    return {name: pair.calibration.labels[name].brier for name in names}


METRIC = Metric(
    name="brier",
    title="Brier score",
    unit="",
    higher_is_better=False,
    definition="the mean over all voxels of (p - y)², p being the probability of a label and y 1 where the reference "
    "has it, else 0",
    both_absent=None,
    one_absent=None,
    compute=_of_pair,
    from_probabilities=True,
)
