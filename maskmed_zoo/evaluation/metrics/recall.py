"""The share of a label's reference voxels that were predicted, or sensitivity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from maskmed_zoo.evaluation.metrics import Metric

if TYPE_CHECKING:
    from maskmed_zoo.evaluation.case import LabelMapPair


def _of_pair(pair: LabelMapPair, names: Sequence[str]) -> dict[str, float]:
    return {name: pair.voxels[name].shared / pair.voxels[name].reference for name in names}


METRIC = Metric(
    name="recall",
    title="Recall",
    unit="",
    higher_is_better=True,
    definition="the share of a label's voxels in the reference that were predicted, also called sensitivity",
    both_absent=None,
    one_absent=0.0,
    compute=_of_pair,
)
