"""Lesion-wise Dice as in BraTS 2023; the rule and its source are in `evaluation.lesions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from maskmed_zoo.evaluation.lesions import brats_words
from maskmed_zoo.evaluation.metrics import Metric

if TYPE_CHECKING:
    from maskmed_zoo.evaluation.case import LabelMapPair


def _of_pair(pair: LabelMapPair, names: Sequence[str]) -> dict[str, float]:
    found = {name: pair.lesions.brats(name) for name in names}
    return {name: lesions.mean(float(lesions.dice.sum()), 0.0, 1.0) for name, lesions in found.items()}


METRIC = Metric(
    name="brats_dice",
    title="BraTS lesion-wise Dice",
    unit="",
    higher_is_better=True,
    definition="as in BraTS 2023, the mean over lesions of the Dice of each with all that belongs to it, and over "
    "predicted parts that belong to none, 0 each; 1 where there are none of both",
    both_absent=1.0,
    one_absent=None,
    compute=_of_pair,
    details=brats_words,
)
