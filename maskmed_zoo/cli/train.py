"""Train a recipe on one fold of an nnU-Net data folder, then score its validation cases."""

from __future__ import annotations

import argparse
from pathlib import Path

from maskmed_zoo.cli.output import add_device, add_recipe, render
from maskmed_zoo.evaluation.table import tables
from maskmed_zoo.recipe import load_recipe
from maskmed_zoo.runner.evaluate import evaluate
from maskmed_zoo.runner.train import train


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    add_recipe(parser)
    parser.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="DIR",
        help="nnU-Net folder (dataset.json inside); repeatable: labels are merged by name; DIR@all: all of its cases "
        "train, none validates",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run, made new")
    parser.add_argument("--fold", type=int, default=0, metavar="N", help="fold to validate on (default: 0)")
    parser.add_argument("--seed", type=int, metavar="N", help="instead of the recipe's train.seed")
    parser.add_argument("--workers", type=int, metavar="N", help="loader processes (default: 0 on the CPU)")
    parser.add_argument("--resume", action="store_true", help="continue the run in RUN after its last whole epoch")
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    """Train and evaluate."""
    overrides = [*args.overrides, *([] if args.seed is None else [f"train.seed={args.seed}"])]
    folder = train(
        load_recipe(args.recipe, overrides),
        data=args.data,
        out=args.out,
        fold=args.fold,
        device=args.device,
        workers=args.workers,
        resume=args.resume,
    )
    render(*tables(evaluate(folder, data=args.data, device=args.device)))
