"""Panoptic quality of the lesions of a label.

Source: Kirillov et al. 2019 (arXiv 1801.00868), of one case and label; compared with panoptica and MONAI.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from maskmed_zoo.evaluation.lesions import PAIRS
from maskmed_zoo.evaluation.matching import Quality
from maskmed_zoo.evaluation.metrics import Metric
from maskmed_zoo.evaluation.parallel import over_labels

if TYPE_CHECKING:
    from maskmed_zoo.evaluation.case import LabelMapPair


def _of_pair(pair: LabelMapPair, names: Sequence[str]) -> dict[str, float]:
    return over_labels(pair, names, lambda name: Quality.of(pair.lesions(name)).pq or 0.0)


METRIC = Metric(
    name="lesion_pq",
    title="lesion PQ",
    unit="",
    higher_is_better=True,
    definition=f"panoptic quality, lesion SQ times lesion RQ: the sum of the pairs' IoU over the mean number of "
    f"lesions in prediction and reference. {PAIRS}",
    both_absent=None,
    one_absent=0.0,
    compute=_of_pair,
)
