"""The results of an ablation: one summary, and the same as JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from maskmed_zoo.ablation.cell import Cell
from maskmed_zoo.ablation.plan import Ablation
from maskmed_zoo.comparison.differences import difference_row, with_holm
from maskmed_zoo.comparison.numbers import interval, number, p_value
from maskmed_zoo.evaluation.aggregate import definition, headline_by_case, patients_of
from maskmed_zoo.evaluation.mean import mean
from maskmed_zoo.evaluation.metrics import DEFAULT, metrics
from maskmed_zoo.evaluation.statistics.coverage import level_warning, told_apart
from maskmed_zoo.evaluation.statistics.sample import spread
from maskmed_zoo.files import write_atomically
from maskmed_zoo.runner.manifest import now

Finished = tuple[Cell, dict[str, Any]]
"""A cell and its scores."""
DEFINITIONS = {
    "seeds": "seeds whose run is trained to the end and scored, on every fold",
    "dice": "mean_dice of each seed; null where no case has a score",
    "mean_dice": f"mean over seeds of each run's mean_dice, of its last weights; with several folds the runs of a "
    "seed count as one, with the cases of all. In a run: "
    f"{definition(metrics()[DEFAULT])}",
    "sd_over_seeds": "sample standard deviation of mean_dice over seeds; null for one seed",
    "difference.mean": "row minus baseline, mean over the cases that both have scores for, each case averaged over "
    "seeds",
    "difference.interval": "95 % interval of the difference: over other cases where a side has one seed, over other "
    "cases and other training runs where both have several; null for one case",
    "difference.p": "two-sided Wilcoxon signed-rank test over those cases; it speaks about other cases, not other "
    "seeds; p_holm is corrected by Holm for the number of rows",
    "difference.p_mean": "Student's t test of the mean difference over those cases; p_mean_holm is corrected by Holm "
    "for the number of rows",
    "difference.p_methods": "test of the difference over cases and training runs; null where a side has one seed; "
    "p_methods_holm is corrected by Holm for the number of rows",
    "difference.sd_over_seeds": "sample standard deviation of the difference between one run of each; null where a "
    "side has one seed",
    "difference.interval_warning": "where intervals over so many cases hold less than they say",
    "difference.seeds": "of the row and of the baseline",
    "paper": "mean Dice that the paper states; single runs on a data set that its ablations do not name",
    "parameters": "numbers in the network",
    "macs": "multiply-accumulate operations of one forward pass of one patch, as 'maskmed-zoo build' counts them",
    "seconds_per_step": "wall-clock seconds of an epoch over its optimiser steps, loading of patches included; median "
    "over all seeds' epochs but each first, of those without validation where there are any",
    "cpu_seconds_per_step": "the same for processor seconds of the training process; loader processes not counted",
    "peak_memory_bytes": "of the process that trained, before it predicted, largest over sessions and seeds; memory "
    "'cuda': allocated for tensors on the card; 'resident': main memory, mapped files counted, loader processes not",
}


def summarize_ablation(ablation: Ablation) -> dict[str, Any]:
    """All results there are by now, what they mean and what they were made with; JSON-able."""
    finished: dict[str, list[Finished]] = {name: [] for name in ablation.grid.rows}
    missing: list[Cell] = []
    for cell in ablation.cells:
        scores = cell.scores()
        if scores is None:
            missing.append(cell)
        else:
            finished[cell.row].append((cell, scores))
    done = {name: _by_seed(ablation, cells) for name, cells in finished.items()}
    differences = _differences(done, ablation.grid.baseline)
    environments = [cell.run.manifest()["environment"] for cells in finished.values() for cell, _ in cells]
    return {
        "grid": ablation.grid.name,
        "recipe": ablation.recipe,
        "overrides": list(ablation.overrides),
        "datasets": list(ablation.datasets),
        "folds": list(ablation.folds),
        "seeds": list(ablation.seeds),
        "steps": sorted({cell.recipe.train.iterations for cell in ablation.cells}),
        "baseline": ablation.grid.baseline,
        "finished_cells": len(ablation.cells) - len(missing),
        "cells": len(ablation.cells),
        "incomplete": [
            {
                "row": cell.row,
                "seed": cell.seed,
                "fold": cell.fold,
                "run": cell.run.path.name,
                "state": cell.progress(),
            }
            for cell in missing
        ],
        "environments": [e for index, e in enumerate(environments) if e not in environments[:index]],
        "date": now(),
        "definitions": DEFINITIONS,
        "rows": [_row(ablation, name, finished[name], done[name], differences.get(name)) for name in done],
        "remarks": _remarks(differences.values()),
    }


def _by_seed(ablation: Ablation, cells: Sequence[Finished]) -> dict[int, dict[str, Any]]:
    """The cases of all folds together, of the seeds that are finished on every fold."""
    scored: dict[int, dict[str, Any]] = {}
    for seed in ablation.seeds:
        folds = [scores for cell, scores in cells if cell.seed == seed]
        if len(folds) == len(ablation.folds):
            scored[seed] = {"cases": [case for scores in folds for case in scores["cases"]]}
    return scored


def _row(
    ablation: Ablation,
    name: str,
    cells: Sequence[Finished],
    done: Mapping[int, dict[str, Any]],
    difference: dict[str, Any] | None,
) -> dict[str, Any]:
    row, network = ablation.grid.rows[name], ablation.networks[name]
    cells = [(cell, scores) for cell, scores in cells if cell.seed in done]
    dice = [mean(headline_by_case(scores).values()) for scores in done.values()]
    memory = [m for cell, _ in cells if (m := cell.resources()).get("peak_memory_bytes") is not None]
    return {
        "row": name,
        "set": [*ablation.grid.set, *row.set],
        "note": row.note,
        "paper": row.paper,
        "seeds": list(done),
        "runs": [cell.run.path.name for cell, _ in cells],
        "dice": dice,
        "mean_dice": mean(dice),
        "sd_over_seeds": spread([score for score in dice if score is not None]),
        "difference": difference,
        "parameters": network["total_parameters"],
        "macs": network["macs"],
        "seconds_per_step": _per_step(cells, "seconds"),
        "cpu_seconds_per_step": _per_step(cells, "cpu_seconds"),
        "peak_memory_bytes": max((m["peak_memory_bytes"] for m in memory), default=None),
        "memory": ", ".join(sorted({m["memory"] for m in memory})) or None,
    }


def _differences(done: Mapping[str, Mapping[int, dict[str, Any]]], baseline: str) -> dict[str, dict[str, Any]]:
    """To the baseline, of the rows that have cases in common with it; corrected over all of them."""
    scores = {name: [headline_by_case(scores) for scores in runs.values()] for name, runs in done.items()}
    patients = {
        case: patient for runs in done.values() for s in runs.values() for case, patient in patients_of(s).items()
    }
    rows = [
        difference_row((name, baseline), None, scores, metrics()[DEFAULT], patients)
        for name in done
        if name != baseline
    ]
    corrected = with_holm([row for row in rows if row["mean"] is not None])
    return {row["first"]: {key: value for key, value in row.items() if key not in NAMES} for row in corrected}


def _remarks(differences: Iterable[dict[str, Any]]) -> list[str]:
    """What is to be said of intervals that hold less than they say, and of tests of single runs."""
    found: dict[str, None] = {}
    for row in differences:
        if row["interval_warning"]:
            found[row["interval_warning"]] = None
        if min(row["seeds"]) == 1:
            single = f"Where a side has one seed, nothing speaks about other seeds. {told_apart(row['patients'])}"
            found[single.rstrip()] = None
        elif row["p_methods"] is not None and (warning := level_warning(min(row["seeds"]))):
            found[warning] = None
    return [*found]


def _per_step(cells: Sequence[Finished], column: str) -> float | None:
    values: list[float] = []
    for cell, _ in cells:
        epochs = cell.epochs()
        epochs = epochs[1:] or epochs
        plain = [epoch for epoch in epochs if not epoch.get("validation_dice")] or epochs
        seconds = [float(epoch.get(column) or "nan") for epoch in plain]
        values += [s / cell.recipe.train.iterations_per_epoch for s in seconds if math.isfinite(s)]
    return median(values) if values else None


NAMES = ("first", "second", "label")
"""Keys of a difference that a row of the table says already."""
COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "row": lambda r: r["row"],
    "Dice (seeds)": lambda r: f"{number(r['mean_dice'])}{_spread(r)} ({len(r['seeds'])})",
    "difference (95 %)": lambda r: _difference(r["difference"]) if r["difference"] else "",
    "p, Holm (cases, seeds)": lambda r: _p_value(r["difference"]) if r["difference"] else "",
    "p over seeds too": lambda r: p_value(r["difference"]["p_methods_holm"]) if r["difference"] else "",
    "paper": lambda r: "" if r["paper"] is None else f"{r['paper']:.3f}",
    "parameters": lambda r: f"{r['parameters']:,}",
    "GMACs": lambda r: f"{r['macs'] / 1e9:.1f}",
    "s/step": lambda r: _number(r["seconds_per_step"], ".3g"),
    "CPU s/step": lambda r: _number(r["cpu_seconds_per_step"], ".3g"),
    "peak MiB": lambda r: _number(r["peak_memory_bytes"] and r["peak_memory_bytes"] / 2**20, ".0f"),
}
"""Heading to the text of a row, of the table for people."""


def caption(summary: dict[str, Any]) -> str:
    """One line above the table: what, on what, and how much of it is done."""
    state = "" if summary["finished_cells"] == summary["cells"] else "INCOMPLETE, "
    recipe = " ".join([summary["recipe"], *summary["overrides"]])
    folds = f"fold{'s' if len(summary['folds']) > 1 else ''} {', '.join(map(str, summary['folds']))}"
    return (
        f"{summary['grid']}: {recipe} on {', '.join(summary['datasets'])}, "
        f"{folds}; {state}{summary['finished_cells']} of {summary['cells']} cells; differences to "
        f"'{summary['baseline']}'"
    )


IN_CSV = (
    *("mean", "interval", "sd_over_seeds", "p", "p_holm", "p_methods", "p_methods_holm"),
    *("better", "equal", "worse", "cases", "seeds"),
)
"""Of a difference."""
MADE_WITH = ("maskmed_zoo", "commit", "python", "torch", "device_name", "threads")
"""Of an environment, in the CSV."""


def write_tables(summary: dict[str, Any], out: Path) -> None:
    """`GRID.json`, `GRID.csv` and `GRID.md` in `out`."""
    for ending, write in (("json", _write_json), ("csv", _write_csv), ("md", _write_markdown)):
        write_atomically(out / f"{summary['grid']}.{ending}", lambda path, write=write: write(summary, path))


def write_scores(ablation: Ablation, out: Path) -> None:
    """`GRID_cases.csv` in `out`: Dice of every case, its mean and of every label, of every finished cell."""
    rows = [
        {"row": cell.row, "seed": cell.seed, "fold": cell.fold, "case": case["case"], "mean_dice": case["mean"]}
        | {f"{DEFAULT}/{label}": value for label, value in case[DEFAULT].items()}
        for cell in ablation.cells
        for case in (cell.scores() or {"cases": []})["cases"]
    ]
    columns = [*dict.fromkeys(key for row in rows for key in row)] or ["row", "seed", "fold", "case", "mean_dice"]

    def write(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows({key: _short(value) for key, value in row.items()} for row in rows)

    write_atomically(out / f"{ablation.grid.name}_cases.csv", write)


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def _write_json(summary: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _write_csv(summary: dict[str, Any], path: Path) -> None:
    rows: list[dict[str, Any]] = []
    made = {key: _flat(summary[key]) for key in ("datasets", "folds", "steps", "finished_cells", "cells", "date")}
    made["made_with"] = "; ".join(_versions(environment) for environment in summary["environments"])
    for row in summary["rows"]:
        flat = {key: value for key, value in row.items() if key != "difference"}
        difference = row["difference"] or {}
        flat |= {f"difference_{key}": difference.get(key) for key in IN_CSV}
        rows.append({key: _flat(value) for key, value in flat.items()} | made)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _flat(value: Any) -> Any:
    """A list as text with blanks."""
    return " ".join(map(str, value)) if isinstance(value, list) else value


def _versions(environment: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {environment[name]}" for name in MADE_WITH if name in environment)


def _write_markdown(summary: dict[str, Any], path: Path) -> None:
    lines = [caption(summary), "", f"| {' | '.join(COLUMNS)} |", f"|---|{'---:|' * (len(COLUMNS) - 1)}"]
    for row in summary["rows"]:
        lines.append(f"| {' | '.join(text(row).replace('|', '/') for text in COLUMNS.values())} |")
    notes = [f"{row['row']}: {row['note']}" for row in summary["rows"] if row["note"]]
    lines += ["", *(f"- {note}" for note in [*summary["remarks"], *notes])]
    lines += ["", *(f"- {key}: {meaning}" for key, meaning in summary["definitions"].items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _number(value: float | None, style: str) -> str:
    return "–" if value is None else f"{value:{style}}"


def _difference(difference: dict[str, Any]) -> str:
    ends = difference["interval"]
    around = "" if ends is None else f" ({interval(ends, sign='+')})"
    return f"{number(difference['mean'], sign='+')}{around}"


def _p_value(difference: dict[str, Any]) -> str:
    own, other = difference["seeds"]
    seeds = str(own) if own == other else f"{own} and {other}"
    return f"{p_value(difference['p_holm'])} ({difference['cases']}, {seeds})"


def _spread(values: dict[str, Any]) -> str:
    return "" if values["sd_over_seeds"] is None else f" ± {values['sd_over_seeds']:z.4f}"
