"""The same network, data, plan and schedule trained by nnU-Net's default trainer and by ours: do the scores differ?

nnU-Net plans the data set (3d_fullres), with the batch, and perhaps the patch, given here. Its trainer trains its own
network with its defaults (see `nnunet_peer.py`). Ours is the point-wise twin of the same plan, with nnU-Net's optimizer
(SGD 1e-2, momentum .99, Nesterov, weight decay 3e-5), loss, policy of augmentation, foreground sampling and mirror
axes. Both validate the fold's cases with the final weights, windows overlapping by half, and no mirroring, and both are
scored by `maskmed-zoo evaluate`. One thread each; one row a run is appended; finished runs are not repeated, and
interrupted ones continued. The tool `ported` trains nothing: it predicts with nnU-Net's final weights in our twin, so
that what prediction makes of a difference is known apart from training. The tool `maskmed` trains MaskMed's neck, head
and loss on the plan's encoder, with the optimizer of our recipes for few steps; it is no part of the comparison here,
but of the one that `maskmed-zoo compare` makes of the predictions.

What stays different: nnU-Net lowers its rate once an epoch, ours every step; it averages logits of windows, ours
probabilities; random numbers.

In an environment with this package and nnU-Net::

    python nnunet_parity.py --data DATA --dataset 4 --work W --seeds 0 1 2 --csv nnunet_parity.csv
    python nnunet_parity.py --compare nnunet_parity.csv

`--compare` prints, per data set and schedule, the mean difference ours - nnU-Net over seeds and its 95 % interval
(Welch), and over cases (of the means over seeds, paired).
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from nnunet_peer import (
    PLANNED,
    Peer,
    append_row,
    describe_machine,
    find_dataset,
    make_folders,
    preprocess,
    train,
    write_plans,
    write_trainer,
)
from scipy import stats

import maskmed_zoo as zoo
from maskmed_zoo.data.bind import bind
from maskmed_zoo.data.dataset import open_dataset
from maskmed_zoo.data.fingerprint import fingerprint_dataset
from maskmed_zoo.evaluation.folders import evaluate_folders
from maskmed_zoo.inference.predictor import Predictor
from maskmed_zoo.recipe import Recipe
from maskmed_zoo.recipe.nnunet_plan import recipe_of_plan

NNUNETS = {"kind": "sgd", "lr": 1e-2, "momentum": 0.99, "weight_decay": 3e-5, "gradient_clip": 12}
FEW_STEPS = {
    "kind": "adamw", "lr": 1e-3, "transformer_scale": 0.3, "weight_decay": 3e-5, "warmup_iterations": 50,
    "gradient_clip": 12,
}  # fmt: skip
"""Of `maskmed_hippocampus_cpu`."""
SAME = ("dataset", "fold", "patch", "batch", "steps")
"""Columns by which runs are compared."""


def axes_of(peer: Peer, source: Path) -> list[int]:
    """For each of our axes z, y, x: which of the plan's axes it is."""
    plans = json.loads((peer.preprocessed / f"{PLANNED}.json").read_text())
    first = sorted((source / "imagesTr").glob("*_0000.nii.gz"))[0]
    world = nibabel.orientations.io_orientation(nibabel.load(first).affine)[:, 0].astype(int)
    ours = [2 - world[2 - axis] for axis in plans["transpose_forward"]]
    return [ours.index(axis) for axis in range(3)]


def turned(configuration: dict[str, Any], axes: Sequence[int]) -> dict[str, Any]:
    """A plan's configuration with its axes in our order."""
    result: dict[str, Any] = json.loads(json.dumps(configuration))
    arguments = result["architecture"]["arch_kwargs"]
    for where, key in ((result, "spacing"), (result, "patch_size")):
        where[key] = [where[key][axis] for axis in axes]
    for key in ("kernel_sizes", "strides"):
        arguments[key] = [[sizes[axis] for axis in axes] for sizes in arguments[key]]
    return result


