"""Train a recipe on one fold of an nnU-Net data folder, then score its validation cases.

With --folds, RUN is a study: the folder of one run per fold, each trained and scored in a process of its own, and of
the scores of all their cases together. Finished folds are never repeated and interrupted ones are resumed, so the
command may be given again, or several times at once to share the folds. The exit code is 1 if a fold failed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from maskmed_zoo.cli.output import add_device, add_recipe, render


def configure(parser: argparse.ArgumentParser) -> None:
    """The recipe, the data sets, the run's folder, the fold, and what may differ from run to run."""
    add_recipe(parser)
    parser.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="DIR",
        help="nnU-Net raw folder, the one that holds dataset.json; repeatable: labels of several are merged by name; "
        "DIR@all: all cases of that data set train, none validates",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="RUN",
        help="folder of the run, made new; preprocessed cases go to .maskmed_cache beside it",
    )
    parser.add_argument("--fold", type=int, metavar="N", help="fold to validate on (default: 0)")
    parser.add_argument("--folds", metavar="LIST", help="several folds, as 0-4 or 0,2,4: RUN is then a study of them")
    parser.add_argument("--seed", type=int, metavar="N", help="instead of the recipe's train.seed")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that prepare patches; which ones are drawn does not depend on it (default: 0 on the CPU, else "
        "up to eight)",
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in RUN after its last whole epoch")
    parser.add_argument(
        "--tensorboard", action="store_true", help="also write events for TensorBoard to RUN/tensorboard (extra 'tb')"
    )
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    """Train and evaluate; of several processes, rank 0 prints."""
    if args.folds is not None:
        _study(args)
        return
    from maskmed_zoo import distributed

    with distributed.one_voice():
        _run(args, is_first=distributed.is_first())


def _run(args: argparse.Namespace, *, is_first: bool) -> None:
    from maskmed_zoo.evaluation.table import tables
    from maskmed_zoo.recipe import load_recipe
    from maskmed_zoo.runner.evaluate import evaluate
    from maskmed_zoo.runner.tensorboard import TensorBoard
    from maskmed_zoo.runner.train import train

    folder = train(
        load_recipe(args.recipe, _overrides(args)),
        data=args.data,
        out=args.out,
        fold=args.fold or 0,
        device=args.device,
        workers=args.workers,
        resume=args.resume,
        callbacks=[TensorBoard()] if args.tensorboard else [],
    )
    result = evaluate(folder, data=args.data, device=args.device)
    if is_first:
        render(*tables(result))


def _study(args: argparse.Namespace) -> None:
    """Train and evaluate the folds, and all their cases together."""
    from maskmed_zoo.errors import ArgumentError
    from maskmed_zoo.evaluation.table import tables
    from maskmed_zoo.recipe import load_recipe
    from maskmed_zoo.runner.study import check_failures, train_study

    if args.fold is not None or args.resume:
        raise ArgumentError("train: give no --fold and no --resume beside --folds; a study goes on by itself")
    recipe = load_recipe(args.recipe, _overrides(args))
    summary = train_study(
        recipe, data=args.data, out=args.out, folds=args.folds, device=args.device, workers=args.workers
    )
    left = [f"fold {fold['fold']} is not in the scores: {fold['state']}" for fold in summary["incomplete"]]
    render(*(tables(summary["scores"]) if summary["scores"] else []), *left)
    check_failures(summary)


def _overrides(args: argparse.Namespace) -> list[str]:
    return [*args.overrides, *([] if args.seed is None else [f"train.seed={args.seed}"])]
