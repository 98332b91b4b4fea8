"""Train a recipe on one fold of an nnU-Net data folder, then score its validation cases."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal

from maskmed_zoo.cli.output import add_device, add_recipe, render


def configure(parser: argparse.ArgumentParser) -> None:
    """The recipe, the data sets, the run's folder, the fold, how it starts, and what may differ from run to run."""
    add_recipe(parser, optional=True)
    parser.add_argument(
        "--data",
        action="append",
        metavar="DIR",
        help="nnU-Net raw folder, the one that holds dataset.json; repeatable: labels of several are merged by name; "
        "DIR@all: all cases of that data set train, none validates",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="RUN",
        help="folder of the run, made new; preprocessed cases go to .maskmed_cache beside it",
    )
    parser.add_argument(
        "--fold",
        type=_fold,
        metavar="N",
        help="fold to validate on (default: 0); all: every case trains, none validates",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="instead of the recipe's train.seed")
    parser.add_argument(
        "--init",
        type=Path,
        metavar="SOURCE",
        help="start from weights: a run, an exported folder, nnU-Net's folder of folds or of one, or a file; rows of "
        "labels are matched by name",
    )
    parser.add_argument(
        "--freeze",
        action="append",
        metavar="PART",
        help="encoder, neck, decoder or head: not trained; repeatable, and the same as --set train.freeze=[PART]",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that prepare patches; which ones are drawn does not depend on it (default: 0 on the CPU, else "
        "up to eight)",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        metavar="RUN",
        help="continue a run after its last whole epoch: that in RUN, which knows its recipe, data, fold and device, "
        "or without RUN that in --out",
    )
    parser.add_argument(
        "--extend-to",
        type=int,
        metavar="EPOCHS",
        help="with --resume: train the run for longer than it was planned, until it has so many epochs",
    )
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    """Train and evaluate."""
    from maskmed_zoo.evaluation.table import tables
    from maskmed_zoo.runner.begin import begin
    from maskmed_zoo.runner.evaluate import evaluate

    overrides = [*args.overrides, *([] if args.seed is None else [f"train.seed={args.seed}"])]
    overrides += [] if args.freeze is None else [f"train.freeze=[{', '.join(args.freeze)}]"]
    if isinstance(args.resume, str) and args.out is not None and args.recipe is None:
        args.recipe, args.resume = args.resume, True  # train --resume RECIPE --data … --out RUN
    how: dict[str, Any] = {"workers": args.workers, "init": args.init, "extend_to": args.extend_to}
    folder, device = begin(
        args.recipe,
        overrides,
        data=args.data,
        out=args.out,
        fold=args.fold,
        device=args.device,
        resume=args.resume or False,
        **how,
    )
    if folder.manifest()["validation"]:
        render(*tables(evaluate(folder, data=args.data, device=device)))


def _fold(text: str) -> int | Literal["all"]:
    if text == "all":
        return "all"
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number or 'all', got '{text}'") from None
