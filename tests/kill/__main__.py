"""The campaign from the command line; see the package's docstring."""

from __future__ import annotations

import argparse
import csv
import os
import platform
import shutil
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

from maskmed_zoo.version import __version__
from tests.kill.campaign import KINDS, SkippedError, prepare, short
from tests.kill.harness import Sessions, differences


def main() -> int:
    """Run the kinds named, or all; 1 if a run ended otherwise than the one left alone."""
    parser = argparse.ArgumentParser(prog="python -m tests.kill", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)} (default: all)")
    parser.add_argument("--data", type=Path, help="nnU-Net folder of which a few cases train (default: made up)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--csv", type=Path, help="append a row for every interruption")
    parser.add_argument("--short", action="store_true", help="a few on a run of seconds")
    args = parser.parse_args()
    folder, faults = Path(tempfile.mkdtemp(prefix="kill-")), 0
    if args.short:
        plan, kinds = prepare(folder, args.data, epochs=4, steps=6, save_seconds=0.0), {"short": short}
    else:
        plan, kinds = prepare(folder, args.data), KINDS
    whole = Sessions(folder / "whole", plan.recipe, plan.data)
    start = time.perf_counter()
    whole.finish()
    print(f"left alone: {time.perf_counter() - start:.0f} s, {whole.ended[0].done} steps", flush=True)
    for kind in args.kinds or kinds:
        run = Sessions(folder / kind.replace(" ", "-"), plan.recipe, plan.data)
        start = time.perf_counter()
        try:
            kinds[kind](run, args.seed, plan.steps)
        except SkippedError as reason:
            print(f"{kind}: skipped, {reason}", flush=True)
            continue
        if run.ended[-1].code:
            run.finish()
        other = differences(whole.run, run.run)
        rows = [row_of(run, number, kind, plan.save_seconds, other) for number in range(len(run.ended) - 1)]
        most = max(row["seconds_lost"] for row in rows)
        faults += len(other)
        print(
            f"{kind}: {len(rows)} interruptions, {other or 'no'} differences, at most {most:.2f} s lost, "
            f"{time.perf_counter() - start:.0f} s",
            flush=True,
        )
        if args.csv:
            append(args.csv, rows)
    shutil.rmtree(folder)
    return int(faults > 0)


def row_of(run: Sessions, number: int, kind: str, save_seconds: float, other: list[str]) -> dict[str, Any]:
    """One interruption. What may be lost is the time between two states, and a step that takes longer than the last.

    Where the newest state is damaged, it is twice the time between two.
    """
    ended, (steps, seconds) = run.ended[number], run.lost(number)
    return {
        "date": date.today().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "maskmed_zoo": __version__,
        "kind": kind,
        "how": ended.how,
        "exit_code": ended.code,
        "steps_made": ended.done,
        "steps_lost": steps,
        "seconds_lost": round(seconds, 2),
        "save_seconds": save_seconds,
        "seconds_allowed": round((2 if kind == "damaged" else 1) * save_seconds + run.longest_step(number), 2),
        "differences": "; ".join(other) or "none",
    }


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add rows to a CSV, which is begun where it is not there."""
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
