"""Data sets: check one, every case of it, before anything is trained on it."""

from __future__ import annotations

import argparse
from pathlib import Path

from maskmed_zoo.cli.output import add_json, render, write, write_json

CHECK = (
    "Read every case of a data set and list every problem in one table: files that are missing or damaged, grids that "
    "differ, wrong label values, NaN, duplicates, outliers. Exit code 0: nothing found; 1: something; 2: no data set"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """The action `check`, with the folder and how many read it."""
    action = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    what = "list every problem of a data set"
    checking = action.add_parser("check", allow_abbrev=False, help=what, description=CHECK)
    checking.add_argument("data", metavar="DIR", type=Path, help="nnU-Net raw folder, the one that holds dataset.json")
    checking.add_argument(
        "--workers", type=int, metavar="N", help="cases read at a time, each in memory (default: cores, up to 8)"
    )
    add_json(checking)


def run(args: argparse.Namespace) -> None:
    """Print what was found; raises `FoundError` after that if it is anything."""
    from maskmed_zoo.data.check.check import check_data
    from maskmed_zoo.data.check.table import finding_table, summary
    from maskmed_zoo.errors import FoundError
    from maskmed_zoo.runner.display import Display

    display = Display()
    with display.task(f"checking cases of {args.data}") as progress:
        findings = check_data(args.data, workers=args.workers, progress=progress, say=display.say)
    if args.json:
        write_json([finding.to_dict() for finding in findings])
    elif findings:
        render(finding_table(findings))
    else:
        write(f"{args.data}: nothing found")
    if findings:
        raise FoundError(f"{args.data}: {summary(findings)}")
