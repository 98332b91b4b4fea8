"""Recognition quality: how many of the lesions were found, and how many found were lesions.

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
    return over_labels(pair, names, lambda name: Quality.of(pair.lesions(name)).rq or 0.0)


METRIC = Metric(
    name="lesion_rq",
    title="lesion RQ",
    unit="",
    higher_is_better=True,
    definition=f"recognition quality, which is the F1 of lesions at an IoU of 0.5: twice the number of pairs over the "
    f"number of lesions in prediction and reference. {PAIRS}",
    both_absent=None,
    one_absent=0.0,
    compute=_of_pair,
)
