"""Train a recipe on one fold of an nnU-Net data folder, then score its validation cases.

With --folds, RUN is a study: the folder of one run per fold, each trained and scored in a process of its own, and of
the scores of all their cases together. Finished folds are never repeated and interrupted ones are resumed, so the
command may be given again, or several times at once to share the folds. The exit code is 1 if a fold failed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal

from maskmed_zoo.cli.output import add_device, add_recipe, render

ALONE = ("fold", "resume", "extend_to", "tensorboard")
"""What is for one run alone."""


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
    parser.add_argument("--folds", metavar="LIST", help="several folds, as 0-4 or 0,2,4: RUN is then a study of them")
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
        help="continue a run from its last state: that in RUN, which knows its recipe, data, fold and device, "
        "or without RUN that in --out",
    )
    parser.add_argument(
        "--extend-to",
        type=int,
        metavar="EPOCHS",
        help="with --resume: train the run for longer than it was planned, until it has so many epochs",
    )
    parser.add_argument(
        "--tensorboard", action="store_true", help="also write events for TensorBoard to RUN/tensorboard (extra 'tb')"
    )
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    """Train and evaluate; of several processes, rank 0 prints."""
    from maskmed_zoo import distributed

    with distributed.one_voice():
        if args.folds is not None:
            _study(args)
        else:
            _run(args, is_first=distributed.is_first())


def _run(args: argparse.Namespace, *, is_first: bool) -> None:
    from maskmed_zoo.evaluation.table import tables
    from maskmed_zoo.runner.begin import begin
    from maskmed_zoo.runner.evaluate import evaluate
    from maskmed_zoo.runner.run_folder import RunFolder
    from maskmed_zoo.runner.tensorboard import TensorBoard

    is_run = isinstance(args.resume, str) and RunFolder(Path(args.resume)).exists()
    if isinstance(args.resume, str) and not is_run and args.out is not None and args.recipe is None:
        args.recipe, args.resume = args.resume, True  # train --resume RECIPE --data … --out RUN
    how: dict[str, Any] = {"workers": args.workers, "init": args.init, "extend_to": args.extend_to}
    folder, data, device = begin(
        args.recipe,
        _overrides(args),
        data=args.data,
        out=args.out,
        fold=args.fold,
        device=args.device,
        resume=args.resume or False,
        callbacks=[TensorBoard()] if args.tensorboard else [],
        **how,
    )
    if not folder.manifest()["validation"]:
        return
    result = evaluate(folder, data=data, device=device)
    if is_first:
        render(*tables(result))


def _study(args: argparse.Namespace) -> None:
    """Train and evaluate the folds, and all their cases together."""
    from maskmed_zoo.evaluation.table import tables
    from maskmed_zoo.runner.begin import begin_study
    from maskmed_zoo.runner.study import check_failures

    summary = begin_study(
        args.recipe,
        _overrides(args),
        data=args.data,
        out=args.out,
        folds=args.folds,
        device=args.device,
        workers=args.workers,
        init=args.init,
        alone={f"--{name.replace('_', '-')}": getattr(args, name) for name in ALONE},
    )
    left = [f"fold {fold['fold']} is not in the scores: {fold['state']}" for fold in summary["incomplete"]]
    render(*(tables(summary["scores"]) if summary["scores"] else []), *left)
    check_failures(summary)


def _overrides(args: argparse.Namespace) -> list[str]:
    seed = [] if args.seed is None else [f"train.seed={args.seed}"]
    frozen = [] if args.freeze is None else [f"train.freeze=[{', '.join(args.freeze)}]"]
    return [*args.overrides, *seed, *frozen]


def _fold(text: str) -> int | Literal["all"]:
    if text == "all":
        return "all"
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number or 'all', got '{text}'") from None
