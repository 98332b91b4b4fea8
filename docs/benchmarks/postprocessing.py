"""How often `postprocess` keeps something useless: families of candidates whose changes in Dice are 0 in the mean.

Changes are drawn independently, of each candidate and patient: `symmetric`, Student's t with three degrees of freedom
in some patients and none in the others; `skewed`, gains up to 1 and losses with an exponential tail. Some minutes:

    python docs/benchmarks/postprocessing.py > docs/benchmarks/postprocessing.csv
"""

from __future__ import annotations

import csv
import sys

import numpy as np

from maskmed_zoo.evaluation.statistics.holm import LEVEL
from maskmed_zoo.postprocessing.choose import compared

FAMILIES = 200
SIZES = ((10, 4), (20, 4), (20, 12))
"""Patients and candidates."""


def changes(scene: str, patients: int, candidates: int, random: np.random.Generator) -> np.ndarray:
    """(candidates, patients)."""
    shape = (candidates, patients)
    if scene == "skewed":
        return 1 - random.exponential(1, shape)
    return random.standard_t(3, shape) * (random.random(shape) < random.uniform(0.2, 1, (candidates, 1)))


def main() -> None:
    """Print a row for each scene and size."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("scene", "patients", "candidates", "families", "share_that_keep_something"))
    for scene in ("symmetric", "skewed"):
        for patients, candidates in SIZES:
            random, kept = np.random.default_rng(0), 0
            for _ in range(FAMILIES):
                table = changes(scene, patients, candidates, random)
                rows = compared([{str(case): value for case, value in enumerate(row)} for row in table.tolist()], {})
                kept += any(row["p_holm"] < LEVEL and row["mean"] > 0 for row in rows)
            writer.writerow((scene, patients, candidates, FAMILIES, kept / FAMILIES))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
