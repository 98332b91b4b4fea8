"""Lesions separated by queries, and as connected parts of the labels of a point-wise network: the same phantoms, seed
and steps.

    python docs/benchmarks/instances.py --out runs/instances --machine "2 CPU cores (AVX2)"

Appends a row for each of the two to `instances.csv` and draws `../images/instances.png`, both beside this file. What is
trained or predicted in `--out` already is not done again.
"""

from __future__ import annotations

import argparse
import csv
import platform
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch

import maskmed_zoo as zoo
from maskmed_zoo.data.formats import read_image, read_labels
from maskmed_zoo.data.phantom import LESION_FIELD_MM, make_phantom_dataset
from maskmed_zoo.data.predicted import objects_beside
from maskmed_zoo.evaluation.folders import evaluate_folders
from maskmed_zoo.report.figure import comparison_figure
from maskmed_zoo.runner.predict import predict
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.runner.train import train

HERE = Path(__file__).resolve().parent
CASES, TEST_CASES, SHAPE = 64, 32, (32, 40, 40)
POINTWISE = (
    "model.neck.kind=skip",
    "model.head.kind=pointwise",
    "model.loss.kind=ce_dice",
    "data.instances=components",
)
WAYS = {"queries": (), "connected parts": POINTWISE}
FACTS = ("pq", "sq", "rq", "lesion_dice", "f1")
COUNTS = ("tp", "fp", "fn", "found", "missed", "false")


def main() -> None:
    """Train, predict, score, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--machine", default=platform.processor() or platform.machine(), metavar="TEXT")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = args.out / "Dataset901_Lesions"
    if not data.exists():
        make_phantom_dataset(data, cases=CASES, test_cases=TEST_CASES, shape=SHAPE, content="lesions")
    rows: list[dict[str, Any]] = []
    for way, overrides in WAYS.items():
        folder = args.out / way.replace(" ", "_")
        run = RunFolder(folder / "run")
        train(zoo.load_recipe("instances_phantom", overrides), data=data, out=run.path, resume=run.exists())
        predict(run, [data / "imagesTs"], folder / "test")
        rows.append(row_of(way, run, evaluate_folders(folder / "test", data / "labelsTs"), args.machine))
    measure.append(HERE / "instances.csv", rows)
    draw(args.out, data)


def row_of(way: str, run: RunFolder, scores: dict[str, Any], machine: str) -> dict[str, Any]:
    """One run as one row."""
    manifest, recipe, objects = run.manifest(), run.recipe(), scores["instances"]
    with run.metrics_file.open(newline="", encoding="utf-8") as file:
        epochs = list(csv.DictReader(file))
    versions = manifest["environment"]
    return {
        "date": manifest["started"][:10],
        "machine": machine,
        **{key: versions[key] for key in ("python", "torch", "maskmed_zoo", "threads")},
        "recipe": recipe.name,
        "objects_by": way,
        "seed": manifest["seed"],
        "batch": recipe.train.batch_size,
        "iterations": epochs[-1]["iterations"],
        "train_cpu_seconds": round(sum(float(epoch["cpu_seconds"]) for epoch in epochs)),
        "cases": len(scores["cases"]),
        "mean_dice": round(scores["mean_dice"], 4),
        **{key: round(objects[key], 4) for key in FACTS},
        **{key: objects[key] for key in COUNTS},
    }


def draw(out: Path, data: Path) -> None:
    """The test case in which most lesions are hidden in connected parts, by both ways."""
    references = {path.name: read_labels(path).array for path in (data / "instancesTs").iterdir()}
    parts = {name: numbers(out / "connected_parts" / "test" / name).max() for name in references}
    name = max(sorted(references), key=lambda key: int(references[key].max()) - int(parts[key]))
    reference, image = references[name], read_image(data / "imagesTs" / name.replace(".nii", "_0000.nii"))
    rows = [
        (way, image.array, reference, matched(numbers(out / way.replace(" ", "_") / "test" / name), reference))
        for way in WAYS
    ]
    most = max(int(row[3].max()) for row in rows)
    names = ["background", *(f"lesion {number}" for number in range(1, most + 1))]
    spacing = tuple(mm / size for mm, size in zip(LESION_FIELD_MM, SHAPE, strict=True))
    comparison_figure(HERE.parent / "images" / "instances.png", rows, names, spacing, window=(-150.0, 250.0))


def numbers(label_map: Path) -> np.ndarray:
    """The map of objects beside a label map."""
    return read_labels(objects_beside(label_map)).array


def matched(found: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The same objects, each with the number of the lesion it covers most of, as far as that is not taken."""
    result, taken, spare = np.zeros_like(found), set[int](), int(reference.max())
    for number in sorted(range(1, int(found.max()) + 1), key=lambda n: -int((found == n).sum())):
        overlaps = np.bincount(reference[found == number], minlength=2)[1:]
        best = int(overlaps.argmax()) + 1 if overlaps.any() else 0
        if not best or best in taken:
            spare += 1
            best = spare
        taken.add(best)
        result[found == number] = best
    return result


if __name__ == "__main__":
    main()
