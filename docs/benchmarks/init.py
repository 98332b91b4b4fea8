"""What a training that starts from weights has at its first step, and what some steps from there are worth.

    maskmed-zoo train maskmed_hippocampus_cpu --data DATA/Dataset004_Hippocampus --out W/hippocampus
    maskmed-zoo train maskmed_headneck_5mm_cpu --data DATA/Dataset101_HeadNeckCT --out W/headneck
    python nnunet_peer.py --data DATA --dataset 4 --epochs 7 --work W/nnunet

    python init.py first-step --init W/hippocampus --data DATA/Dataset004_Hippocampus --rename posterior=tail
    python init.py first-step --init W/headneck --data DATA/Dataset102_HeadNeckCT_Partial
    python init.py steps --init W/hippocampus --data DATA/Dataset004_Hippocampus --work W \\
        --rename anterior=head --rename posterior=tail
    python init.py steps --init W/nnunet/results/Dataset004_Hippocampus/nnUNetTrainer… --work W \\
        --data DATA/Dataset004_Hippocampus

`first-step` scores the run as it is, and the network of the run's recipe for the labels of DATA that starts from it and
has not been trained, on the same cases: of labels that both name, the Dice has to be the same but for what the rows of
new labels disturb. `steps` trains 200 steps from SOURCE and 200 from scratch, with the same recipe, seed and patches,
and scores both. The recipe is that of the run, of a model of nnU-Net that of its plan, with nnU-Net's own head.
With `--rename` the labels of DATA are called otherwise, in a folder of links below `--work`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import measure
import torch

import maskmed_zoo as zoo
from maskmed_zoo.data.bind import bind
from maskmed_zoo.data.case import load_case
from maskmed_zoo.data.dataset import RawDataset, open_dataset
from maskmed_zoo.inference.predictor import Predictor
from maskmed_zoo.recipe import Recipe, load_recipe
from maskmed_zoo.recipe.nnunet_plan import read_configuration, recipe_of_plan
from maskmed_zoo.runner.run_folder import RunFolder
from maskmed_zoo.weights.load import start_from
from maskmed_zoo.weights.source import weights_in

CONFIGURATION = "3d_fullres"


def renamed(data: Path, names: Mapping[str, str], work: Path) -> Path:
    """The data set with other names for some labels: links, and a `dataset.json` of its own."""
    if not names:
        return data
    folder = work / f"{data.name}_{'_'.join(names.values())}"
    folder.mkdir(parents=True, exist_ok=True)
    for path in data.resolve().iterdir():
        link = folder / path.name
        if path.name != "dataset.json" and not link.exists():
            link.symlink_to(path)
    description = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
    unknown = set(names) - set(description["labels"])
    if unknown:
        raise SystemExit(f"{data}: has no labels {sorted(unknown)}; it has {sorted(description['labels'])}")
    description["labels"] = {names.get(name, name): value for name, value in description["labels"].items()}
    (folder / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    return folder


def recipe_for(source: Path, steps: int | None) -> Recipe:
    """Of a run or an export its own, of a model of nnU-Net that of its plan; labels and channels are the data's."""
    open_ = {"data.labels": None, "data.channels": None}
    if steps is not None:
        open_ |= {"train.epochs": 1, "train.iterations_per_epoch": steps, "train.validation_iterations": 0}
    if (source / "recipe.yaml").exists():
        return zoo.load_recipe(source / "recipe.yaml", open_)
    model = weights_in(source).parent.parent
    plan = read_configuration(model / "plans.json", CONFIGURATION)
    return zoo.load_recipe(recipe_of_plan("pointwise_hippocampus", plan, twin=True), open_)


