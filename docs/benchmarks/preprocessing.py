"""Preprocessed cases beside nnU-Net's own, and what resampling costs.

    python docs/benchmarks/preprocessing.py --data DIR

`DIR` holds the data sets named in `REAL`; without it the made-up cases alone are compared. Appends to
`preprocessing.csv`, a row per case: the largest difference of an image in standard deviations of the channel, the share
of voxels with the same label in preprocessed label maps and in exported ones, and why the rest differs. And to
`resampling.csv`: CPU time and memory of resampling a made-up volume, nnU-Net's way and ours, whole and slab by slab,
in turn. Needs `nnunetv2` (extra `nnunet`).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import measure
import numpy as np
import torch
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from scipy import ndimage

from maskmed_zoo.data import resample
from maskmed_zoo.data.case import load_case
from maskmed_zoo.data.crop import uncropped
from maskmed_zoo.data.dataset import open_dataset
from maskmed_zoo.data.fingerprint import IntensityStats, fingerprint_dataset
from maskmed_zoo.data.image import geometry_of
from maskmed_zoo.data.preprocess import Preprocessing, crop_and_normalize
from maskmed_zoo.inference.to_image import probabilities_to_labels

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from tests.data.test_preprocess import MADE_UP, made_up  # noqa: E402
from tests.nnunet_oracle import Oracle  # noqa: E402

REAL = (("Dataset004_Hippocampus", 10, (1.0, 1.0, 1.0)), ("Dataset101_HeadNeckCT", 5, (5.0, 5.0, 5.0)))
VOLUME, WANTED = (160, 320, 320), (200, 256, 256)
WAYS, REPEATS = ("nnunet", "whole", "slabs"), 3


def main() -> None:
    """Compare, time, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR")
    parser.add_argument("--one", choices=WAYS, help="resample once and print CPU seconds and MiB")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.one:
        print(json.dumps(cost_of(args.one)))
        return
    facts = {key: value for key, value in measure.machine().items() if key in ("date", "machine")}
    facts |= {name: version(name) for name in ("numpy", "scipy", "nnunetv2")}
    append("preprocessing.csv", [facts | row for row in cases(args.data)])
    append("resampling.csv", [facts | row for row in costs()])


def cases(data: Path | None) -> Iterator[dict[str, Any]]:
    """A row per case."""
    stats = IntensityStats(40.0, 120.0, -150.0, 260.0)
    for name, case in MADE_UP.items():
        for is_framed in (False, True):
            image, labels = made_up(case["schemes"], is_framed=is_framed)
            how = Preprocessing(case["new"], case["schemes"], (stats,) * len(image), case.get("mask", False))
            full = f"made up: {name}{', framed' if is_framed else ''}"
            yield compared(full, image, labels, case["old"], how, names={"background": 0, "a": 1, "b": 2, "c": 3})
    for folder, count, spacing in REAL if data else ():
        dataset = open_dataset(data / folder)
        fingerprint = fingerprint_dataset(dataset).intensities
        schemes = tuple("ct" if name == "CT" else "zscore" for name in dataset.channels)
        for case in dataset.cases[:count]:
            image, labels, geometry = load_case(case, dataset)
            how = Preprocessing(spacing, schemes, fingerprint)
            yield compared(
                f"{folder} {case.identifier}", image, labels, geometry.spacing, how, names=dict(dataset.labels)
            )


def compared(
    name: str, image: np.ndarray, labels: np.ndarray, spacing: Any, how: Preprocessing, *, names: dict[str, int]
) -> dict[str, Any]:
    """What differs in one case, there and back."""
    statistics = [stats.to_dict() for stats in how.fingerprint]
    oracle = Oracle(how.spacing, how.schemes, statistics, names, use_mask_for_norm=how.use_mask_for_norm)
    theirs, their_labels, properties = oracle.preprocess(image, labels, spacing)
    cropped = crop_and_normalize(image, labels, geometry_of(image, spacing=spacing), how, values=2)
    ours, region = cropped.image(), cropped.region
    scores = np.random.default_rng(1).normal(size=(len(names), *ours.shape[1:]))
    probabilities = torch.from_numpy(10 * ndimage.gaussian_filter(scores, (0, 1, 1, 1))).softmax(0).float()
    seen = probabilities_to_labels(probabilities, region.cropped, region.thick_back)
    back = uncropped(seen, region.box, region.shape) == oracle.export(probabilities.numpy(), properties)
    same = cropped.resampled_labels() == their_labels
    largest = max(float(np.abs(a - b).max() / max(b.std(), 1e-9)) for a, b in zip(ours, theirs, strict=True))
    reasons = ["image: 32-bit sums of products, and of means in nnU-Net's z-scores"]
    reasons += [] if same.all() else ["labels: equal scores, which rounding in 64 bits decides in nnU-Net"]
    reasons += [] if back.all() else ["exported: scores equal in 32 bits"]
    return {
        "case": name, "spacing": "x".join(f"{s:g}" for s in spacing), "wanted": "x".join(f"{s:g}" for s in how.spacing),
        "shape": "x".join(map(str, image.shape)), "preprocessed": "x".join(map(str, ours.shape)),
        "largest_difference_std": f"{largest:.1e}", "same_labels": f"{same.mean():.6f}",
        "same_exported": f"{back.mean():.6f}", "reason": "; ".join(reasons),
    }  # fmt: skip


def costs() -> Iterator[dict[str, Any]]:
    """A row per way: medians of `REPEATS` processes in turn."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(REPEATS):
        for way in WAYS:
            words = [sys.executable, str(Path(__file__).resolve()), "--one", way]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
    for way, runs in found.items():
        yield {
            "way": way, "volume": "x".join(map(str, VOLUME)), "wanted": "x".join(map(str, WANTED)), "runs": REPEATS,
            "cpu_s": f"{median(run['cpu_s'] for run in runs):.2f}",
            "over_nnunet": f"{median(a['cpu_s'] / b['cpu_s'] for a, b in zip(runs, found['nnunet'], strict=True)):.3f}",
            "peak_mib": f"{median(run['peak_mib'] for run in runs):.0f}",
        }  # fmt: skip


def cost_of(way: str) -> dict[str, float]:
    """CPU seconds, and memory beyond the input, of resampling; the result goes to a file's map where it can."""
    volume = np.random.default_rng(0).standard_normal(VOLUME, np.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    if way == "nnunet":
        resample_data_or_seg_to_shape(volume[None], WANTED, (1, 1, 1), (0.8, 1.25, 1.25), False, 3, 0, None)
    else:
        if way == "whole":
            resample.CHUNK = resample.ROWS = 2**62
        resample.resample_image(volume, Nowhere(), WANTED, None)
    seconds = time.process_time() - start
    return {"cpu_s": seconds, "peak_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}


class Nowhere:
    """Takes slices and keeps none, as a file does."""

    def __setitem__(self, index: slice, values: np.ndarray) -> None:
        del index, values


def append(name: str, rows: list[dict[str, Any]]) -> None:
    """Add rows to a table beside this file, and show them."""
    measure.append(HERE / name, rows)
    for row in rows:
        print("  ".join(str(value) for value in row.values()))


if __name__ == "__main__":
    main()
