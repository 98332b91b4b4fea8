"""Lesion-wise Dice as in BraTS 2023; the rule and its source are in `evaluation.lesions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from maskmed_zoo.evaluation.lesions import brats_words
from maskmed_zoo.evaluation.metrics import Metric
from maskmed_zoo.evaluation.parallel import over_labels

if TYPE_CHECKING:
    from maskmed_zoo.evaluation.case import LabelMapPair


def _of_pair(pair: LabelMapPair, names: Sequence[str]) -> dict[str, float]:
    def score(name: str) -> float:
        found = pair.brats_lesions(name)
        return found.mean(found.dice.tolist(), false=0.0, nothing=1.0)

    return over_labels(pair, names, score)


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
