"""The steps that come into question for a label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maskmed_zoo.inference.postprocessing import Step
from maskmed_zoo.postprocessing.counts import CaseCounts

QUANTILE = 0.05
"""Of the volumes of a label's parts in the references: nearly no part is smaller."""
FRACTIONS = (0.1, 1.0)
"""Of that quantile, below which a part may be removed."""


def candidates(cases: Sequence[CaseCounts], label: str) -> list[Step]:
    """Filled holes, small parts removed by two volumes that these references give, and the largest part kept."""
    volumes = np.concatenate([case.labels[label].reference_mm3 for case in cases if label in case.labels] or [[]])
    small = float(np.quantile(volumes, QUANTILE)) if len(volumes) else 0.0
    sizes = [Step(label=label, do="remove_small", below_mm3=share * small) for share in FRACTIONS if small]
    return [Step(label=label, do="fill_holes"), *sizes, Step(label=label, do="keep_largest")]
