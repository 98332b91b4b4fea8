"""One table of an ablation that was run in several goes, from the Dice of every case that `ablate` writes.

    python docs/benchmarks/cases.py confirmed_headneck_cases.csv --baseline pointwise

Files are put together: a row's seeds are those that have a score of every case that any row has. Differences are those
of `ablate`, over cases and training runs, corrected by Holm over the rows.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from statistics import fmean

from maskmed_zoo.comparison.differences import difference_row, with_holm
from maskmed_zoo.comparison.numbers import interval, number, p_value
from maskmed_zoo.evaluation.metrics import DEFAULT, metrics
from maskmed_zoo.evaluation.statistics.sample import Scores, spread


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="CASES.csv")
    parser.add_argument("--baseline", required=True, metavar="ROW")
    parser.add_argument("--label", metavar="NAME", help="of this label alone")
    args = parser.parse_args()
    scores = scores_of(args.files, "mean_dice" if args.label is None else f"dice/{args.label}")
    if args.baseline not in scores:
        raise SystemExit(f"--baseline {args.baseline}: no such row; there are {', '.join(scores)}")
    print(table(scores, args.baseline))


def scores_of(files: list[Path], column: str) -> dict[str, list[Scores]]:
    """Scores by case of every row and seed that has them all."""
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for path in files:
        with path.open(newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                if column not in line:
                    raise SystemExit(f"{path}: no column {column}; there are {', '.join(line)}")
                case, value = line["case"], float(line[column]) if line[column] else None
                runs = found.setdefault(line["row"], {}).setdefault(line["seed"], {})
                if runs.setdefault(case, value) != value:
                    raise SystemExit(f"{path}: row '{line['row']}', seed {line['seed']}: two scores of case '{case}'")
    cases = {case for runs in found.values() for scores in runs.values() for case in scores}
    whole = {row: [scores for scores in runs.values() if scores.keys() == cases] for row, runs in found.items()}
    if not all(whole.values()):
        missing = ", ".join(row for row, runs in whole.items() if not runs)
        raise SystemExit(
            f"rows {missing}: no seed has all {len(cases)} cases of these files; give files of the same folds"
        )
    return whole


def table(scores: dict[str, list[Scores]], baseline: str) -> str:
    """Markdown."""
    names = [row for row in scores if row != baseline]
    rows = with_holm([difference_row((row, baseline), None, scores, metrics()[DEFAULT], {}) for row in names])
    differences = dict(zip(names, rows, strict=True))
    lines = ["| row | Dice ± spread over seeds (seeds) | difference (95 %) | p over cases and seeds, Holm |"]
    lines.append("|---|---:|---:|---:|")
    for row in (baseline, *names):
        dice = [fmean(value for value in run.values() if value is not None) for run in scores[row]]
        around = spread(dice)
        text = f"{number(fmean(dice))}{'' if around is None else f' ± {number(around)}'} ({len(dice)})"
        tail = _of(differences[row]) if row in differences else " | "
        lines.append(f"| {row} | {text} | {tail} |")
    return "\n".join(lines)


def _of(difference: dict[str, object]) -> str:
    ends = difference["interval"]
    around = "" if ends is None else f" ({interval(ends, sign='+')})"
    return f"{number(difference['mean'], sign='+')}{around} | {p_value(difference['p_methods_holm'])}"


if __name__ == "__main__":
    main()
