"""Trainers of this package inside nnU-Net v2, beside nnU-Net's default trainer at the same epochs.

For every fold and trainer (`default`, or a recipe by name, which `maskmed-zoo nnunet install` writes) it trains on
nnU-Net's own plan with batch 2, lets nnU-Net validate, and appends a row. A recipe's first training is killed after
its first epochs and continued by `--c`, and its validation images are segmented again by `nnUNetv2_predict` and scored
by `maskmed-zoo evaluate`; `predict_dice` is that score, which must be the validation's.

Schedules this short show that the plug-in works from end to end, not which head is better: SGD at 1e-2 has hardly begun
where AdamW of the CPU recipes has got somewhere. `pointwise_hippocampus_cpu` is nnU-Net's own network trained like the
recipe with the query head, and the row to compare a head with.

In nnU-Net's environment, with this package installed::

    python nnunet_plugin.py --data DATA --dataset 4 --folds 0 1 --validation 12 --work W --csv nnunet_plugin.csv \\
        --trainers maskmed_hippocampus_cpu default

nnU-Net runs with one thread, through its own entry points. It sets no seed; one run each. Trainings that are finished
under --work are not repeated, and have no `cpu_seconds` then.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnunet_peer import (
    CONFIGURATION,
    Peer,
    append_row,
    describe_machine,
    environment,
    find_dataset,
    make_folders,
    preprocess,
    read_dice,
    write_plans,
    write_trainer,
)

from maskmed_zoo.evaluation.folders import evaluate_folders
from maskmed_zoo.interop.nnunet_install import install, trainer_name
from maskmed_zoo.recipe import load_recipe

ENTRY = {
    "nnUNetv2_train": "nnunetv2.run.run_training:run_training_entry",
    "nnUNetv2_predict": "nnunetv2.inference.predict_from_raw_data:predict_entry_point",
}
LAUNCHER = "import multiprocessing as m; m.cpu_count = lambda: 1; from {} import {} as run; run()"
"""nnU-Net on the CPU takes as many threads as it counts cores."""


@dataclass(frozen=True)
class Run(Peer):
    """One training by a recipe, or by nnU-Net's default trainer where that is None."""

    recipe: str | None = None

    @property
    def trainer(self) -> str:
        if self.recipe is None:
            return super().trainer
        return f"{trainer_name(load_recipe(self.recipe))}_{self.epochs}x{self.iterations}"

    def write_trainer(self) -> None:
        if self.recipe is None:
            write_trainer(self)
            return
        settings = {
            "train.epochs": self.epochs,
            "train.iterations_per_epoch": self.iterations,
            "train.validation_iterations": self.val_iterations,
        }
        install(self.work / "trainers", self.trainer, load_recipe(self.recipe, settings))


def start(run: Run, command: str, *arguments: str) -> subprocess.Popen[bytes]:
    code = LAUNCHER.format(*ENTRY[command].split(":"))
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments, "-device", "cpu"], env=environment(run, "nnUNetv2_train")
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    if process.wait():
        raise SystemExit(f"nnU-Net failed with exit code {process.returncode}")


def train(run: Run, number: int, interrupt: bool) -> None:
    words = (str(number), CONFIGURATION, str(run.fold), "-tr", run.trainer, "-p", run.plans)
    process = start(run, "nnUNetv2_train", *words)
    if interrupt:
        while process.poll() is None and not (run.results / "checkpoint_latest.pth").exists():
            time.sleep(1)
        time.sleep(5)  # into the next epoch
        process.kill()
        process.wait()
        process = start(run, "nnUNetv2_train", *words, "--c")
    finish(process)


