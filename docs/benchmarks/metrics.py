"""What Dice, NSD and HD95 of a large label map cost, beside MONAI and surface-distance.

    python docs/benchmarks/metrics.py

A made-up map of 300 x 512 x 512 voxels of 2.5 x 0.8 x 0.8 mm with 15 organs from an adrenal gland's size to a liver's,
and a prediction whose surfaces lie some millimetres beside. Every way scores all labels in a process of its own with as
many threads as the machine has cores, the ways in turn; appends to `metrics.csv` the medians of seconds, CPU-seconds
and the highest memory beyond the two maps, the medians of their ratios to ours in the same round, and how far the
values are from ours at most. `--shrink N` makes the voxels N times as large, to try the script.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import measure
import numpy as np
from scipy.ndimage import gaussian_filter, zoom

HERE = Path(__file__).resolve().parent
SHAPE, SPACING = (300, 512, 512), (2.5, 0.8, 0.8)
RADII = (  # mm along z, y and x, of organs that do not meet
    (90, 75, 95), (55, 30, 40), (50, 26, 28), (50, 26, 28), (60, 22, 30), (20, 35, 60), (14, 10, 14), (14, 10, 14),
    (120, 10, 10), (100, 11, 12), (25, 25, 30), (25, 20, 20), (30, 25, 25), (40, 8, 8), (12, 22, 28),
)  # fmt: skip
COLUMNS = ((0.22, 0.35), (0.75, 0.3), (0.3, 0.7), (0.7, 0.7), (0.5, 0.12), (0.5, 0.87), (0.12, 0.6), (0.88, 0.55))
"""Where in y and x organs stand, one above the other, as shares of the map."""
TOLERANCE = 2.0
WAYS = ("ours", "surface-distance", "MONAI")


def main() -> None:
    """Time every way in turn, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--shrink", type=int, default=1, metavar="N")
    parser.add_argument("--maps", type=Path, default=Path("/tmp/metrics_maps"), metavar="DIR", help="kept there")
    parser.add_argument("--csv", type=Path, default=HERE / "metrics.csv", metavar="FILE")
    parser.add_argument("--one", choices=WAYS, help="score once and print the values and what they cost")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(scored(args.one, args.maps)))
        return
    args.maps.mkdir(parents=True, exist_ok=True)
    for name, labels in zip(("reference", "prediction"), made_up(args.shrink), strict=True):
        np.save(args.maps / f"{name}.npy", labels)
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(args.rounds):
        for way in WAYS:
            found[way].append(measure.in_fresh_process(__file__, "--one", way, "--maps", str(args.maps)))
    facts = {key: value for key, value in measure.machine().items() if key in ("date", "machine")}
    facts |= {"cores": os.cpu_count()}
    facts |= {name: version(name) for name in ("numpy", "scipy", "monai", "surface-distance")}
    shape = "x".join(str(side) for side in np.load(args.maps / "reference.npy", mmap_mode="r").shape)
    rows = [
        facts | {"map": shape, "labels": len(RADII), "way": way} | compared(found[way], found["ours"]) for way in WAYS
    ]
    measure.append(args.csv, rows)
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items() if key not in facts))


