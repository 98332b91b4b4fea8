"""Train and score every row of a grid with every seed, and compare the rows with one of them, case by case.

Finished cells are never repeated and interrupted ones are resumed, so the command may be given again, or several times
at once to share the cells.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from maskmed_zoo.ablation.ablate import ablate
from maskmed_zoo.ablation.plan import Ablation, plan
from maskmed_zoo.ablation.tables import COLUMNS, caption
from maskmed_zoo.cli.output import add_device, add_set, render
from maskmed_zoo.errors import ZooError
from maskmed_zoo.runner.display import Display


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    parser.add_argument("grid", metavar="GRID", help="a built-in grid's name, for example table4, or a path (.yaml)")
    parser.add_argument(
        "--data", action="append", required=True, metavar="DIR", help="nnU-Net folder, as for 'train'; repeatable"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="tables here, runs in DIR/cells")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 0 … N-1 of every row (default: 1)")
    parser.add_argument("--fold", type=int, default=0, metavar="N", help="fold to validate on (default: 0)")
    parser.add_argument("--recipe", metavar="R", help="instead of the grid's base recipe, for example one of CPU size")
    add_set(parser)
    add_device(parser)
    parser.add_argument("--dry-run", action="store_true", help="check everything, list the cells and their state")


def run(args: argparse.Namespace) -> None:
    """Work through the cells and print the table."""
    ablation = plan(
        args.grid,
        data=args.data,
        out=args.out,
        seeds=args.seeds,
        fold=args.fold,
        recipe=args.recipe,
        overrides=args.overrides,
        device=args.device,
    )
    if args.dry_run:
        render(_cells(ablation))
        return
    if sys.stdout.isatty():
        with Live(console=Console(markup=False), auto_refresh=False) as live:
            summary = ablate(
                ablation, display=Display(live.console), show=lambda s: live.update(_table(s), refresh=True)
            )
    else:
        summary = ablate(ablation)
        render(_table(summary))
    failed = [cell for cell in summary["incomplete"] if cell["state"].startswith("failed")]
    if failed:
        raise ZooError("\n".join(f"row '{cell['row']}', seed {cell['seed']}: {cell['state']}" for cell in failed))


def _cells(ablation: Ablation) -> Table:
    table = Table("cell", "row", "seed", "state", box=None)
    for cell in ablation.cells:
        table.add_row(cell.run.path.name, cell.row, str(cell.seed), cell.state())
    return table


def _table(summary: dict[str, Any]) -> Table:
    table = Table(title=caption(summary))
    for heading in COLUMNS:
        table.add_column(heading, justify="left" if heading == "row" else "right")
    for row in summary["rows"]:
        table.add_row(*(text(row) for text in COLUMNS.values()))
    return table
