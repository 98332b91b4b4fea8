"""Lesion-wise HD95 as in BraTS 2023; the rule and its source are in `evaluation.lesions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from maskmed_zoo.evaluation.lesions import brats_words
from maskmed_zoo.evaluation.metrics import Metric
from maskmed_zoo.evaluation.metrics.hd95 import hd95
from maskmed_zoo.evaluation.parallel import over_labels
from maskmed_zoo.evaluation.surfaces import surface_pair
from maskmed_zoo.metric_settings import MetricSettings

if TYPE_CHECKING:
    from maskmed_zoo.evaluation.case import LabelMapPair


def _of_pair(pair: LabelMapPair, names: Sequence[str]) -> dict[str, float]:
    penalty = pair.settings.brats_penalty

    def score(name: str) -> float:
        found = pair.brats_lesions(name)
        distances = [hd95(surface_pair(p, r, pair.spacing)) if p.any() else penalty for p, r in found.masks()]
        return found.mean(distances, false=penalty, nothing=0.0)

    return over_labels(pair, names, score)


def _details(settings: MetricSettings) -> str:
    return f"{brats_words(settings)}. The penalty is {settings.brats_penalty:g} mm (brats_penalty)"


METRIC = Metric(
    name="brats_hd95",
    title="BraTS lesion-wise HD95",
    unit="mm",
    higher_is_better=False,
    definition="as in BraTS 2023, the mean over lesions of the HD95 of each with all that belongs to it, a penalty if "
    "nothing does, and over predicted parts that belong to none, the penalty each; 0 where there are none of both",
    both_absent=0.0,
    one_absent=None,
    compute=_of_pair,
    details=_details,
)
