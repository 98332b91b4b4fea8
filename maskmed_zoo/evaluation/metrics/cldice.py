"""The centreline Dice of tubes: whether each one's centreline runs inside the other.

Source: Shit et al. 2021 (arXiv 2003.07311), equation 2. Its skeletons are scikit-image's; see `evaluation.skeleton` for
the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from maskmed_zoo.evaluation.metrics import Metric
from maskmed_zoo.evaluation.parallel import over_labels
from maskmed_zoo.evaluation.skeleton import skeleton

if TYPE_CHECKING:
    from maskmed_zoo.evaluation.case import LabelMapPair


def _of_pair(pair: LabelMapPair, names: Sequence[str]) -> dict[str, float]:
    def score(name: str) -> float:
        ours, theirs = pair.masks(name)
        inside = float(theirs[skeleton(ours)].mean())
        found = float(ours[skeleton(theirs)].mean())
        return 2 * inside * found / (inside + found) if inside + found else 0.0

    return over_labels(pair, names, score)


METRIC = Metric(
    name="cldice",
    title="clDice",
    unit="",
    higher_is_better=True,
    definition="centreline Dice, the harmonic mean of two: the share of the prediction's centreline of a label inside "
    "the reference, and the share of the reference's inside the prediction; a centreline is the mask thinned to lines "
    "of one voxel",
    both_absent=None,
    one_absent=0.0,
    compute=_of_pair,
)
