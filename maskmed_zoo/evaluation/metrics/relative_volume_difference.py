"""The difference of a label's volumes over the reference's, in percent, without its sign.

Convention: a missed label has lost 100 %; one that the reference lacks, which has no volume to compare with, gets 100 %
too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from maskmed_zoo.evaluation.metrics import Metric

if TYPE_CHECKING:
    from maskmed_zoo.evaluation.case import LabelMapPair


def _of_pair(pair: LabelMapPair, names: Sequence[str]) -> dict[str, float]:
    counts = {name: pair.voxels[name] for name in names}
    return {name: 100 * abs(n.prediction - n.reference) / n.reference for name, n in counts.items()}


METRIC = Metric(
    name="relative_volume_difference",
    title="Relative volume difference",
    unit="%",
    higher_is_better=False,
    definition="the absolute difference of a label's volumes in prediction and reference, over that in the reference",
    both_absent=None,
    one_absent=100.0,
    compute=_of_pair,
)
