"""Lesion-wise scores beside panoptica's, on random shapes: how far PQ, SQ, RQ and F1 are from its own at most.

    pip install panoptica
    python docs/benchmarks/lesions.py

Masks are made of boxes, some of which touch; the prediction has them moved by a voxel, lacks some and has some more. At
every overlap panoptica matches connected components of cc3d by IoU, strictly above it, from the largest down; its RQ is
our F1 there, and at 0.5 its PQ, SQ and RQ are ours. Appends to `lesions.csv`.
"""

from __future__ import annotations

import argparse
import platform
import time
from importlib.metadata import version
from pathlib import Path

import measure
import numpy as np
from panoptica import ConnectedComponentsInstanceApproximator, InputType, NaiveThresholdMatching, Panoptica_Evaluator
from panoptica.metrics import Metric
from panoptica.utils.constants import CCABackend

from maskmed_zoo.evaluation.lesions import lesions
from maskmed_zoo.evaluation.matching import Quality

HERE = Path(__file__).resolve().parent
SHAPE = (24, 36, 36)
OVERLAPS = (0.1, 0.25, 0.5, 0.75)


def main() -> None:
    """Compare at every overlap, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=40, metavar="N")
    parser.add_argument("--csv", type=Path, default=HERE / "lesions.csv", metavar="FILE")
    args = parser.parse_args()
    cases = [boxes(seed) for seed in range(args.cases)]
    facts = {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version()}
    facts |= {name: version(name) for name in ("panoptica", "numpy", "scipy", "connected-components-3d")}
    rows = [facts | {"cases": len(cases), "overlap": overlap} | compared(cases, overlap) for overlap in OVERLAPS]
    measure.append(args.csv, rows)
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items() if key not in facts))


def boxes(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A prediction and a reference (z y x)."""
    rng = np.random.default_rng(seed)
    pred, ref = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    for _ in range(14):
        low, size = rng.integers(0, SHAPE), rng.integers(1, 8, 3)
        moved = low + rng.integers(0, 2, 3)
        ref[tuple(slice(a, a + n) for a, n in zip(low, size, strict=True))] |= rng.random() < 0.8
        pred[tuple(slice(a, a + n) for a, n in zip(moved, size, strict=True))] |= rng.random() < 0.8
    return pred, ref


def compared(cases: list[tuple[np.ndarray, np.ndarray]], overlap: float) -> dict[str, str | int]:
    """The largest differences at an overlap, and how many pairs there were."""
    evaluator = Panoptica_Evaluator(
        expected_input=InputType.SEMANTIC,
        instance_approximator=ConnectedComponentsInstanceApproximator(cca_backend=CCABackend.cc3d),
        instance_matcher=NaiveThresholdMatching(matching_threshold=overlap, strict_threshold=True),
        instance_metrics=[Metric.IOU],
        global_metrics=[],
    )
    pairs, off = 0, {"pq": 0.0, "sq": 0.0, "rq": 0.0}
    for pred, ref in cases:
        (theirs,) = evaluator.evaluate(pred.astype(np.uint8), ref.astype(np.uint8), verbose=False).values()
        met = lesions(pred, ref)
        ours = Quality.of_pairs(met.pairs(overlap), len(met.prediction), len(met.reference))
        pairs += int(theirs.tp)
        for name, value in ours._asdict().items():
            off[name] = max(off[name], abs(float(np.nan_to_num(getattr(theirs, name))) - (value or 0.0)))
    return {"pairs": pairs} | {f"largest_difference_{name}": f"{value:.1e}" for name, value in off.items()}


if __name__ == "__main__":
    main()
