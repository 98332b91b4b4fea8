"""The difference of a label's volumes in prediction and reference, without its sign: errors of two cases add up."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from maskmed_zoo.evaluation.metrics import Metric

if TYPE_CHECKING:
    from maskmed_zoo.evaluation.case import LabelMapPair


def _of_pair(pair: LabelMapPair, names: Sequence[str]) -> dict[str, float]:
    voxel = prod(pair.spacing) / 1000  # mL
    return {name: abs(pair.voxels[name].prediction - pair.voxels[name].reference) * voxel for name in names}


METRIC = Metric(
    name="volume_difference",
    title="Volume difference",
    unit="mL",
    higher_is_better=False,
    definition="the absolute difference of the volumes of a label in prediction and reference",
    both_absent=None,
    one_absent=None,
    compute=_of_pair,
)
