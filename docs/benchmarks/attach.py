"""MONAI's SwinUNETR and DynUNet with their own output and with the masked-query head: same data, seeds and steps.

    python docs/benchmarks/attach.py --data Dataset004_Hippocampus --out runs/attach
    python docs/benchmarks/attach.py --summary

Four outputs of each network: `own`, its output convolution; `own_supervised`, 1x1x1 convolutions on the decoder stages
that the masked-query head reads; `masked_query` with the paper's loss; `masked_query_combined` with the term on the
combined map too, `semantic_weight: 5`. The first two have MONAI's `DiceCELoss`. All but the first are supervised at
every stage with the same halving weights. The learning rate of the masked-query head is .3 of the network's.

Trains on fold 0, scores its validation cases at full size with the package's sliding window and Dice, and appends a row
per run to `attach.csv` beside this file and one per case to `attach_cases.csv`. A run whose row is there, with the same
steps, is not made again. `--summary` prints means and differences from those files.
"""

from __future__ import annotations

import argparse
import csv
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from measure import append
from monai.losses import DiceCELoss
from monai.networks.nets import DynUNet, SwinUNETR
from torch import Tensor, nn
from torch.utils.data import DataLoader

import maskmed_zoo as zoo
from maskmed_zoo.comparison.differences import difference_row
from maskmed_zoo.comparison.numbers import interval, number, p_value
from maskmed_zoo.contracts import HeadOutput, StageOutput
from maskmed_zoo.data.bind import bind
from maskmed_zoo.data.cache import CaseCache
from maskmed_zoo.data.case import load_case
from maskmed_zoo.data.crop import uncropped
from maskmed_zoo.data.patches import PatchDataset
from maskmed_zoo.data.preprocess import Preprocessing, crop_and_normalize
from maskmed_zoo.data.sources import open_sources
from maskmed_zoo.evaluation.aggregate import summarize
from maskmed_zoo.evaluation.case import CaseScores
from maskmed_zoo.evaluation.mean import mean
from maskmed_zoo.evaluation.metrics import DEFAULT, metrics
from maskmed_zoo.evaluation.metrics.dice import dice_per_label
from maskmed_zoo.evaluation.statistics.sample import Scores, spread
from maskmed_zoo.inference.probability_map import ProbabilityMap
from maskmed_zoo.inference.sliding_window import Windows, visit
from maskmed_zoo.inference.to_image import probabilities_to_labels
from maskmed_zoo.losses.set_criterion import SetCriterion, SetCriterionConfig
from maskmed_zoo.losses.stages import halving_weights, nearest_labels
from maskmed_zoo.model import count_parameters
from maskmed_zoo.recipe import Recipe
from maskmed_zoo.runner.optimizer import build_schedule

HERE = Path(__file__).resolve().parent
RECIPE, PATCH, FOLD = "maskmed_hippocampus_cpu", (32, 64, 32), 0  # SwinUNETR wants multiples of 32
RUNS, CASES = HERE / "attach.csv", HERE / "attach_cases.csv"
KEY = ("network", "head", "steps", "seed")
MASKED_QUERY = {"kind": "masked_query", "width": 96, "attention_heads": 4}
Step = Callable[[Tensor, Tensor], Tensor]


def swin_unetr(classes: int) -> nn.Module:
    """Narrow: 12 channels at the finest level."""
    return SwinUNETR(in_channels=1, out_channels=classes, feature_size=12)


def dyn_unet(classes: int) -> nn.Module:
    """Four levels."""
    return DynUNet(3, 1, classes, [3] * 4, [1, 2, 2, 2], [2, 2, 2], filters=[16, 32, 64, 128])


NETWORKS = {"DynUNet": dyn_unet, "SwinUNETR": swin_unetr}
HEADS = ("own", "own_supervised", "masked_query", "masked_query_combined")
PAIRS = (
    ("own_supervised", "own"),
    ("masked_query", "own_supervised"),
    ("masked_query_combined", "own_supervised"),
    ("masked_query_combined", "masked_query"),
)
"""Which differences the summary tells, over cases and seeds."""


