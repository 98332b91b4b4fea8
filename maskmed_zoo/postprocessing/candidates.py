"""The steps that come into question for a label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maskmed_zoo.inference.postprocessing import Step
from maskmed_zoo.postprocessing.counts import CaseCounts
from maskmed_zoo.postprocessing.thresholds import GRID

QUANTILE = 0.05
"""Of the volumes of a label's parts in the references: nearly no part is smaller."""
FRACTIONS = (0.1, 1.0)
"""Of that quantile, below which a part may be removed."""


def candidates(cases: Sequence[CaseCounts], label: str) -> list[Step]:
    """Filled holes; parts smaller than a volume removed; the largest part kept; parts smaller than another removed.

    Then thresholds, where the probabilities of all cases were computed.

    The volumes are those that the references of these cases give. Of candidates that do the same the first counts: the
    largest part rather than a volume below which a whole organ may lie.
    """
    volumes = np.concatenate([case.labels[label].reference_mm3 for case in cases if label in case.labels] or [[]])
    small = float(np.quantile(volumes, QUANTILE)) if len(volumes) else 0.0
    sizes = [Step(label=label, do="remove_small", below_mm3=share * small) for share in FRACTIONS if small]
    parts = [Step(label=label, do="fill_holes"), *sizes[:1], Step(label=label, do="keep_largest"), *sizes[1:]]
    has_thresholds = all(case.thresholds is not None for case in cases)
    return [*parts, *(Step(label=label, do="threshold", at=at) for at in GRID if has_thresholds)]
