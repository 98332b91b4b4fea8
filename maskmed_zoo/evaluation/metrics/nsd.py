"""The normalized surface Dice: the share of both surfaces that lies within a tolerance of the other one.

Source: Nikolov et al. 2018 (arXiv 1809.04430); equal to `surface-distance` 0.1 in the tests. MONAI's surface Dice is
the same only with `use_subvoxels=True`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from maskmed_zoo.evaluation.metrics import Metric
from maskmed_zoo.evaluation.parallel import over_labels
from maskmed_zoo.metric_settings import TOLERANCE, MetricSettings

if TYPE_CHECKING:
    from maskmed_zoo.evaluation.case import LabelMapPair


def _of_pair(pair: LabelMapPair, names: Sequence[str]) -> dict[str, float]:
    def share(name: str) -> float:
        surfaces, tolerance = pair.surfaces(name), pair.settings.tolerance_of(name)
        areas, distances = surfaces.areas, surfaces.between_corners
        within = areas.prediction[distances.prediction <= tolerance].sum()
        within += areas.reference[distances.reference <= tolerance].sum()
        return float(within / (areas.prediction.sum() + areas.reference.sum()))

    return over_labels(pair, names, share)


def _tolerances(settings: MetricSettings) -> str:
    if not isinstance(settings.tolerance, dict):
        return f"the tolerance is {settings.tolerance:g} mm"
    named = [f"{mm:g} mm for {name}" for name, mm in settings.tolerance.items()]
    others = [f"{TOLERANCE:g} mm for any other"] if settings.has_others else []
    return f"the tolerance is {', '.join([*named, *others])}"


METRIC = Metric(
    name="nsd",
    title="NSD",
    unit="",
    higher_is_better=True,
    definition="normalized surface Dice, the share of the areas of both surfaces of a label within a tolerance of the "
    "other surface",
    both_absent=None,
    one_absent=0.0,
    compute=_of_pair,
    details=_tolerances,
)