def main() -> None:
    """Train, score, write; or sum up what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for preprocessed cases and weights")
    parser.add_argument("--machine", default=platform.processor() or platform.machine(), metavar="TEXT")
    parser.add_argument("--steps", type=int, default=400, metavar="N", help="of batch 2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=HEADS)
    parser.add_argument(
        "--summary", action="store_true", help="print tables of the rows that are there; trains nothing"
    )
    args = parser.parse_args()
    if args.summary:
        print(summary())
        return
    if args.data is None or args.out is None:
        parser.error("--data and --out are needed")
    torch.set_num_threads(1)
    (source,) = open_sources(args.data)
    for network in args.networks:
        for seed in args.seeds:
            settings = {
                "data.patch_size": list(PATCH), "train.iterations_per_epoch": args.steps, "train.epochs": 1,
                "train.seed": seed, "train.validate_every": 1,
            }  # fmt: skip
            recipe = bind(zoo.load_recipe(RECIPE, settings), source.dataset)
            for head in args.heads:
                if (network, head, str(args.steps), str(seed)) not in {key_of(row) for row in rows_of(RUNS)}:
                    run(recipe, source, network, head, args)


def run(recipe: Recipe, source: Any, network: str, head: str, args: argparse.Namespace) -> None:
    """One training run and its rows."""
    seed, steps = recipe.train.seed, args.steps
    labels, (training, validation) = recipe.labels, source.dataset.splits(FOLD)
    how = Preprocessing.of(recipe.data, recipe.channels, ())  # z-scores need no fingerprint
    cache = CaseCache(args.out / "cache", source.dataset, how)
    cache.prepare((*training, *validation))
    parts = [(cache, training)]
    patches = PatchDataset(
        parts, recipe.data, labels=labels, batch_size=recipe.train.batch_size, seed=seed, stream="train"
    )
    batch = recipe.train.batch_size
    loader = DataLoader(patches, batch_size=batch, sampler=range(steps * batch))
    torch.manual_seed(seed)
    model, groups, loss_of, probabilities = prepare(NETWORKS[network](len(labels)), head, len(labels), recipe)
    optimizer = torch.optim.AdamW(groups, weight_decay=recipe.train.optimizer.weight_decay)
    schedule = build_schedule(optimizer, recipe.train)
    start, losses = time.process_time(), list[float]()
    model.train()
    for step, patch in enumerate(loader):
        loss = loss_of(patch["image"], patch["labels"])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.train.optimizer.gradient_clip)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            print(f"{network} {head} seed {seed}: step {step + 1}, loss {sum(losses[-50:]) / 50:.3f}", flush=True)
    seconds = time.process_time() - start
    torch.save(model.state_dict(), args.out / f"{network}_{head}_{steps}_{seed}.pth")
    model.eval()
    names = labels.names
    scores: list[CaseScores] = []
    for case in validation:
        image, reference, geometry = load_case(case, source.dataset)
        cropped = crop_and_normalize(image, None, geometry, how, values=2 * len(labels))
        volume, region = torch.from_numpy(cropped.image()), cropped.region
        windows = Windows.of(volume, PATCH, recipe.inference.overlap)
        found = ProbabilityMap(windows, len(labels))
        for places, output in visit(probabilities, volume, windows, batch_size=batch, device="cpu"):
            found.take(places, output)
        predicted = probabilities_to_labels(found.result(), region.cropped, region.thick_back)
        dice = dice_per_label(uncropped(predicted, region.box, region.shape), reference, range(1, len(labels)))
        scores.append(CaseScores(case.identifier, {names[label]: value for label, value in dice.items()}))
    found = summarize(scores, names[1:])
    key = {"network": network, "head": head, "steps": steps, "seed": seed}
    append(CASES, ({**key, "case": x.identifier, **rounded(x.values)} for x in scores))
    row = {
        "date": time.strftime("%Y-%m-%d"), "machine": args.machine, "torch": torch.__version__, **key,
        "dataset": source.dataset.name, "fold": FOLD, "patch": "x".join(map(str, PATCH)), "batch": batch,
        "parameters": count_parameters(model.parameters()), "train_cpu_seconds": round(seconds), "cases": len(scores),
        "mean_dice": round(found["mean_dice"], 4),
        **rounded({name: facts["mean"] for name, facts in found["labels"].items()}),
    }  # fmt: skip
    print(row, flush=True)
    append(RUNS, [row])


def prepare(
    network: nn.Module, head: str, classes: int, recipe: Recipe
) -> tuple[nn.Module, list[dict[str, Any]], Step, Callable[[Tensor], HeadOutput]]:
    """The model, its parameter groups, its loss on a batch, and what the sliding window asks for."""
    rate = recipe.train.optimizer.lr
    if head.startswith("own"):
        criterion = DiceCELoss(to_onehot_y=True, softmax=True)
        supervised = head == "own_supervised"
        model = zoo.attach_head(network, "pointwise", num_classes=classes) if supervised else network

        def maps(image: Tensor) -> HeadOutput:
            return model(image) if supervised else HeadOutput([StageOutput(logits=model(image))])

        def own_loss(image: Tensor, labels: Tensor) -> Tensor:
            stages = [stage.spatial for stage in maps(image).stages]
            targets = [nearest_labels(labels, x.shape[2:]).unsqueeze(1) for x in stages]
            terms = [criterion(x, target) for x, target in zip(stages, targets, strict=True)]
            return torch.stack(terms) @ torch.tensor(halving_weights(len(terms)))

        return model, [{"params": list(model.parameters()), "lr": rate}], own_loss, maps
    model = zoo.attach_head(network, MASKED_QUERY, num_classes=classes, spacing=recipe.data.spacing)
    config = SetCriterionConfig(semantic_weight=5 if head == "masked_query_combined" else 0)
    set_criterion = SetCriterion(num_classes=classes, config=config)
    rates = {"cnn": rate, "transformer": rate * recipe.train.optimizer.transformer_scale}
    groups = [{"params": parameters, "lr": rates[name]} for name, parameters in model.parameter_groups().items()]
    return model, groups, lambda image, labels: set_criterion(model(image), labels)[0], model


def rounded(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """To four decimals."""
    return {name: None if value is None else round(value, 4) for name, value in values.items()}


def rows_of(path: Path) -> list[dict[str, str]]:
    """Of a CSV that may not be there yet."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def key_of(row: Mapping[str, str]) -> tuple[str, ...]:
    """What tells a run from the others."""
    return tuple(row[name] for name in KEY)


