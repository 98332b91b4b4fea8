"""Score a run on its validation cases, or a folder of label maps against references: a table of Dice per label.

Give either RUN, whose validation cases are then predicted and whose evaluation.json is written, or --pred and --ref. Of
a study the cases of all folds are scored together.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import maskmed_zoo as zoo
from maskmed_zoo.cli.output import add_device, add_metrics, add_moved_data, add_weights, names_of, render
from maskmed_zoo.errors import ArgumentError, OutputError
from maskmed_zoo.files import is_file, usable, write_json


def configure(parser: argparse.ArgumentParser) -> None:
    """A run, its weights and where its data are now; or two folders; and a file for the scores."""
    parser.add_argument("run", metavar="RUN", type=Path, nargs="?", help="folder of a trained run, or of a study")
    parser.add_argument("--pred", type=Path, metavar="DIR", help="label maps to score, with --ref")
    parser.add_argument("--ref", type=Path, metavar="DIR", help="reference label maps of the same names")
    add_moved_data(parser)
    add_metrics(parser)
    parser.add_argument(
        "--metric-settings",
        type=Path,
        metavar="FILE",
        help="YAML of what metrics depend on, such as 'tolerance: 2.0' (default: that of the run's recipe)",
    )
    parser.add_argument(
        "--missing-as-missed",
        action="store_true",
        help="count a reference without a prediction as one in which every label was missed, instead of refusing it",
    )
    parser.add_argument(
        "--pictures",
        type=Path,
        metavar="DIR",
        help="with --pred: draw the worst, median and best case there, evaluation.png; a run has it in its folder",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the scores to FILE, as JSON")
    parser.add_argument(
        "--csv", type=Path, metavar="FILE", help="also write every case's scores to FILE, a row per label and metric"
    )
    add_weights(parser)
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    """Print the table; a run also gets its predictions/, evaluation.json and evaluation.csv. Of several processes, all
    predict and score a run, and rank 0 does the rest."""
    if args.run is None:
        _run(args, is_first=True)
        return
    from maskmed_zoo import distributed

    with distributed.one_voice():
        _run(args, is_first=distributed.is_first())


def _run(args: argparse.Namespace, *, is_first: bool) -> None:
    from maskmed_zoo.evaluation.case_table import is_case_table, write_cases
    from maskmed_zoo.evaluation.table import tables
    from maskmed_zoo.evaluation.written import read_summary
    from maskmed_zoo.runner.display import Display

    if args.json and usable(args.json).exists() and read_summary(args.json) is None:
        raise OutputError(f"{args.json}: exists and holds no scores, so it is not replaced; give another file")
    if args.csv and is_file(usable(args.csv)) and not is_case_table(args.csv):
        raise OutputError(f"{args.csv}: exists and holds no scores of cases, so it is not replaced; give another file")
    folders = args.pred is not None or args.ref is not None
    if folders == (args.run is not None) or (args.pred is None) != (args.ref is None):
        raise ArgumentError("evaluate: give either RUN, or --pred DIR and --ref DIR")
    result = zoo.evaluate(
        args.run,
        pred=args.pred,
        ref=args.ref,
        metrics=names_of(args.metrics),
        metric_settings=args.metric_settings,
        missing_as_missed=args.missing_as_missed,
        pictures=args.pictures,
        data=args.data,
        weights=None if folders else args.weights,
        device=None if folders else args.device,
    )
    if not is_first:
        return
    if args.json:
        write_json(args.json, result)
    if args.csv:
        write_cases(result, args.csv)
    render(*tables(result))
    for key, what in (
        ("unpredicted", f"counted as missed, without a prediction in {args.pred}"),
        ("unreferenced", f"left out, without a reference in {args.ref}"),
    ):
        if names := result.get(key):
            more = ", …" if len(names) > 3 else ""
            Display().say(f"{what}: {len(names)} ({', '.join(names[:3])}{more})")
