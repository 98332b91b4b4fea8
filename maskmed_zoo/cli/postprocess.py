"""Choose post-processing of a run or a study: filled holes, small parts removed, the largest part kept, label by label.

With --thresholds the network computes the probabilities of these cases once more, and thresholds are tried too. Each is
compared with the label maps as predicted, over the validation cases that 'evaluate' left, and kept where it helps;
'predict' then applies what is written to postprocessing.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import maskmed_zoo as zoo
from maskmed_zoo.cli.output import add_device, add_json, add_moved_data, add_weights, render, write_json

if TYPE_CHECKING:
    from rich.table import Table


def configure(parser: argparse.ArgumentParser) -> None:
    """The run or study, where its data are now, which weights, whether thresholds are tried, and what is written."""
    parser.add_argument(
        "run", metavar="RUN", type=Path, help="folder of a run, or of a study, that 'evaluate' has scored"
    )
    add_moved_data(parser)
    add_weights(parser)
    parser.add_argument(
        "--thresholds",
        action="store_true",
        help="try thresholds of probabilities too, label by label; takes as long as 'evaluate'",
    )
    add_device(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the table, and write nothing")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Print what was tried and what is kept."""
    how: dict[str, Any] = {"thresholds": args.thresholds, "device": args.device, "dry_run": args.dry_run}
    found = zoo.postprocess(args.run, data=args.data, weights=args.weights, **how)
    if args.json:
        write_json(found)
        return
    from maskmed_zoo.comparison.numbers import counted

    people = counted(found["patients"], "patient")
    render(
        f"{counted(found['cases'], 'validation case')} of {people}, {found['weights']} weights",
        _table(found["candidates"]),
        f"Dice: {found['definitions']['mean']}. p: {found['definitions']['p']}.",
        *_worth(found),
    )


def _table(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    from maskmed_zoo.comparison.numbers import interval, number, p_value

    table = Table(title="Candidates")
    has_thresholds = any(row["at"] is not None for row in rows)
    numbers = ("change in Dice", *(("of it others",) if has_thresholds else ()), "95 %", "p (Holm)")
    for heading in ("label", "candidate", *numbers, "better, equal, worse", "verdict"):
        table.add_column(heading, justify="right" if heading in numbers else "left")
    for row in rows:
        counts = [row[key] for key in ("better", "equal", "worse")]
        table.add_row(
            row["label"],
            step_name(row),
            number(row["mean"], sign="+"),
            *([number(row["others"], sign="+")] if has_thresholds else []),
            interval(row["interval"], sign="+"),
            p_value(row["p_holm"]),
            "–" if None in counts else ", ".join(map(str, counts)),
            row["verdict"],
        )
    return table


def step_name(row: dict[str, Any]) -> str:
    """As in `remove_small < 12.5 mm³`, `remove_small < 1330 mm³` and `threshold .3`."""
    if row["at"] is not None:
        return f"{row['do']} {row['at']:g}".replace(" 0.", " .")
    if row["below_mm3"] is None:
        return row["do"]
    rounded = float(f"{row['below_mm3']:.3g}")
    return f"{row['do']} < {rounded:g} mm³"


def _worth(found: dict[str, Any]) -> list[str]:
    """What is kept, and what that brings, in sentences."""
    from maskmed_zoo.comparison.numbers import interval, number

    if not found["steps"]:
        return ["Nothing is kept: no candidate is shown to help. 'predict' gives label maps as they are."]
    lines = ["Kept: " + "; ".join(f"{step['label']}: {step_name(step)}" for step in found["steps"]) + "."]
    for key, what in (
        (
            "together",
            "All together change the mean Dice, on the cases that they were chosen on, which is too favourable,",
        ),
        ("cross_fitted", "Chosen on other patients than those it is applied to, the change is"),
    ):
        if change := found[key]:
            by = "by " if key == "together" else ""
            lines.append(f"{what} {by}{number(change['mean'], sign='+')} ({interval(change['interval'], sign='+')}).")
    return lines
