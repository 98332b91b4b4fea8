"""Models that nnU-Net trained, predicted with by nnU-Net and by this package: are the label maps the same?

nnU-Net plans the data set (3d_fullres); patch, batch and features are those given here, so that training and eight
mirrored copies of every window stay affordable on a CPU. Its default trainer trains two folds with a short schedule
(see `nnunet_peer.py`). Then `nnUNetv2_predict` and `maskmed-zoo predict` take the validation cases of the first fold,
with the first fold's network alone and with both, with mirrored copies and without, one thread and one process each
(nnU-Net's `-npp 0 -nps 0`), one after the other. Finished trainings and predictions are not repeated, interrupted
trainings continued.

One row for each is appended to --csv: the voxels that differ, the largest distance between the two largest logits at
those (ours, resampled to the image), wall and CPU time, and the largest resident memory of each process.

In an environment with this package and nnU-Net::

    python nnunet_predict.py --data DATA --work W --csv nnunet_predict.csv
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from nnunet_peer import (
    CONFIGURATION,
    Peer,
    append_row,
    call,
    describe_machine,
    environment,
    find_dataset,
    make_folders,
    preprocess,
    write_plans,
    write_trainer,
)

import maskmed_zoo as zoo
from maskmed_zoo.data.case import Case, load_case
from maskmed_zoo.data.formats import read_labels
from maskmed_zoo.inference.nnunet import NNUNetPredictor, label_logits

MEASURED = ("wall_seconds", "cpu_seconds", "peak_mib")


@dataclass(frozen=True)
class Narrow(Peer):
    """A run of a plan with fewer features."""

    features: int = 8

    @property
    def plans(self) -> str:
        return f"{super().plans}_features{self.features}"

    @property
    def model(self) -> Path:
        return self.results.parent


def write_narrow_plans(peer: Narrow) -> None:
    configuration = write_plans(peer)
    arguments = configuration["architecture"]["arch_kwargs"]
    arguments["features_per_stage"] = [peer.features * 2 ** min(i, 3) for i in range(arguments["n_stages"])]
    file = peer.preprocessed / f"{peer.plans}.json"
    plans = json.loads(file.read_text())
    plans["configurations"][CONFIGURATION] = configuration
    file.write_text(json.dumps(plans, indent=2))


def train_fold(peer: Narrow, number: int) -> None:
    if not (peer.results / "checkpoint_final.pth").exists():
        write_trainer(peer)
        which = (str(number), CONFIGURATION, str(peer.fold), "-tr", peer.trainer, "-p", peer.plans)
        continued = ("--c",) if (peer.results / "checkpoint_latest.pth").exists() else ()
        call(peer, "nnUNetv2_train", *which, "-device", "cpu", *continued)


def validation_images(peer: Narrow, source: Path) -> dict[str, Path]:
    """Links to the images of the first fold's validation cases, in a folder of their own."""
    folder = peer.work / "images"
    folder.mkdir(exist_ok=True)
    names = json.loads((source / "splits_final.json").read_text())[0]["val"]
    for name in names:
        link = folder / f"{name}_0000.nii.gz"
        if not link.exists():
            link.symlink_to(source / "imagesTr" / link.name)
    return {name: folder / f"{name}_0000.nii.gz" for name in names}


