"""The expected calibration error of a label: how far its probabilities are from the frequencies they promise.

The definition and its sources are in `evaluation.calibration`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from maskmed_zoo.evaluation.metrics import Metric
from maskmed_zoo.metric_settings import MetricSettings

if TYPE_CHECKING:
    from maskmed_zoo.evaluation.case import LabelMapPair


def _of_pair(pair: LabelMapPair, names: Sequence[str]) -> dict[str, float]:
    return {name: pair.calibration.labels[name].ece for name in names}


def _details(settings: MetricSettings) -> str:
    return f"there are {settings.calibration_bins} bins of equal width (calibration_bins)"


METRIC = Metric(
    name="ece",
    title="ECE",
    unit="",
    higher_is_better=False,
    definition="expected calibration error, one label against the rest: all voxels are put into bins by the "
    "probability of the label; the mean over voxels of how far the share that has the label in the reference is from "
    "the mean probability of the bin",
    both_absent=None,
    one_absent=None,
    compute=_of_pair,
    details=_details,
    from_probabilities=True,
)