def summary() -> str:
    """Two Markdown tables: the outputs of each network, and the differences between them."""
    runs, cases = rows_of(RUNS), dict[tuple[str, ...], dict[str, float | None]]()
    for row in rows_of(CASES):
        dice = [float(value) for name, value in row.items() if name not in (*KEY, "case") and value]
        cases.setdefault(key_of(row), {})[row["case"]] = mean(dice)
    means = ["| network, steps | output | seeds | parameters | CPU-seconds of training | mean Dice | SD over seeds |"]
    means.append("|---|---|---|---:|---:|---:|---:|")
    paired = ["| network, steps | first, second | difference | 95 % interval | p | cases better, worse |"]
    paired.append("|---|---|---:|---|---:|---:|")
    for network, steps in dict.fromkeys((row["network"], row["steps"]) for row in runs):
        scores: dict[str, list[Scores]] = {}
        for head in HEADS:
            of = [row for row in runs if (row["network"], row["steps"], row["head"]) == (network, steps, head)]
            if not of:
                continue
            scores[head] = [cases[key_of(row)] for row in of]
            dice = [float(row["mean_dice"]) for row in of]
            seconds = [int(row["train_cpu_seconds"]) for row in of]
            means.append(
                f"| {network}, {steps} | `{head}` | {', '.join(row['seed'] for row in of)} "
                f"| {int(of[0]['parameters']):,} | {min(seconds)} to {max(seconds)} | {number(fmean(dice))} "
                f"| {number(spread(dice))} |"
            )
        for first, second in PAIRS:
            if first in scores and second in scores:
                found = difference_row((first, second), None, scores, metrics()[DEFAULT], {})
                test = p_value(found["p_mean"] if found["p_methods"] is None else found["p_methods"])
                paired.append(
                    f"| {network}, {steps} | `{first}`, `{second}` | {number(found['mean'], sign='+')} "
                    f"| {interval(found['interval'], sign='+')} | {test} | {found['better']}, {found['worse']} |"
                )
    return "\n".join([*means, "", *paired])


if __name__ == "__main__":
    main()