def our_recipe(peer: Peer, source: Path, configuration: dict[str, Any], *, maskmed: bool = False) -> Recipe:
    """The twin of nnU-Net's plan with its settings of training, or MaskMed on its encoder with those for few steps."""
    axes = axes_of(peer, source)
    configuration = turned(configuration, axes)
    mirrored = (0, 1, 2) if peer.mirror_axes is None else peer.mirror_axes
    settings = {
        "data.mirror_axes": [name for name, axis in zip("zyx", axes, strict=True) if axis in mirrored],
        "train.epochs": peer.epochs,
        "train.iterations_per_epoch": peer.iterations,
        "train.validation_iterations": peer.val_iterations,
        "train.optimizer": FEW_STEPS if maskmed else NNUNETS,
        "train.amp": "off",
        "train.seed": peer.seed,
        "inference.overlap": 0.5,
    }
    dataset = json.loads((peer.preprocessed / "dataset.json").read_text())
    name = "maskmed_hippocampus" if maskmed else "pointwise_amos"
    return zoo.load_recipe(recipe_of_plan(name, configuration, dataset=dataset, twin=not maskmed), settings)


def run_ours(
    peer: Peer, source: Path, configuration: dict[str, Any], *, maskmed: bool = False
) -> tuple[dict[str, Any], float]:
    recipe = our_recipe(peer, source, configuration, maskmed=maskmed)
    runs = peer.work / ("maskmed" if maskmed else "ours")
    out = runs / peer.dataset / f"{peer.plans}_{peer.epochs}x{peer.iterations}_seed{peer.seed}"
    zoo.train(recipe, data=source, out=out, fold=peer.fold, device="cpu", workers=0, resume=out.exists())
    with (out / "metrics.csv").open(newline="") as file:
        cpu = sum(float(row["cpu_seconds"]) for row in csv.DictReader(file))
    return zoo.evaluate(out, device="cpu"), cpu


def run_theirs(peer: Peer, number: int, source: Path) -> tuple[dict[str, Any], float]:
    write_trainer(peer)
    if not (peer.results / "validation" / "summary.json").exists():
        train(peer, number)
    return evaluate_folders(peer.results / "validation", references_of(peer, source)), cpu_of(peer)


def run_ported(peer: Peer, source: Path, configuration: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """nnU-Net's network in our predictor; it cost what nnU-Net's training did."""
    dataset = open_dataset(source)
    recipe = bind(our_recipe(peer, source, configuration), dataset)
    model = zoo.create(recipe, pretrained=peer.results / "checkpoint_final.pth").eval()
    statistics = fingerprint_dataset(dataset).intensities
    references = references_of(peer, source)
    validated = {path.name.removesuffix(".nii.gz") for path in references.glob("*.nii.gz")}
    images = [image for case in dataset.cases if case.identifier in validated for image in case.images]
    with tempfile.TemporaryDirectory() as folder:
        Predictor(recipe, model, statistics, device="cpu").files(images, folder)
        scores = evaluate_folders(folder, references)
    return scores, cpu_of(peer)


def references_of(peer: Peer, source: Path) -> Path:
    """A folder with the reference label maps of the cases that nnU-Net validated."""
    references = peer.work / "references" / f"{peer.dataset}_{peer.fold}"
    references.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "dataset.json", references)
    for path in (peer.results / "validation").glob("*.nii.gz"):
        shutil.copyfile(source / "labelsTr" / path.name, references / path.name)
    return references


def cpu_of(peer: Peer) -> float:
    """Of nnU-Net's training loop, seconds."""
    return json.loads((peer.results / "train_usage.json").read_text())["cpu_seconds"]


def row_of(peer: Peer, tool: str, configuration: dict[str, Any], scores: dict[str, Any], cpu: float) -> dict[str, Any]:
    labels = {name: round(row["mean"], 4) for name, row in scores["labels"].items() if row["mean"] is not None}
    cases = {case["case"]: round(case["mean"], 4) for case in scores["cases"]}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe_machine(),
        "threads": peer.threads,
        "torch": version("torch"),
        "nnunetv2": version("nnunetv2"),
        "maskmed_zoo": zoo.__version__,
        "tool": tool,
        "seed": peer.seed,
        "dataset": peer.dataset,
        "fold": peer.fold,
        "patch": "x".join(map(str, configuration["patch_size"])),
        "batch": configuration["batch_size"],
        "steps": peer.epochs * peer.iterations,
        "train_cpu_seconds": round(cpu),
        "mean_dice": round(scores["mean_dice_over_labels"], 4),
        "dice_per_label": json.dumps(labels),
        "dice_per_case": json.dumps(cases),
    }


