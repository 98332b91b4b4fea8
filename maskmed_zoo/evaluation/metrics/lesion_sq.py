"""Segmentation quality: how well the lesions fit that were found.

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


def _of_pair(pair: LabelMapPair, names: Sequence[str]) -> dict[str, float | None]:
    return over_labels(pair, names, lambda name: Quality.of(pair.lesions(name)).sq)


METRIC = Metric(
    name="lesion_sq",
    title="lesion SQ",
    unit="",
    higher_is_better=True,
    definition=f"segmentation quality, the mean IoU of the pairs; without any it is left out and counted in "
    f"undefined. {PAIRS}",
    both_absent=None,
    one_absent=None,
    compute=_of_pair,
)