def compared(runs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds, ratios within a round, and the largest difference of a value."""
    row: dict[str, Any] = {"rounds": len(runs)}
    for key, digits in (("seconds", 2), ("cpu_seconds", 2), ("mb", 0)):
        row[key] = f"{median(run[key] for run in runs):.{digits}f}"
        row[f"{key}_over_ours"] = f"{median(run[key] / own[key] for run, own in zip(runs, ours, strict=True)):.2f}"
    for name in ("dice", "nsd", "hd95"):
        pairs = zip(runs[0]["values"][name], ours[0]["values"][name], strict=True)
        row[f"largest_difference_{name}"] = f"{max(abs(a - b) for a, b in pairs):.1e}"
    return row


def made_up(shrink: int) -> tuple[np.ndarray, np.ndarray]:
    """A reference and a prediction (z y x): ellipsoids, and the same with centres, radii and surfaces moved."""
    rng = np.random.default_rng(0)
    spacing = np.array(SPACING) * shrink
    shape = tuple(side // shrink for side in SHAPE)
    size = np.array(shape) * spacing
    rough = rng.normal(size=(24, 24, 24))
    rough = zoom(gaussian_filter(rough, 1) / gaussian_filter(rough, 1).std(), np.array(shape) / 24, order=1)
    maps = np.zeros((2, *shape), np.uint8)
    tops = [0.08] * len(COLUMNS)
    for label, radii in enumerate(RADII, start=1):
        column = min(range(len(COLUMNS)), key=lambda index: tops[index])
        half = radii[0] / size[0]
        centre = np.array([tops[column] + half, *COLUMNS[column]]) * size
        tops[column] += 2 * half + 0.06
        for side in (0, 1):
            middle, long = centre + side * rng.normal(0, 1.0, 3), np.array(radii) * (1 + side * rng.normal(0, 0.03, 3))
            low = np.maximum(0, ((middle - 1.3 * long) / spacing).astype(int))
            high = np.minimum(shape, ((middle + 1.3 * long) / spacing).astype(int) + 1)
            box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            axes = np.meshgrid(*(np.arange(a, b) * mm for a, b, mm in zip(low, high, spacing, strict=True)),
                               indexing="ij", sparse=True)  # fmt: skip
            far = np.sqrt(sum(((axis - m) / r) ** 2 for axis, m, r in zip(axes, middle, long, strict=True)))
            inside = far + side * rough[box] * 1.0 / min(radii) < 1  # a deviation of 1 mm
            maps[side][box][inside & (maps[side][box] == 0)] = label
    return maps[0], maps[1]


def scored(way: str, maps: Path) -> dict[str, Any]:
    """The values of all labels, seconds, CPU-seconds and MB beyond the maps."""
    reference, prediction = (np.load(maps / f"{name}.npy") for name in ("reference", "prediction"))
    shrink = SHAPE[0] // reference.shape[0]
    spacing = tuple(mm * shrink for mm in SPACING)
    score = {"ours": by_us, "surface-distance": by_surface_distance, "MONAI": by_monai}[way]()
    found: dict[str, Any] = {}

    def measured() -> None:
        start, cpu = time.perf_counter(), time.process_time()
        found["values"] = score(prediction, reference, spacing)
        found.update(seconds=time.perf_counter() - start, cpu_seconds=time.process_time() - cpu)

    return {"mb": measure.peak(measured)} | found


def by_us() -> Any:
    """`score_case` with the three metrics."""
    from maskmed_zoo.evaluation.case import LabelMapPair, score_case
    from maskmed_zoo.evaluation.metrics import chosen
    from maskmed_zoo.labels import Labels
    from maskmed_zoo.metric_settings import MetricSettings

    labels = Labels({"background": 0} | {f"organ_{label}": label for label in range(1, len(RADII) + 1)})
    settings = MetricSettings(tolerance=TOLERANCE)

    def score(prediction: np.ndarray, reference: np.ndarray, spacing: Any) -> dict[str, list[float]]:
        names = frozenset(labels.foreground)
        pair = LabelMapPair("a", prediction, reference, labels, names, spacing, settings=settings)
        found = score_case(pair, chosen(["nsd", "hd95"])).scores
        return {name: [value or 0.0 for value in found[name].values.values()] for name in ("dice", "nsd", "hd95")}

    return score


def by_surface_distance() -> Any:
    """Label by label, as its README shows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import surface_distance
    warnings.filterwarnings("ignore", "Please import", DeprecationWarning)

    def score(prediction: np.ndarray, reference: np.ndarray, spacing: Any) -> dict[str, list[float]]:
        values: dict[str, list[float]] = {"dice": [], "nsd": [], "hd95": []}
        for label in range(1, len(RADII) + 1):
            ours, theirs = prediction == label, reference == label
            found = surface_distance.compute_surface_distances(theirs, ours, spacing)
            values["dice"].append(float(surface_distance.compute_dice_coefficient(theirs, ours)))
            values["nsd"].append(float(surface_distance.compute_surface_dice_at_tolerance(found, TOLERANCE)))
            values["hd95"].append(float(surface_distance.compute_robust_hausdorff(found, 95)))
        return values

    return score


def by_monai() -> Any:
    """Label by label as one-hot of one class, which takes less memory than all 15 at once."""
    import torch
    from monai.metrics import compute_dice, compute_hausdorff_distance
    from monai.metrics.surface_dice import compute_surface_dice

    torch.set_num_threads(os.cpu_count() or 1)
    warnings.filterwarnings("ignore", category=FutureWarning)

    def score(prediction: np.ndarray, reference: np.ndarray, spacing: Any) -> dict[str, list[float]]:
        values: dict[str, list[float]] = {"dice": [], "nsd": [], "hd95": []}
        for label in range(1, len(RADII) + 1):
            ours, theirs = (torch.from_numpy(side == label)[None, None].float() for side in (prediction, reference))
            values["dice"].append(compute_dice(ours, theirs).item())
            options: dict[str, Any] = {"include_background": True, "spacing": [*spacing]}
            nsd = compute_surface_dice(ours, theirs, class_thresholds=[TOLERANCE], use_subvoxels=True, **options)
            values["nsd"].append(nsd.item())
            values["hd95"].append(compute_hausdorff_distance(ours, theirs, percentile=95, **options).item())
        return values

    return score


if __name__ == "__main__":
    main()
