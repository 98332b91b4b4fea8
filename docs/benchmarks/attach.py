"""MONAI's SwinUNETR and DynUNet with their own output and with the masked-query head: same data, seed and steps.

    python docs/benchmarks/attach.py --data Dataset004_Hippocampus --out runs/attach --machine "2 CPU cores (AVX2)"

Trains on fold 0, scores its validation cases at full size with the package's sliding window and Dice, and appends a row
for each of the four to `attach.csv` beside this file. `--only` trains one of them. The own outputs have MONAI's
`DiceCELoss`, at the full resolution alone for SwinUNETR and with nnU-Net's halving weights over the deep supervision of
DynUNet; the masked-query head has its set criterion and a third of the learning rate.
"""

from __future__ import annotations

import argparse
import csv
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.losses import DiceCELoss
from monai.networks.nets import DynUNet, SwinUNETR
from torch import Tensor, nn
from torch.utils.data import DataLoader

import maskmed_zoo as zoo
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
from maskmed_zoo.evaluation.metrics.dice import dice_per_label
from maskmed_zoo.inference.probability_map import ProbabilityMap
from maskmed_zoo.inference.sliding_window import Windows, visit
from maskmed_zoo.inference.to_image import probabilities_to_labels
from maskmed_zoo.losses.set_criterion import SetCriterion
from maskmed_zoo.model import count_parameters
from maskmed_zoo.recipe import Recipe
from maskmed_zoo.runner.optimizer import build_schedule

HERE = Path(__file__).resolve().parent
RECIPE, PATCH, FOLD = "maskmed_hippocampus_cpu", (32, 64, 32), 0  # SwinUNETR wants multiples of 32
HEAD = {"kind": "masked_query", "width": 96, "attention_heads": 4}
Step = Callable[[Tensor, Tensor], Tensor]


def swin_unetr(classes: int) -> nn.Module:
    """Narrow: 12 channels at the finest level."""
    return SwinUNETR(in_channels=1, out_channels=classes, feature_size=12)


def dyn_unet(classes: int) -> nn.Module:
    """Four levels, two of them supervised beside the output."""
    return DynUNet(
        3, 1, classes, [3] * 4, [1, 2, 2, 2], [2, 2, 2], filters=[16, 32, 64, 128], deep_supervision=True,
        deep_supr_num=2,
    )  # fmt: skip


NETWORKS = {"SwinUNETR": swin_unetr, "DynUNet": dyn_unet}
HEADS = ("own", "masked_query")


def main() -> None:
    """Train, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for preprocessed cases and weights")
    parser.add_argument("--machine", default=platform.processor() or platform.machine(), metavar="TEXT")
    parser.add_argument("--steps", type=int, default=400, metavar="N", help="of batch 2")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--only", metavar="NETWORK/HEAD", help="such as DynUNet/masked_query")
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = {
        "data.patch_size": list(PATCH), "train.iterations_per_epoch": args.steps, "train.epochs": 1,
        "train.seed": args.seed, "train.validate_every": 1,
    }  # fmt: skip
    (source,) = open_sources(args.data)
    recipe = bind(zoo.load_recipe(RECIPE, settings), source.dataset)
    cells = [(n, h) for n in NETWORKS for h in HEADS if args.only in (None, f"{n}/{h}")]
    if not cells:
        known = ", ".join(f"{n}/{h}" for n in NETWORKS for h in HEADS)
        raise SystemExit(f"--only {args.only}: expected one of {known}")
    for network, head in cells:
        run(recipe, source, network, head, args)


def run(recipe: Recipe, source: Any, network: str, head: str, args: argparse.Namespace) -> None:
    """One training run and its row."""
    labels, (training, validation) = recipe.labels, source.dataset.splits(FOLD)
    how = Preprocessing.of(recipe.data, recipe.channels, ())  # z-scores need no fingerprint
    cache = CaseCache(args.out / "cache", source.dataset, how)
    cache.prepare((*training, *validation))
    parts = [(cache, training)]
    patches = PatchDataset(
        parts, recipe.data, labels=labels, batch_size=recipe.train.batch_size, seed=args.seed, stream="train"
    )
    batch = recipe.train.batch_size
    loader = DataLoader(patches, batch_size=batch, sampler=range(args.steps * batch))
    torch.manual_seed(args.seed)
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
            print(f"{network} {head}: step {step + 1}, loss {sum(losses[-50:]) / 50:.3f}", flush=True)
    seconds = time.process_time() - start
    torch.save(model.state_dict(), args.out / f"{network}_{head}_{args.seed}.pth")
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
    summary = summarize(scores, names[1:])
    row = {
        "date": time.strftime("%Y-%m-%d"), "machine": args.machine, "torch": torch.__version__, "network": network,
        "head": head, "dataset": source.dataset.name, "fold": FOLD, "seed": args.seed,
        "patch": "x".join(map(str, PATCH)), "batch": batch, "steps": args.steps,
        "parameters": count_parameters(model.parameters()),
        "train_cpu_seconds": round(seconds), "cases": len(scores), "mean_dice": round(summary["mean_dice"], 4),
        **{name: round(facts["mean"], 4) for name, facts in summary["labels"].items()},
    }  # fmt: skip
    print(row, flush=True)
    path = HERE / "attach.csv"
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def prepare(
    network: nn.Module, head: str, classes: int, recipe: Recipe
) -> tuple[nn.Module, list[dict[str, Any]], Step, Callable[[Tensor], HeadOutput]]:
    """The model, its parameter groups, its loss on a batch, and what the sliding window asks for."""
    rate = recipe.train.optimizer.lr
    if head == "own":
        criterion = DiceCELoss(to_onehot_y=True, softmax=True)

        def own_loss(image: Tensor, labels: Tensor) -> Tensor:
            output = network(image)
            outputs = output.unbind(1) if output.ndim == 6 else [output]  # DynUNet's deep supervision, at full size
            weights = [0.5**i for i in range(len(outputs))]
            terms = [w * criterion(x, labels.unsqueeze(1)) for w, x in zip(weights, outputs, strict=True)]
            return sum(terms, torch.zeros(())) / sum(weights)

        groups = [{"params": list(network.parameters()), "lr": rate}]
        return network, groups, own_loss, lambda image: HeadOutput([StageOutput(logits=network(image))])
    model = zoo.attach_head(network, HEAD, num_classes=classes, spacing=recipe.data.spacing)
    criterion = SetCriterion(num_classes=classes)
    rates = {"cnn": rate, "transformer": rate * recipe.train.optimizer.transformer_scale}
    groups = [{"params": parameters, "lr": rates[name]} for name, parameters in model.parameter_groups().items()]
    return model, groups, lambda image, labels: criterion(model(image), labels)[0], model


if __name__ == "__main__":
    main()
