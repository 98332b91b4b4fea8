"""Train and validate nnU-Net v2 on one fold with a short schedule and a known CPU cost.

The figures it writes are the reference for our own short runs: same data, same fold, same batch size,
cost counted in CPU-seconds (user + system, all threads). Use an otherwise idle machine, since
other work inflates even CPU-seconds (1.4 times was seen on two cores). Everything else is nnU-Net's default
trainer: its network, loss, SGD 1e-2 with the complete poly schedule over the given epochs, its augmentation
(with mirroring), and its sliding window, with mirroring too unless --no-mirroring is given.

One run makes ``raw``, ``preprocessed`` and ``results`` under --work, plans and preprocesses (3d_fullres),
copies the dataset's own ``splits_final.json`` beside the plans, copies the plan with the wanted batch size
(and patch, where --patch is given), writes the external trainer, trains, validates the fold with the final
weights and appends one row to the CSV. The CPU-seconds cover the training loop with its few validation
iterations, and neither the preprocessing nor the final prediction. Mean Dice is nnU-Net's foreground_mean;
the column ``iterations`` counts those of one epoch.

nnU-Net wants an environment of its own::

    python3 -m venv env && env/bin/pip install nnunetv2
    env/bin/python nnunet_peer.py --data DATA --dataset 4 --epochs 1 --iterations 20 --work W --timing-only
    env/bin/python nnunet_peer.py --data DATA --dataset 4 --epochs 7 --work W --csv nnunet_peer.csv

DATA holds folders in nnU-Net's raw layout (``Dataset004_Hippocampus``, ``Dataset101_HeadNeckCT``). The first
call trains a few iterations and prints the CPU-seconds per iteration, from which the epochs are chosen.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

CONFIGURATION = "3d_fullres"
PLANNED = "nnUNetPlans"
USAGE_FILE = "train_usage.json"

TRAINER = '''"""nnU-Net's default trainer with a short schedule and a count of what the loop costs."""

import json
import random
import resource
import time
from pathlib import Path

import numpy
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


def cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class {name}(nnUNetTrainer):
    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict,
                 device: torch.device = torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        torch.set_num_threads({threads})  # nnU-Net takes as many as it counts cores
        if {seed} is not None:
            for seeded in (random.seed, numpy.random.seed, torch.manual_seed):
                seeded({seed})
        self.save_every = max(1, {epochs} // 10)
        self.num_epochs = {epochs}
        self.num_iterations_per_epoch = {iterations}
        self.num_val_iterations_per_epoch = {val_iterations}

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):
        *others, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        return *others, axes if {mirror_axes} is None else {mirror_axes}

    def on_train_start(self):
        super().on_train_start()
        self.cpu_start, self.wall_start = cpu_seconds(), time.perf_counter()

    def on_train_end(self):
        cpu, wall = cpu_seconds() - self.cpu_start, time.perf_counter() - self.wall_start
        usage = dict(cpu_seconds=cpu, wall_seconds=wall)
        Path(self.output_folder, "{usage_file}").write_text(json.dumps(usage))
        super().on_train_end()

    def perform_actual_validation(self, save_probabilities: bool = False):
        if {timing_only}:
            return
        if not {mirroring}:
            self.inference_allowed_mirroring_axes = None
        super().perform_actual_validation(save_probabilities)