def predict(run: Run, number: int, source: Path) -> float:
    """Segment the validation images again, from the raw files, and score them."""
    names = [path.name.removesuffix(".nii.gz") for path in (run.results / "validation").glob("*.nii.gz")]
    inputs, references = run.work / "inputs", run.work / "references"
    outputs = run.work / "outputs" / run.trainer / str(run.fold)
    for folder in (inputs, references):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    shutil.copy(source / "dataset.json", run.work)  # beside the references, for the names of the labels
    for name in names:
        shutil.copyfile(source / "imagesTr" / f"{name}_0000.nii.gz", inputs / f"{name}_0000.nii.gz")
        shutil.copyfile(source / "labelsTr" / f"{name}.nii.gz", references / f"{name}.nii.gz")
    words = ("-i", str(inputs), "-o", str(outputs), "-d", str(number), "-c", CONFIGURATION, "-f", str(run.fold))
    finish(
        start(
            run,
            "nnUNetv2_predict",
            *words,
            "-tr",
            run.trainer,
            "-p",
            run.plans,
            "-npp",
            "1",
            "-nps",
            "1",
            "--continue_prediction",
        )
    )
    return round(evaluate_folders(outputs, references)["mean_dice_over_labels"], 4)


def epoch_seconds(run: Run) -> float:
    """Wall-clock seconds of all epochs that the logs report."""
    lines = [line for log in run.results.glob("training_log_*.txt") for line in log.read_text().splitlines()]
    return sum(float(line.split("Epoch time:")[1].split()[0]) for line in lines if "Epoch time:" in line)


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def make_row(
    run: Run, patch: list[int], cpu: float | None, interrupted: bool, predicted: float | None
) -> dict[str, Any]:
    per_label, mean = read_dice(run)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe_machine(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "nnunetv2": version("nnunetv2"),
        "dataset": run.dataset,
        "fold": run.fold,
        "validation_cases": len(list((run.results / "validation").glob("*.nii.gz"))),
        "trainer": run.recipe or "default",
        "patch": "x".join(map(str, patch)),
        "batch": run.batch,
        "epochs": run.epochs,
        "iterations": run.iterations,
        "killed_and_continued": "yes" if interrupted else "no",
        "cpu_seconds": "" if cpu is None else round(cpu),
        "epoch_wall_seconds": round(epoch_seconds(run)),
        "dice_per_label": json.dumps(per_label),
        "mean_dice": mean,
        "predict_dice": "" if predicted is None else predicted,
        "seed": "unseeded (nnU-Net sets none), one run",
    }


def shorten(file: Path, cases: int) -> None:
    """Validate on the first cases of every fold alone."""
    splits = json.loads(file.read_text())
    file.write_text(json.dumps([{**split, "val": split["val"][:cases]} for split in splits]))


def main() -> None:
    parser = argparse.ArgumentParser(description="this package's trainers inside nnU-Net v2")
    parser.add_argument("--data", type=Path, required=True, help="folder of DatasetXXX_* folders, raw layout")
    parser.add_argument("--dataset", type=int, required=True)
    parser.add_argument("--folds", type=int, nargs="+", default=[0])
    parser.add_argument("--trainers", nargs="+", required=True, help="'default', or names of recipes")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--val-iterations", type=int, default=2)
    parser.add_argument("--validation", type=int, default=12, help="validation cases per fold")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--csv", type=Path, default=Path("nnunet_plugin.csv"), help="rows are appended")
    args = parser.parse_args()
    source = find_dataset(args.data, args.dataset)
    for fold in args.folds:
        for name in args.trainers:
            run = Run(
                dataset=source.name,
                fold=fold,
                epochs=args.epochs,
                iterations=args.iterations,
                val_iterations=args.val_iterations,
                batch=2,
                patch=None,
                threads=1,
                timing_only=False,
                validate_only=False,
                mirroring=True,
                work=args.work.resolve(),
                recipe=None if name == "default" else name,
            )
            make_folders(run, source)
            preprocess(run, args.dataset, source)
            shorten(run.preprocessed / "splits_final.json", args.validation)
            configuration = write_plans(run)
            run.write_trainer()
            before, is_first = cpu_seconds(), run.recipe is not None and fold == args.folds[0]
            is_done = (run.results / "validation" / "summary.json").exists()
            if not is_done:
                train(run, args.dataset, is_first)
            cpu = None if is_done else cpu_seconds() - before
            predicted = predict(run, args.dataset, source) if is_first else None
            append_row(args.csv, make_row(run, configuration["patch_size"], cpu, is_first, predicted))


if __name__ == "__main__":
    main()
