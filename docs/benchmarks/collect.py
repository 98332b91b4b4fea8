"""Append finished runs to a table: what was trained, on what, for how long, and the Dice it reached.

    maskmed-zoo train maskmed_hippocampus_cpu --data Dataset004_Hippocampus --out runs/maskmed_hippocampus_cpu
    python docs/benchmarks/collect.py runs/maskmed_hippocampus_cpu --csv docs/benchmarks/real_data.csv

Everything comes from the run's own files. CPU-seconds are user and system time of all threads of the training loop,
validation patches included, preprocessing and the final prediction not: the same as in `nnunet_peer.py`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
from pathlib import Path
from typing import Any

import yaml


def processor() -> str:
    """Model and vector instructions of the CPU, as far as the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    model = next((line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")), "CPU")
    best = next((name for name in ("avx512f", "avx2") if f" {name}" in text), "")
    return f"{model} {best}".strip()


def row_of(run: Path) -> dict[str, Any]:
    """One run as one row."""
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    scores = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        epochs = list(csv.DictReader(file))
    versions = manifest["environment"]
    return {
        "date": scores["date"],
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "python": versions["python"],
        "torch": versions["torch"],
        "maskmed_zoo": versions["maskmed_zoo"],
        "device": versions["device"],
        "threads": versions["threads"],
        "recipe": manifest["recipe"],
        "dataset": manifest["dataset"],
        "fold": manifest["fold"],
        "seed": manifest["seed"],
        "patch": "x".join(map(str, recipe["data"]["patch_size"])),
        "batch": recipe["train"]["batch_size"],
        "iterations": epochs[-1]["iterations"],
        "train_cpu_seconds": round(sum(float(e["cpu_seconds"]) for e in epochs)),
        "train_wall_seconds": round(sum(float(e["seconds"]) for e in epochs)),
        "cases": len(scores["cases"]),
        "mean_dice": round(scores["mean_dice"], 4),
        "label_dice": json.dumps(
            {name: round(row["mean"], 4) for name, row in scores["labels"].items() if row["mean"] is not None}
        ),
        "absent": scores["absent"],
        "weights": scores["weights"],
        "tta": scores["test_time_augmentation"],
        "unannotated": recipe["data"]["unannotated"],
    }


def main() -> None:
    """Read the runs named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--csv", type=Path, required=True, metavar="FILE")
    args = parser.parse_args()
    rows = [row_of(run) for run in args.runs]
    is_new = not args.csv.exists()
    with args.csv.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
