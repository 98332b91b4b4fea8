"""Label maps of the exported runner beside those of `predict`, on real cases.

    python docs/benchmarks/export.py --data DIR --work runs/export

`DIR` holds the data sets named in `RUNS`. Trains a small network on a few cases of each, which is no result but gives
label maps to compare, exports it as an ONNX graph with weights in 32 and in 16 bits and as a program of
`torch.export`, and predicts validation cases by `maskmed-zoo predict` and by `predict_onnx.py`, in processes of their
own. Appends a row per data set and network file to `export.csv`: voxels whose labels differ, the worst case, seconds
of processor time of the whole process, and bytes. What is in `--work` already is not made again. Needs the extra
`onnx`.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import measure
import nibabel as nib
import numpy as np

HERE = Path(__file__).resolve().parent
SMALL = ("train.epochs=1", "train.validation_iterations=1", "model.neck.width=24", "model.head.width=24")
RUNS = (
    (
        *("Dataset004_Hippocampus", "maskmed_hippocampus_cpu"),
        (*SMALL, "model.encoder.channels=[8,16,32,64]", "train.iterations_per_epoch=80"),
    ),
    (
        *("Dataset101_HeadNeckCT", "maskmed_headneck_5mm_cpu"),
        (*SMALL, "model.encoder.channels=[8,16,32,32]", "train.iterations_per_epoch=400"),
    ),
)
FORMATS = {"onnx": ("onnx",), "onnx, fp16": ("onnx", "--fp16"), "torch": ("torch",)}


def main() -> None:
    """Train, export, predict, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    parser.add_argument("--cases", type=int, default=5, help="validation cases; default: %(default)s")
    args = parser.parse_args()
    facts = measure.machine() | {"onnxruntime": version("onnxruntime")}
    for name, recipe, settings in RUNS:
        folder = args.work / name
        data, cases = subset(args.data / name, folder / name, args.cases)
        run = folder / "run"
        if not run.exists():
            sets = [f"--set={one}" for one in settings]
            zoo("train", recipe, "--data", data, "--out", run, "--fold", "0", "--device", "cpu", *sets)
        for row in compared(run, folder, cases):
            append(HERE / "export.csv", facts | {"data_set": name, "recipe": recipe} | row)


def subset(source: Path, target: Path, cases: int) -> tuple[Path, list[Path]]:
    """A data set of links to twice as many training cases as validation cases; and the images of the latter."""
    split = json.loads((source / "splits_final.json").read_text(encoding="utf-8"))[0]
    chosen = {"train": split["train"][: 2 * cases], "val": split["val"][:cases]}
    for kind in ("imagesTr", "labelsTr"):
        (target / kind).mkdir(parents=True, exist_ok=True)
        for case in (*chosen["train"], *chosen["val"]):
            file = f"{case}_0000.nii.gz" if kind == "imagesTr" else f"{case}.nii.gz"
            if not (target / kind / file).exists():
                (target / kind / file).symlink_to((source / kind / file).resolve())
    description = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
    description["numTraining"] = sum(map(len, chosen.values()))
    (target / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    (target / "splits_final.json").write_text(json.dumps([chosen]), encoding="utf-8")
    return target, [target / "imagesTr" / f"{case}_0000.nii.gz" for case in chosen["val"]]


def compared(run: Path, folder: Path, cases: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """A row per network file."""
    seconds = zoo("predict", run, *cases, folder / "predicted", "--device", "cpu", "--overwrite")
    for format, words in FORMATS.items():
        exported, out = folder / format.replace(", ", "_"), folder / f"{format.replace(', ', '_')}_predicted"
        if not exported.exists():
            zoo("export", run, "--out", exported, "--license", "unknown", "--format", *words)
        network = next(exported.glob("network.*"))
        row = {"format": format, "cases": len(cases), "predict_cpu_seconds": round(seconds, 1)}
        row |= {"network_bytes": network.stat().st_size}
        row |= {"weights_bytes": (exported / "weights.safetensors").stat().st_size}
        if format.startswith("onnx"):
            for old in out.glob("*.nii.gz"):
                old.unlink()
            row["runner_cpu_seconds"] = round(
                process(exported / "predict_onnx.py", *cases, out, "--threads", measure.machine()["threads"]), 1
            )
            row |= differences(folder / "predicted", out)
        yield row


def differences(theirs: Path, ours: Path) -> dict[str, Any]:
    """Voxels that differ over all cases, the share of them in the worst, and the labels that there are."""
    voxels, differing, worst, labels = 0, 0, 0.0, set[int]()
    for path in sorted(theirs.glob("*.nii.gz")):
        expected, found = (np.asarray(nib.load(folder / path.name).dataobj) for folder in (theirs, ours))
        wrong = int((expected != found).sum())
        voxels, differing, worst = voxels + expected.size, differing + wrong, max(worst, wrong / expected.size)
        labels |= set(np.unique(expected).tolist())
    if labels == {0}:
        raise SystemExit(f"{theirs}: nothing but background, which compares nothing; train longer (RUNS)")
    shown = " ".join(map(str, sorted(labels)))
    return {"voxels": voxels, "differing": differing, "worst_case_share": f"{worst:.2e}", "labels_there": shown}


def zoo(*words: object) -> float:
    """A command of this package; CPU-seconds."""
    return process("-m", "maskmed_zoo", *words)


def process(*words: object) -> float:
    """CPU-seconds of a Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *map(str, words)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def append(path: Path, row: dict[str, Any]) -> None:
    """A row under the columns of the file, which the first row sets."""
    is_new = not path.exists()
    columns = COLUMNS if is_new else path.read_text(encoding="utf-8").splitlines()[0].split(",")
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


COLUMNS = (
    *("data_set", "recipe", "format", "cases", "voxels", "differing", "worst_case_share", "labels_there"),
    *("predict_cpu_seconds", "runner_cpu_seconds", "network_bytes", "weights_bytes"),
    *("machine", "threads", "python", "torch", "onnxruntime", "date"),
)


if __name__ == "__main__":
    main()
