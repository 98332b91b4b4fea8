"""Dice of a recipe trained plainly, in bfloat16, and as the moving average of its weights; several seeds.

    python docs/benchmarks/switches_dice.py --data Dataset004_Hippocampus --out runs/switches
    python docs/benchmarks/switches_dice.py --data DIR --out runs/switches --seeds 0 --set train.epochs=1

The average of the weights changes nothing in the training, so "plain" and "ema" are two networks of one run: its newest
weights, from its state, and the average, which it saves. Appends to `switches_dice.csv`. Runs that are there are gone
on with, and rows that are in the CSV are not made again. `--set` holds for all runs, their length is `--steps`.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from pathlib import Path
from typing import Any

import torch
from measure import Row, append, machine

import maskmed_zoo as zoo
from maskmed_zoo.build import model_of
from maskmed_zoo.recipe import load_recipe
from maskmed_zoo.runner.evaluate import evaluate
from maskmed_zoo.runner.run_folder import RunFolder, save_model

FOLDER = Path(__file__).resolve().parent
EPOCHS = 10
RUNS = {"ema": ["train.amp=off", "train.ema=0.999"], "bf16": ["train.amp=bf16"]}
"""Trainings by name; of the first there are two networks."""


def newest(run: RunFolder) -> RunFolder:
    """A copy of a run whose saved weights are those that training would go on from."""
    copied = RunFolder(run.path.with_name(f"{run.path.name}_newest"))
    shutil.copytree(run.path, copied.path, ignore=shutil.ignore_patterns("predictions", "evaluation*"))
    recipe = run.recipe()
    model = model_of(recipe)
    model.load_state_dict(torch.load(run.state_file, map_location="cpu", weights_only=True)["model"])
    save_model(copied.weights_file("last"), model, recipe, {"epochs": str(recipe.train.epochs)})
    return copied


def trained(arguments: argparse.Namespace, name: str, seed: int) -> RunFolder:
    """The finished run of these settings."""
    length = [f"train.epochs={EPOCHS}", f"train.iterations_per_epoch={arguments.steps // EPOCHS}"]
    settings = [*length, "train.validate_every=10", f"train.seed={seed}", *RUNS[name], *arguments.set]
    out = arguments.out / f"{name}_{seed}"
    recipe = load_recipe(arguments.recipe, settings)
    zoo.train(recipe, data=arguments.data, out=out, device=arguments.device, resume=(out / "state_last.pt").exists())
    return RunFolder(out)


def row_of(arguments: argparse.Namespace, variant: str, seed: int, run: RunFolder) -> Row:
    """Dice over the validation cases."""
    found: dict[str, Any] = evaluate(run, device=arguments.device)
    by_label = " ".join(f"{label} {score['mean']:.4f}" for label, score in found["labels"].items())
    print(f"{variant:6} seed {seed}: {found['mean_dice']:.4f} {by_label}", flush=True)
    return {
        "data": arguments.data.name,
        "recipe": arguments.recipe,
        "settings": " ".join(arguments.set),
        "steps": arguments.steps,
        "variant": variant,
        "seed": seed,
        "mean_dice": round(found["mean_dice"], 4),
        "by_label": by_label,
    }


def done(path: Path) -> set[tuple[str, str, str]]:
    """Steps, variant and seed of the rows that are there."""
    if not path.exists():
        return set()
    with path.open(newline="", encoding="utf-8") as file:
        return {(row["steps"], row["variant"], row["seed"]) for row in csv.DictReader(file)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--recipe", default="maskmed_hippocampus_cpu")
    parser.add_argument("--steps", type=int, default=500, help=f"a multiple of {EPOCHS}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", type=Path, default=FOLDER / "switches_dice.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for name in arguments.runs:
            variants = ["plain", "ema"] if name == "ema" else [name]
            there = done(arguments.csv)
            missing = [v for v in variants if (str(arguments.steps), v, str(seed)) not in there]
            if not missing:
                continue
            run = trained(arguments, name, seed)
            for variant in missing:
                of = newest(run) if variant == "plain" else run
                append(arguments.csv, [row_of(arguments, variant, seed, of) | machine()])


if __name__ == "__main__":
    main()
