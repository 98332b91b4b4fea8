"""Train and score every row of a grid with every seed, and compare the rows with one of them, case by case.

Finished cells are never repeated and interrupted ones are resumed, so the command may be given again, or several times
at once to share the cells. The exit code is 1 if a cell failed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskmed_zoo.cli.output import add_device, add_set, render
from maskmed_zoo.errors import ZooError

if TYPE_CHECKING:
    from rich.table import Table

    from maskmed_zoo.ablation.plan import Ablation


def configure(parser: argparse.ArgumentParser) -> None:
    """The grid, the data sets, where cells and tables go, seeds and folds, and what holds for every row."""
    parser.add_argument("grid", metavar="GRID", help="a built-in grid's name, for example table4, or a path (.yaml)")
    parser.add_argument(
        "--data", action="append", required=True, metavar="DIR", help="nnU-Net raw folder, as for 'train'; repeatable"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="tables go here, runs into DIR/cells")
    parser.add_argument(
        "--row",
        action="append",
        default=[],
        dest="rows",
        metavar="NAME",
        help="this row of the grid and the baseline alone; repeatable",
    )
    parser.add_argument("--baseline", metavar="NAME", help="row to compare the others with, in place of the grid's")
    parser.add_argument(
        "--seeds",
        default="1",
        metavar="N",
        help="seeds 0 … N-1, or a list such as 3-7, of every row, in place of the recipe's (default: %(default)s)",
    )
    parser.add_argument(
        "--folds",
        default="0",
        metavar="LIST",
        help="folds to validate on, as 0-4 or 1,2, a run of each for every seed (default: %(default)s)",
    )
    parser.add_argument(
        "--recipe", metavar="R", help="a name or path, instead of the grid's base recipe, for example one of CPU size"
    )
    add_set(parser, "every row, after its own changes")
    add_device(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, list the cells and whether they are finished, running, failed, unfinished or new; make "
        "nothing",
    )


def run(args: argparse.Namespace) -> None:
    """Work through the cells and print the table."""
    from maskmed_zoo.ablation.ablate import ablate
    from maskmed_zoo.ablation.plan import plan

    ablation = plan(
        args.grid,
        data=args.data,
        out=args.out,
        rows=args.rows,
        baseline=args.baseline,
        seeds=args.seeds,
        folds=args.folds,
        recipe=args.recipe,
        overrides=args.overrides,
        device=args.device,
    )
    if args.dry_run:
        render(_cells(ablation))
        return
    if sys.stdout.isatty():
        from rich.live import Live

        from maskmed_zoo.runner.display import Display, PlainConsole

        with Live(console=PlainConsole(), auto_refresh=False) as live:
            summary = ablate(
                ablation, display=Display(live.console), show=lambda s: live.update(_table(s), refresh=True)
            )
    else:
        summary = ablate(ablation)
        render(_table(summary))
    failed = [cell for cell in summary["incomplete"] if cell["state"].startswith("failed")]
    if failed:
        raise ZooError(
            "\n".join(
                f"row '{cell['row']}', seed {cell['seed']}, fold {cell['fold']}: {cell['state']}" for cell in failed
            )
        )


def _cells(ablation: Ablation) -> Table:
    from rich.table import Table

    table = Table("cell", "row", "seed", "fold", "state", box=None)
    for cell in ablation.cells:
        table.add_row(cell.run.path.name, cell.row, str(cell.seed), str(cell.fold), cell.state())
    return table


def _table(summary: dict[str, Any]) -> Table:
    from rich.table import Table

    from maskmed_zoo.ablation.tables import COLUMNS, caption

    table = Table(title=caption(summary), caption=" ".join(summary["remarks"]) or None)
    for heading in COLUMNS:
        table.add_column(heading, justify="left" if heading == "row" else "right")
    for row in summary["rows"]:
        table.add_row(*(text(row) for text in COLUMNS.values()))
    return table
