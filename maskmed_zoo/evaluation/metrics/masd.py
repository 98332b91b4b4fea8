"""The mean average surface distance: of each surface the mean distance to the other by area, and the mean of the two.

Source: Beneš and Zitová 2015, and Metrics Reloaded (Maier-Hein et al. 2024), as integrals over area; see `assd`. A
small surface weighs as much as a large one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from maskmed_zoo.evaluation.metrics import Metric
from maskmed_zoo.evaluation.parallel import over_labels

if TYPE_CHECKING:
    from maskmed_zoo.evaluation.case import LabelMapPair


def _of_pair(pair: LabelMapPair, names: Sequence[str]) -> dict[str, float]:
    def mean(name: str) -> float:
        surfaces = pair.surfaces(name)
        areas, distances = surfaces.areas, surfaces.between_patches
        ours = distances.prediction @ areas.prediction / areas.prediction.sum()
        theirs = distances.reference @ areas.reference / areas.reference.sum()
        return float((ours + theirs) / 2)

    return over_labels(pair, names, mean)


METRIC = Metric(
    name="masd",
    title="MASD",
    unit="mm",
    higher_is_better=False,
    definition="mean average surface distance, the mean of two: the mean distance from the predicted surface of a "
    "label to the reference's, and that back, each over the area of its surface",
    both_absent=None,
    one_absent="diagonal",
    compute=_of_pair,
)
