"""Label maps of the exported runner beside those of `predict`, on real cases.

    OMP_NUM_THREADS=1 python docs/benchmarks/export.py --data DIR --work runs/export

`DIR` holds the data sets named in `RUNS`. Trains a short schedule on 40 cases of each, exports the run as an ONNX graph
with weights in 32 and in 16 bits and as a program of `torch.export`, and predicts five validation cases by
`maskmed-zoo predict` and by `predict_onnx.py` in an environment of numpy, scipy, nibabel and onnxruntime alone. Each
case is predicted by a process of its own, by all of them in turn. Writes `export.csv`, a row per case and network file:
voxels whose labels differ, the mean Dice of both against the reference, seconds of processor time and peak memory of
the whole process, and bytes. What is in `--work` already is not made again. Needs the extra `onnx`, and pip's index.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measure
import nibabel as nib
import numpy as np

HERE = Path(__file__).resolve().parent
RUNS = (
    ("Dataset004_Hippocampus", "maskmed_hippocampus_cpu", 250),
    ("Dataset101_HeadNeckCT", "maskmed_headneck_5mm_cpu", 600),
)
"""Data set, recipe, steps."""
FORMATS = {"onnx": ("onnx",), "onnx_fp16": ("onnx", "--fp16"), "torch": ("torch",)}
ZOO = (sys.executable, "-m", "maskmed_zoo")
BARE = ("numpy", "scipy", "nibabel", "onnxruntime")
USED = """
import json, os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, used = os.wait4(child.pid, 0)
print(json.dumps([status, round(used.ru_utime + used.ru_stime, 2), round(used.ru_maxrss / 1e3)]))
"""
"""Between this process and a measured one, whose peak memory would be at least that of the process that starts it."""


def main() -> None:
    """Train, export, predict, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    bare = bare_python(args.work.resolve() / "bare")
    facts = measure.machine() | installed(bare)
    rows: list[measure.Row] = []
    for name, recipe, steps in RUNS:
        folder = args.work.resolve() / name
        data = subset(args.data / name, folder / name)
        run = folder / "run"
        if not run.exists():
            epochs = ("train.epochs=5", f"train.iterations_per_epoch={steps // 5}", "train.validate_every=5")
            sets = [f"--set={one}" for one in epochs]
            used(*ZOO, "train", recipe, "--data", data, "--out", run, "--fold", "0", "--device", "cpu", *sets)
        for row in compared(run, folder, data, bare):
            rows.append({"data_set": name, "recipe": recipe, "steps": steps} | row | facts)
        measure.write(HERE / "export.csv", rows)


def bare_python(folder: Path) -> Path:
    """The interpreter of an environment of what the runner needs."""
    python = folder / "bin/python"
    if not python.exists():
        used(sys.executable, "-m", "venv", folder)
        used(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *BARE)
    return python


def installed(python: Path) -> dict[str, str]:
    """Versions of what the runner needs, by name."""
    words = f"import json; from importlib.metadata import version; print(json.dumps([version(n) for n in {BARE}]))"
    found = subprocess.run([python, "-I", "-c", words], capture_output=True, text=True, check=True)
    return dict(zip(BARE, json.loads(found.stdout), strict=True))


def subset(source: Path, target: Path) -> Path:
    """A data set of links to 40 training and 5 validation cases of fold 0."""
    split = json.loads((source / "splits_final.json").read_text(encoding="utf-8"))[0]
    chosen = {"train": split["train"][:40], "val": split["val"][:5]}
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
    return target


def compared(run: Path, folder: Path, data: Path, bare: Path) -> Iterator[dict[str, Any]]:
    """A row per case and ONNX graph, and one for the program of `torch.export`."""
    sizes: dict[str, dict[str, int]] = {}
    for format, words in FORMATS.items():
        exported = folder / format
        if not exported.exists():
            used(*ZOO, "export", run, "--out", exported, "--license", "unknown", "--format", *words)
        network = next(exported.glob("network.*")).stat().st_size
        sizes[format] = {"network_bytes": network, "weights_bytes": (exported / "weights.safetensors").stat().st_size}
    for case in json.loads((data / "splits_final.json").read_text(encoding="utf-8"))[0]["val"]:
        image, theirs = data / "imagesTr" / f"{case}_0000.nii.gz", folder / "predicted" / f"{case}.nii.gz"
        reference = voxels(data / "labelsTr" / f"{case}.nii.gz")
        needed = used(*ZOO, "predict", run, image, theirs.parent, "--device", "cpu", "--overwrite")
        expected = voxels(theirs)
        for format in (name for name in FORMATS if name.startswith("onnx")):
            ours = folder / f"{format}_predicted" / f"{case}.nii.gz"
            ours.unlink(missing_ok=True)
            by_runner = used(bare, "-I", folder / format / "predict_onnx.py", image, ours.parent, "--threads", 1)
            found = voxels(ours)
            yield {
                "format": format,
                "case": case,
                "voxels": expected.size,
                "foreground": int((expected > 0).sum()),
                "differing": int((expected != found).sum()),
                "dice_predict": mean_dice(expected, reference),
                "dice_runner": mean_dice(found, reference),
                "predict_cpu_seconds": needed[0],
                "runner_cpu_seconds": by_runner[0],
                "predict_peak_mb": needed[1],
                "runner_peak_mb": by_runner[1],
            } | sizes[format]
    yield {"format": "torch"} | sizes["torch"]


def voxels(path: Path) -> np.ndarray[Any, np.dtype[Any]]:
    """Labels of a file."""
    image: Any = nib.load(path)
    return np.asarray(image.dataobj).astype(int)


def mean_dice(found: np.ndarray[Any, Any], reference: np.ndarray[Any, Any]) -> float:
    """Over the labels of the reference."""
    labels = [label for label in np.unique(reference) if label]
    both = [2 * ((found == n) & (reference == n)).sum() / ((found == n).sum() + (reference == n).sum()) for n in labels]
    return round(float(np.mean(both)), 4)


def used(*words: object) -> tuple[float, int]:
    """CPU-seconds and peak memory in MB of a process."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", USED, *map(str, words)], stdout=subprocess.PIPE, text=True, check=True
    )
    status, seconds, peak = json.loads(done.stdout)
    if status:
        raise SystemExit(f"{' '.join(map(str, words))}: failed")
    return seconds, peak


if __name__ == "__main__":
    main()