'''


@dataclass(frozen=True)
class Peer:
    """One run: what to train, for how long, and where."""

    dataset: str
    fold: int
    epochs: int
    iterations: int
    val_iterations: int
    batch: int
    patch: tuple[int, ...] | None
    threads: int
    timing_only: bool
    validate_only: bool
    mirroring: bool
    seed: int | None
    work: Path
    mirror_axes: tuple[int, ...] | None = None
    """Of the plan, flipped at random in training; None: all."""

    @property
    def trainer(self) -> str:
        seed = "" if self.seed is None else f"_seed{self.seed}"
        return f"nnUNetTrainer{'Timing' if self.timing_only else 'Peer'}_{self.epochs}x{self.iterations}{seed}"

    @property
    def plans(self) -> str:
        patch = "_patch" + "x".join(map(str, self.patch)) if self.patch else ""
        return f"{PLANNED}_batch{self.batch}{patch}"

    @property
    def preprocessed(self) -> Path:
        return self.work / "preprocessed" / self.dataset

    @property
    def results(self) -> Path:
        name = f"{self.trainer}__{self.plans}__{CONFIGURATION}"
        return self.work / "results" / self.dataset / name / f"fold_{self.fold}"


def find_dataset(data: Path, number: int) -> Path:
    found = sorted(data.glob(f"Dataset{number:03d}_*"))
    if not found:
        raise SystemExit(f"no Dataset{number:03d}_* folder in {data}")
    return found[0].resolve()


def make_folders(peer: Peer, source: Path) -> None:
    for name in ("raw", "preprocessed", "results", "trainers"):
        (peer.work / name).mkdir(parents=True, exist_ok=True)
    link = peer.work / "raw" / peer.dataset
    if not link.exists():
        link.symlink_to(source, target_is_directory=True)


def environment(peer: Peer, command: str) -> dict[str, str]:
    folders = {f"nnUNet_{name}": str(peer.work / name) for name in ("raw", "preprocessed", "results")}
    return {
        **os.environ,
        **folders,
        "nnUNet_extTrainer": str(peer.work / "trainers"),
        "nnUNet_compile": "f",
        # augment in the training process, so that its CPU-seconds are counted; the planner refuses 0
        "nnUNet_n_proc_DA": "0" if command == "nnUNetv2_train" else str(peer.threads),
        "nnUNet_def_n_proc": str(peer.threads),
        "OMP_NUM_THREADS": str(peer.threads),
    }


def call(peer: Peer, command: str, *arguments: str) -> None:
    program = Path(sysconfig.get_path("scripts")) / command
    subprocess.run([str(program), *arguments], env=environment(peer, command), check=True)


def preprocess(peer: Peer, number: int, source: Path) -> None:
    """Plan and preprocess once per work folder; the dataset's own folds go beside the plans."""
    done = peer.preprocessed / "preprocessing_done"
    if not done.exists():
        processes = ("-npfp", str(peer.threads), "-np", str(peer.threads))
        call(peer, "nnUNetv2_plan_and_preprocess", "-d", str(number), "-c", CONFIGURATION, *processes)
        done.touch()
    splits = source / "splits_final.json"
    if splits.exists():
        shutil.copyfile(splits, peer.preprocessed / splits.name)


def write_plans(peer: Peer) -> dict[str, Any]:
    """Copy nnU-Net's plan with our batch size and patch; returns the edited configuration."""
    plans = json.loads((peer.preprocessed / f"{PLANNED}.json").read_text())
    plans["plans_name"] = peer.plans
    configuration: dict[str, Any] = plans["configurations"][CONFIGURATION]
    configuration["batch_size"] = peer.batch
    if peer.patch:
        configuration["patch_size"] = list(peer.patch)
    (peer.preprocessed / f"{peer.plans}.json").write_text(json.dumps(plans, indent=2))
    return configuration


def write_trainer(peer: Peer) -> None:
    text = TRAINER.format(
        name=peer.trainer,
        epochs=peer.epochs,
        iterations=peer.iterations,
        val_iterations=peer.val_iterations,
        timing_only=peer.timing_only,
        mirroring=peer.mirroring,
        mirror_axes=peer.mirror_axes,
        seed=peer.seed,
        threads=peer.threads,
        usage_file=USAGE_FILE,
    )
    (peer.work / "trainers" / f"{peer.trainer}.py").write_text(text)


def train(peer: Peer, number: int) -> dict[str, float]:
    """Train and validate, or validate a finished training; returns the cost of the training loop."""
    which = (str(number), CONFIGURATION, str(peer.fold), "-tr", peer.trainer, "-p", peer.plans)
    validate = ("--val",) if peer.validate_only else ()
    continued = () if peer.validate_only or not (peer.results / "checkpoint_latest.pth").exists() else ("--c",)
    call(peer, "nnUNetv2_train", *which, "-device", "cpu", *validate, *continued)
    return json.loads((peer.results / USAGE_FILE).read_text())


def read_dice(peer: Peer) -> tuple[dict[str, float], float]:
    """Per-label Dice over the fold's validation cases, and nnU-Net's foreground mean."""
    summary = json.loads((peer.results / "validation" / "summary.json").read_text())
    labels = json.loads((peer.preprocessed / "dataset.json").read_text())["labels"]
    means = {int(value): entry["Dice"] for value, entry in summary["mean"].items()}
    per_label = {name: round(means[value], 4) for name, value in labels.items() if value in means}
    return per_label, round(summary["foreground_mean"]["Dice"], 4)


def read_proc(path: str, key: str) -> str:
    """The value of the first ``key : value`` line of a /proc file, empty where there is none."""
    file = Path(path)
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


def describe_machine() -> str:
    cpu = read_proc("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()
    ram = int(read_proc("/proc/meminfo", "MemTotal").split(" ")[0] or 0) / 2**20
    return f"{cpu}, {os.cpu_count()} cores, {ram:.0f} GiB"


def make_row(peer: Peer, configuration: dict[str, Any], usage: dict[str, float]) -> dict[str, Any]:
    per_label, mean = read_dice(peer)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe_machine(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "nnunetv2": version("nnunetv2"),
        "dataset": peer.dataset,
        "fold": peer.fold,
        "patch": "x".join(map(str, configuration["patch_size"])),
        "batch": configuration["batch_size"],
        "epochs": peer.epochs,
        "iterations": peer.iterations,
        "train_cpu_seconds": round(usage["cpu_seconds"]),
        "train_wall_seconds": round(usage["wall_seconds"]),
        "dice_per_label": json.dumps(per_label),
        "mean_dice": mean,
        "mirroring": "yes" if peer.mirroring else "no",
        "seed": "unseeded (nnU-Net sets none), one run" if peer.seed is None else peer.seed,
    }


def append_row(file: Path, row: dict[str, Any]) -> None:
    new = not file.exists()
    with file.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="nnU-Net v2 reference figures at a known CPU cost")
    parser.add_argument("--data", type=Path, required=True, help="folder of DatasetXXX_* folders, raw layout")
    parser.add_argument("--dataset", type=int, required=True, help="4 or 101 (any number in the data folder)")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--epochs", type=int, required=True, help="the poly schedule spans these")
    parser.add_argument("--iterations", type=int, default=50, help="training iterations per epoch")
    parser.add_argument("--val-iterations", type=int, default=5, help="validation iterations per epoch")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--patch", type=int, nargs=3, help="instead of the planned patch")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, help="nnU-Net sets none; default: none")
    parser.add_argument("--work", type=Path, required=True, help="preprocessed data and results go here")
    parser.add_argument("--csv", type=Path, default=Path("nnunet_peer.csv"), help="one row is appended")
    parser.add_argument("--timing-only", action="store_true", help="print the cost; no validation, no row")
    parser.add_argument("--validate-only", action="store_true", help="with the weights of a finished run")
    parser.add_argument("--no-mirroring", action="store_true", help="validate without mirrored copies")
    return parser.parse_args()


def make_peer(arguments: argparse.Namespace, source: Path) -> Peer:
    return Peer(
        dataset=source.name,
        fold=arguments.fold,
        epochs=arguments.epochs,
        iterations=arguments.iterations,
        val_iterations=arguments.val_iterations,
        batch=arguments.batch,
        patch=tuple(arguments.patch) if arguments.patch else None,
        threads=arguments.threads,
        timing_only=arguments.timing_only,
        validate_only=arguments.validate_only,
        mirroring=not arguments.no_mirroring,
        seed=arguments.seed,
        work=arguments.work.resolve(),
    )


def main() -> None:
    arguments = parse_arguments()
    source = find_dataset(arguments.data, arguments.dataset)
    peer = make_peer(arguments, source)
    make_folders(peer, source)
    preprocess(peer, arguments.dataset, source)
    configuration = write_plans(peer)
    write_trainer(peer)
    usage = train(peer, arguments.dataset)
    steps = peer.epochs * peer.iterations
    print(f"{usage['cpu_seconds']:.0f} CPU-seconds, {usage['cpu_seconds'] / steps:.2f} per iteration")
    if not peer.timing_only:
        append_row(arguments.csv, make_row(peer, configuration, usage))


if __name__ == "__main__":
    main()