def interval(values: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the difference of two means (Welch)."""
    if min(len(values), len(others)) < 2:
        return float("nan"), float("nan")
    found = stats.ttest_ind(values, others, equal_var=False).confidence_interval(0.95)
    return float(found.low), float(found.high)


def compare(file: Path) -> None:
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for group in sorted({tuple(row[name] for name in SAME) for row in rows}):
        tools = {
            tool: [row for row in rows if row["tool"] == tool and tuple(row[name] for name in SAME) == group]
            for tool in ("ours", "nnunet")
        }
        if not all(tools.values()):
            continue
        ours, theirs = ([float(row["mean_dice"]) for row in tools[tool]] for tool in ("ours", "nnunet"))
        low, high = interval(ours, theirs)
        per_case = [
            {case: np.mean([json.loads(row["dice_per_case"])[case] for row in tools[tool]]) for case in names}
            for tool in tools
            for names in [json.loads(tools[tool][0]["dice_per_case"])]
        ]
        paired = np.array([per_case[0][case] - per_case[1][case] for case in per_case[0]])
        around = stats.t.ppf(0.975, len(paired) - 1) * stats.sem(paired)
        cost = [np.mean([float(row["train_cpu_seconds"]) for row in tools[tool]]) for tool in tools]
        sys.stdout.write(
            f"{dict(zip(SAME, group, strict=True))}\n"
            f"  ours {np.mean(ours):.4f} {ours}, nnU-Net {np.mean(theirs):.4f} {theirs}\n"
            f"  difference {np.mean(ours) - np.mean(theirs):+.4f}, 95 % over seeds {low:+.4f} … {high:+.4f}, "
            f"over {len(paired)} cases {paired.mean() - around:+.4f} … {paired.mean() + around:+.4f}; "
            f"CPU-seconds {cost[0]:.0f} and {cost[1]:.0f}\n"
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="our training against nnU-Net's, at its own plan")
    parser.add_argument("--compare", type=Path, metavar="CSV", help="print what a table says, and train nothing")
    parser.add_argument("--data", type=Path, help="folder of DatasetXXX_* folders, raw layout")
    parser.add_argument("--dataset", type=int)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument(
        "--tools", nargs="+", choices=("nnunet", "ours", "ported", "maskmed"), default=["nnunet", "ours"]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--patch", type=int, nargs=3, help="instead of the planned patch, in the plan's axes")
    parser.add_argument("--mirror", nargs="*", choices=("z", "y", "x"), default=["z", "y", "x"], help="in training")
    parser.add_argument("--work", type=Path, help="preprocessed data and runs go here")
    parser.add_argument("--csv", type=Path, default=Path("nnunet_parity.csv"), help="rows are appended")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.compare:
        compare(args.compare)
        return
    torch.set_num_threads(1)
    source = find_dataset(args.data, args.dataset)
    for seed in args.seeds:
        for tool in args.tools:
            peer = Peer(
                dataset=source.name,
                fold=args.fold,
                epochs=args.epochs,
                iterations=args.iterations,
                val_iterations=1,
                batch=2,
                patch=tuple(args.patch) if args.patch else None,
                threads=1,
                timing_only=False,
                validate_only=False,
                mirroring=False,
                seed=seed,
                work=args.work.resolve(),
            )
            make_folders(peer, source)
            preprocess(peer, args.dataset, source)
            axes = dict(zip("zyx", axes_of(peer, source), strict=True))
            peer = replace(peer, mirror_axes=tuple(axes[name] for name in args.mirror))
            configuration = write_plans(peer)
            if tool == "nnunet":
                found = run_theirs(peer, args.dataset, source)
            elif tool == "ported":
                found = run_ported(peer, source, configuration)
            else:
                found = run_ours(peer, source, configuration, maskmed=tool == "maskmed")
            append_row(args.csv, row_of(peer, tool, configuration, *found))


if __name__ == "__main__":
    main()