def dice(predictor: Predictor, dataset: RawDataset, cases: int | None) -> dict[str, float]:
    """Mean Dice of each label over the first validation cases of fold 0 in which it was annotated."""
    found: dict[str, list[float]] = {}
    for case in dataset.splits(0).validation[:cases]:
        image, reference, geometry = load_case(case, dataset)
        if reference is None:
            continue
        predicted = predictor.segment(image, geometry).labels
        for name in sorted(dataset.annotated(case) & set(predictor.labels)):
            ours, theirs = predicted == predictor.labels[name], reference == dataset.labels[name]
            if size := int(ours.sum() + theirs.sum()):
                found.setdefault(name, []).append(2 * int((ours & theirs).sum()) / size)
    return {name: fmean(values) for name, values in found.items()}


def first_step(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each label of the data set: the Dice of the run, and of the network that starts from it."""
    dataset = open_dataset(renamed(args.data, args.rename, args.work))
    source, run = zoo.load(args.init, device="cpu"), RunFolder(args.init)
    recipe = bind(load_recipe(recipe_for(args.init, None), args.set), dataset)
    torch.manual_seed(args.seed)
    model = zoo.create(recipe)
    print("\n".join(start_from(model, args.init).summary()))
    before = dice(source, dataset, args.cases)
    after = dice(Predictor(recipe, model, run.fingerprint(), device="cpu"), dataset, args.cases)
    return rows_of(args, recipe, before, after, steps=0)


def steps(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each label: the Dice after so many steps from scratch, and from the source."""
    data = renamed(args.data, args.rename, args.work)
    recipe = zoo.load_recipe(recipe_for(args.init, args.steps), {"train.seed": args.seed})
    means: list[dict[str, float]] = []
    for name, init in (("scratch", None), ("init", args.init)):
        out = args.work / "runs" / f"{data.name}_{args.init.name}_{name}_{args.steps}_{args.seed}"
        run = zoo.train(recipe, data=data, out=out, init=init, device="cpu", resume=(out / "recipe.yaml").exists())
        means.append(dice(zoo.load(run, device="cpu"), open_dataset(data), args.cases))
    return rows_of(args, recipe, *means, steps=args.steps)


def rows_of(
    args: argparse.Namespace, recipe: Recipe, before: dict[str, float], after: dict[str, float], *, steps: int
) -> list[dict[str, Any]]:
    """One for each label; those that the source does not name have nothing before the first step."""
    facts = {
        "what": args.what,
        "source": args.init.name,
        "dataset": args.data.name,
        "renamed": " ".join(f"{old}={new}" for old, new in args.rename.items()),
        "head": str(recipe.model.model_dump()["head"]["kind"]),
        "settings": " ".join(args.set),
        "seed": args.seed,
        "steps": steps,
        "cases": args.cases or "all",
    }
    rows: list[dict[str, Any]] = []
    for label, dice in after.items():
        start = before.get(label)
        scores = {"label": label, "before": "" if start is None else round(start, 4), "after": round(dice, 4)}
        scores["difference"] = "" if start is None else round(dice - start, 4)
        rows.append(facts | scores | measure.machine())
    return rows


def pair(text: str) -> tuple[str, str]:
    old, _, new = text.partition("=")
    if not (old and new):
        raise argparse.ArgumentTypeError(f"expected OLD=NEW, got '{text}'")
    return old, new


def main() -> None:
    """Measure, print and append to the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("first-step", "steps"))
    parser.add_argument("--init", type=Path, required=True, metavar="SOURCE")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--rename", type=pair, action="append", default=[], metavar="OLD=NEW")
    parser.add_argument("--set", action="append", default=[], metavar="K=C", help="first-step: settings of the recipe")
    parser.add_argument("--steps", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--cases", type=int, metavar="N", help="validation cases (default: all of fold 0)")
    parser.add_argument("--work", type=Path, default=Path("init"), metavar="DIR", help="runs and renamed data go here")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="rows are appended here")
    args = parser.parse_args()
    args.rename = dict(args.rename)
    rows = first_step(args) if args.what == "first-step" else steps(args)
    for row in rows:
        print(f"{row['label']:20} {row['before']!s:>7} {row['after']!s:>7} {row['difference']!s:>8}")
    if args.csv is not None:
        measure.append(args.csv, rows)


if __name__ == "__main__":
    main()
