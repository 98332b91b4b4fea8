"""The share of a label's predicted voxels that the reference has too, or positive predictive value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from maskmed_zoo.evaluation.metrics import Metric

if TYPE_CHECKING:
    from maskmed_zoo.evaluation.case import LabelMapPair


def _of_pair(pair: LabelMapPair, names: Sequence[str]) -> dict[str, float]:
    return {name: pair.voxels[name].shared / pair.voxels[name].prediction for name in names}


METRIC = Metric(
    name="precision",
    title="Precision",
    unit="",
    higher_is_better=True,
    definition="the share of the predicted voxels of a label that have it in the reference too",
    both_absent=None,
    one_absent=0.0,
    compute=_of_pair,
)
