"""F1 of the detection of lesions at an overlap of one's choice; at fixed ones see `lesion_f1_25`, `_50` and `_75`.

Pairs are taken from the largest IoU down, as panoptica's naive matching does, with which it was compared; at an overlap
of 0.5 or more there is no choice, and the score is lesion RQ at that overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from maskmed_zoo.evaluation.lesions import LESION
from maskmed_zoo.evaluation.metrics import Metric
from maskmed_zoo.evaluation.parallel import over_labels
from maskmed_zoo.metric_settings import MetricSettings

if TYPE_CHECKING:
    from maskmed_zoo.evaluation.case import LabelMapPair


DEFINITION = (
    f"twice the number of pairs over the number of lesions in prediction and reference. {LESION}; pairs are taken from "
    f"the largest IoU down, all above {{overlap}}, a lesion in one pair at most"
)


def at_overlap(overlap: float) -> Metric:
    """The metric at an overlap that no setting changes."""
    return Metric(
        name=f"lesion_f1_{100 * overlap:.0f}",
        title=f"lesion F1 at {overlap:g}",
        unit="",
        higher_is_better=True,
        definition=DEFINITION.format(overlap=f"{overlap:g}"),
        both_absent=None,
        one_absent=0.0,
        compute=lambda pair, names: _f1(pair, names, overlap),
    )


def _f1(pair: LabelMapPair, names: Sequence[str], overlap: float) -> dict[str, float]:
    def score(name: str) -> float:
        met = pair.lesions(name)
        return 2 * len(met.pairs(overlap)) / (len(met.prediction) + len(met.reference))

    return over_labels(pair, names, score)


def _details(settings: MetricSettings) -> str:
    return f"that IoU is {settings.lesion_overlap:g} (lesion_overlap); at 0.5 the score is lesion_rq"


METRIC = Metric(
    name="lesion_f1",
    title="lesion F1",
    unit="",
    higher_is_better=True,
    definition=DEFINITION.format(overlap="a chosen one"),
    both_absent=None,
    one_absent=0.0,
    compute=lambda pair, names: _f1(pair, names, pair.settings.lesion_overlap),
    details=_details,
)
