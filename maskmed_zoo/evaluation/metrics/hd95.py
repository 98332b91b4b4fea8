"""The robust Hausdorff distance: how far 95 % of a surface's area lies at most from the other one, the larger of both.

Source: the definition of Nikolov et al. 2018 (arXiv 1809.04430) by area, not by a count of voxels; equal to
`surface-distance` 0.1 in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from maskmed_zoo.evaluation.metrics import Metric
from maskmed_zoo.evaluation.parallel import over_labels
from maskmed_zoo.evaluation.surfaces import Lengths, SurfacePair

if TYPE_CHECKING:
    from maskmed_zoo.evaluation.case import LabelMapPair

SHARE = 0.95


def hd95(surfaces: SurfacePair) -> float:
    """Robust Hausdorff distance of two surfaces, mm."""
    distances, areas = surfaces.between_corners, surfaces.areas
    return max(_reached(distances.prediction, areas.prediction), _reached(distances.reference, areas.reference))


def _reached(distances: Lengths, areas: Lengths) -> float:
    """The smallest distance (n) up to which the areas (n) make the share of all."""
    order = np.argsort(distances)
    shares = np.cumsum(areas[order])
    return float(distances[order[min(np.searchsorted(shares / shares[-1], SHARE), len(order) - 1)]])


def _of_pair(pair: LabelMapPair, names: Sequence[str]) -> dict[str, float]:
    return over_labels(pair, names, lambda name: hd95(pair.surfaces(name)))


METRIC = Metric(
    name="hd95",
    title="HD95",
    unit="mm",
    higher_is_better=False,
    definition="robust Hausdorff distance, within which 95 % of the area of each surface of a label lies from the "
    "other, the larger of both directions",
    both_absent=None,
    one_absent="diagonal",
    compute=_of_pair,
)
