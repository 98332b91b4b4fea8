"""Compare methods on the same cases: differences with intervals and tests, ranks, costs, and in words what follows.

A METHOD is a run or a study that 'evaluate' has scored, a folder of label maps of any tool, which --ref scores, or a
file of 'evaluate --json'. Runs of one method with several seeds are given together, as NAME=RUN,RUN,RUN or as a folder
that holds them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import maskmed_zoo as zoo
from maskmed_zoo.cli.output import add_metrics, names_of, render
from maskmed_zoo.errors import ArgumentError
from maskmed_zoo.files import is_there

if TYPE_CHECKING:
    from rich.console import RenderableType

    from maskmed_zoo.comparison.tables import TextTable


def configure(parser: argparse.ArgumentParser) -> None:
    """The methods, how label maps are scored, what is compared, and where the files go."""
    parser.add_argument(
        "methods",
        metavar="METHOD",
        nargs="+",
        help="[NAME=]PATH[,PATH…]: a run, a study, a folder of runs, one of label maps, or scores (.json); two or more",
    )
    parser.add_argument(
        "--ref", type=Path, metavar="DIR", help="reference label maps; runs too are then scored by their label maps"
    )
    add_metrics(parser, "default: all that every run has scores of")
    parser.add_argument(
        "--metric-settings", type=Path, metavar="FILE", help="with --ref: YAML of what metrics depend on"
    )
    parser.add_argument(
        "--missing-as-missed",
        action="store_true",
        help="count a reference without a prediction as one in which every label was missed; also of scores (.json) "
        "that were made so",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="also write compare.md, compare.tex, compare.json and compare.png here (the picture needs the extra "
        "'report', and is left out without)",
    )
    parser.add_argument("--by-label", action="store_true", help="also print the tables by label")


def run(args: argparse.Namespace) -> None:
    """Print tables and words, and write the files."""
    from maskmed_zoo.comparison.picture import PICTURE
    from maskmed_zoo.comparison.report import data_line
    from maskmed_zoo.comparison.tables import cost_table, tables_of

    comparison = zoo.compare(
        _methods(args.methods),
        ref=args.ref,
        metrics=names_of(args.metrics),
        metric_settings=args.metric_settings,
        missing_as_missed=args.missing_as_missed,
        out=args.out,
    )
    shown: list[RenderableType] = [data_line(comparison)]
    for name, tables in tables_of(comparison, labels=args.by_label).items():
        metric = comparison["metrics"][name]
        shown += [_table(table) for table in tables]
        shown += [f"{metric['rules']}\n", *_words(metric["words"])]
    costs = cost_table(comparison)
    render(*shown, *([] if costs is None else [_table(costs)]), *(f"Note: {note}" for note in comparison["notes"]))
    if args.out and not is_there(args.out / PICTURE):
        render('No picture, which needs matplotlib: pip install "maskmed-zoo[report]"')


def _methods(texts: list[str]) -> dict[str, list[str]]:
    """`[NAME=]PATH[,PATH…]` by name; what exists as it stands is one path, whatever its name holds."""
    from maskmed_zoo.comparison.methods import name_of

    methods: dict[str, list[str]] = {}
    for text in texts:
        is_named = "=" in text and not is_there(Path(text))
        name, _, rest = text.partition("=") if is_named else ("", "", text)
        paths = [rest] if is_there(Path(rest)) and rest else [path for path in rest.split(",") if path]
        if not paths or (is_named and not name):
            raise ArgumentError(f"'{text}': expected [NAME=]PATH[,PATH…]")
        name = name or name_of(Path(paths[0]))
        if name in methods:
            raise ArgumentError(f"two methods are called '{name}'; give them names of their own, as in a={paths[0]}")
        methods[name] = paths
    return methods


def _table(table: TextTable) -> RenderableType:
    from rich.table import Table

    shown = Table(title=table.title)
    for index, heading in enumerate(table.headings):
        shown.add_column(heading, justify="left" if index < table.words else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*row)
    return shown


def _words(words: list[dict[str, Any]]) -> list[str]:
    lines: list[str] = []
    for pair in words:
        lines += [f"Follows: {line}" for line in pair["follows"]]
        lines += [f"Does not follow: {line}" for line in pair["does_not_follow"]]
        lines[-1] += "\n"
    return lines
