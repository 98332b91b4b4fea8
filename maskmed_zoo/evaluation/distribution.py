"""What lies behind a mean over cases: median and quartiles, the worst cases, and how sure the mean is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from maskmed_zoo.evaluation.statistics.coverage import shortfall
from maskmed_zoo.evaluation.statistics.interval import ANY, FEWEST, mean_interval
from maskmed_zoo.evaluation.statistics.sample import SEVERAL_CASES, Scores

WORST = 5
"""Cases that are named."""
DEFINITION = (
    f"median, q1 and q3 are over cases, quartiles by linear interpolation; worst names up to {WORST} cases, the worst "
    f"first; interval is the 95 % interval of the mean over cases, by Student's t with Hall's correction of skewness "
    f"over patients (over cases where no groups.json tells of patients), null for fewer than {FEWEST}; how much the "
    f"mean would move with other patients, not with another training run."
)


def distribution(
    scores: Scores,
    *,
    higher_is_better: bool,
    patients: Mapping[str, str] | None = None,
    within: tuple[float, float] = ANY,
) -> dict[str, Any]:
    """Keys `median`, `q1`, `q3`, `interval` (both ends), `patients` behind it, and `worst` (cases); null where none is.

    Cases that `patients` does not name are patients of their own. `within`: as in `mean_interval`.
    """
    present = {case: score for case, score in scores.items() if score is not None}
    q1, median, q3 = np.quantile([*present.values()], (0.25, 0.5, 0.75)).tolist() if present else (None,) * 3
    ordered = sorted(present, key=lambda case: present[case], reverse=not higher_is_better)
    interval = mean_interval([present], patients, within)
    return {
        "median": median,
        "q1": q1,
        "q3": q3,
        "interval": None if interval is None else list(interval),
        "patients": len({(patients or {}).get(case, case) for case in present}),
        "worst": ordered[:WORST],
    }


def interval_warning(distributions: Iterable[Mapping[str, Any]], *, several: bool = False) -> str | None:
    """What is to be said of the intervals among these results: that the one of fewest patients holds less than 95 %.

    `several`: some patients have several cases, which was not simulated.
    """
    patients = [found["patients"] for found in distributions if found["interval"] is not None]
    if not patients:
        return None
    return SEVERAL_CASES if several else shortfall("mean", min(patients))
