"""Dice lesion by lesion, so that a small one counts as much as a large one.

As lesion-wise Dice of BraTS 2023 (`brats_dice`), without dilation and without a smallest volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from maskmed_zoo.evaluation.lesions import LESION
from maskmed_zoo.evaluation.metrics import Metric
from maskmed_zoo.evaluation.parallel import over_labels

if TYPE_CHECKING:
    from maskmed_zoo.evaluation.case import LabelMapPair


def _of_pair(pair: LabelMapPair, names: Sequence[str]) -> dict[str, float]:
    def score(name: str) -> float:
        met = pair.lesions(name)
        return float(met.dice.sum()) / (len(met.reference) + met.false)

    return over_labels(pair, names, score)


METRIC = Metric(
    name="lesion_dice",
    title="lesion Dice",
    unit="",
    higher_is_better=True,
    definition=f"the mean over reference lesions of the Dice of each with all predicted lesions that overlap it, 0 if "
    f"none does, and over predicted lesions that overlap none, 0 each. {LESION}",
    both_absent=None,
    one_absent=0.0,
    compute=_of_pair,
)
