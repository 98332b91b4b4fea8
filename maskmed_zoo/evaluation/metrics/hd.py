"""The Hausdorff distance: the largest distance of any point of one surface of a label from the other.

Source: Hausdorff 1914, of the surfaces of `evaluation.surfaces`; equal to `surface-distance` 0.1 in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from maskmed_zoo.evaluation.metrics import Metric
from maskmed_zoo.evaluation.parallel import over_labels

if TYPE_CHECKING:
    from maskmed_zoo.evaluation.case import LabelMapPair


def _of_pair(pair: LabelMapPair, names: Sequence[str]) -> dict[str, float]:
    def largest(name: str) -> float:
        distances = pair.surfaces(name).between_corners
        return float(max(distances.prediction.max(), distances.reference.max()))

    return over_labels(pair, names, largest)


METRIC = Metric(
    name="hd",
    title="HD",
    unit="mm",
    higher_is_better=False,
    definition="Hausdorff distance, the largest distance from either surface of a label to the other",
    both_absent=None,
    one_absent="diagonal",
    compute=_of_pair,
)