def measured(command: list[str], peer: Narrow, out: Path) -> dict[str, float]:
    """Run a command that writes `out`, once, and say what it took."""
    record = out.with_suffix(".json")
    if not record.exists():
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        start = time.perf_counter()
        process = subprocess.Popen(command, env=environment(peer, command[0]), stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"failed: {' '.join(command)}")
        taken = (time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
        record.write_text(json.dumps(dict(zip(MEASURED, taken, strict=True))))
    return json.loads(record.read_text())


def theirs(peer: Narrow, folds: int, mirroring: bool, images: Path, out: Path) -> dict[str, float]:
    which = ["-d", peer.dataset, "-c", CONFIGURATION, "-tr", peer.trainer, "-p", peer.plans]
    how = ["-device", "cpu", "-npp", "0", "-nps", "0", "--disable_progress_bar"] + ["--disable_tta"] * (not mirroring)
    command = str(Path(sys.executable).with_name("nnUNetv2_predict"))
    folds_given = [str(fold) for fold in range(folds)]
    return measured([command, "-i", str(images), "-o", str(out), *which, "-f", *folds_given, *how], peer, out)


def source_of(peer: Narrow, folds: int) -> Path:
    return peer.model / "fold_0" if folds == 1 else peer.model


def ours(peer: Narrow, folds: int, mirroring: bool, images: Path, out: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "maskmed_zoo", "predict", str(source_of(peer, folds)), str(images), str(out)]
    return measured([*command, "--device", "cpu", "--set", f"inference.mirror={str(mirroring).lower()}"], peer, out)


def largest_gap(predictor: NNUNetPredictor, image: Path, differs: np.ndarray) -> float:
    """Between the two largest logits at the voxels (z y x) that differ."""
    array, _, geometry = load_case(Case(image.name, (image,), None), None)
    ready = predictor.prepare(array, geometry)
    logits = predictor.network_logits(ready.image)
    found = np.stack([label_logits(logits, label, ready.region).numpy() for label in range(len(logits))])
    order = predictor.order_of(geometry)
    where = order.turned(differs)[ready.region.box]
    highest = np.sort(found[:, where], axis=0)
    return float((highest[-1] - highest[-2]).max())


def compare(
    peer: Narrow, folds: int, mirroring: bool, cases: dict[str, Path], both: tuple[Path, Path]
) -> dict[str, Any]:
    predictor: NNUNetPredictor | None = None
    voxels, different, gap, foreground = 0, 0, 0.0, 0
    for name, image in cases.items():
        mine, other = (read_labels(folder / f"{name}.nii.gz").array for folder in both)
        differs = mine != other
        voxels, different = voxels + differs.size, different + int(differs.sum())
        foreground += int((other > 0).sum())
        if differs.any():
            predictor = predictor or zoo.load(source_of(peer, folds), inference__mirror=mirroring, device="cpu")  # type: ignore[assignment]
            gap = max(gap, largest_gap(predictor, image, differs))  # type: ignore[arg-type]
    return {
        "cases": len(cases),
        "voxels": voxels,
        "foreground_voxels": foreground,
        "different_voxels": different,
        "largest_gap_of_different": round(gap, 5),
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="nnU-Net's predictor and ours on nnU-Net's models")
    parser.add_argument("--data", type=Path, required=True, help="folder of DatasetXXX_* folders, raw layout")
    parser.add_argument("--dataset", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=50, help="of one epoch")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--patch", type=int, nargs=3, default=(24, 32, 24))
    parser.add_argument("--features", type=int, default=8, help="of the finest stage; eight times as many at most")
    parser.add_argument("--work", type=Path, required=True, help="preprocessed data, models and predictions go here")
    parser.add_argument("--csv", type=Path, default=Path("nnunet_predict.csv"), help="rows are appended")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    source = find_dataset(arguments.data, arguments.dataset)
    first = Narrow(
        dataset=source.name,
        fold=0,
        epochs=arguments.epochs,
        iterations=arguments.iterations,
        val_iterations=3,
        batch=arguments.batch,
        patch=tuple(arguments.patch),
        threads=1,
        timing_only=True,
        validate_only=False,
        mirroring=True,
        seed=0,
        work=arguments.work.resolve(),
        features=arguments.features,
    )
    make_folders(first, source)
    preprocess(first, arguments.dataset, source)
    write_narrow_plans(first)
    for fold in range(2):
        train_fold(replace(first, fold=fold), arguments.dataset)
    cases = validation_images(first, source)
    for folds, mirroring in ((1, False), (1, True), (2, False), (2, True)):
        name = f"{folds}_{'mirrored' if mirroring else 'plain'}"
        images = first.work / "images"
        both = (first.work / "predicted" / f"ours_{name}", first.work / "predicted" / f"nnunet_{name}")
        their_cost = theirs(first, folds, mirroring, images, both[1])
        our_cost = ours(first, folds, mirroring, images, both[0])
        row = {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": describe_machine(),
            "torch": version("torch"),
            "nnunetv2": version("nnunetv2"),
            "maskmed_zoo": zoo.__version__,
            "dataset": source.name,
            "patch": "x".join(map(str, arguments.patch)),
            "features": arguments.features,
            "steps": arguments.epochs * arguments.iterations,
            "folds": folds,
            "mirroring": "yes" if mirroring else "no",
            **compare(first, folds, mirroring, cases, both),
            **{f"ours_{key}": round(value, 1) for key, value in our_cost.items()},
            **{f"nnunet_{key}": round(value, 1) for key, value in their_cost.items()},
        }
        append_row(arguments.csv, row)
        sys.stdout.write(f"{row}\n")


if __name__ == "__main__":
    main()
