"""The campaign from the command line; see the package's docstring."""

from __future__ import annotations

import argparse
import csv
import platform
import shutil
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from random import Random

from maskmed_zoo.version import __version__
from tests.fuzz.harness import Result, Target, campaign, work
from tests.fuzz.wrong import WRONG


def main() -> int:
    """Run the targets named, or all; 1 if anything came of a case that must not."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="by name (default: all)")
    parser.add_argument("--cases", type=int, help="of each target, instead of its own number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="only this one, in this process, with its traceback")
    parser.add_argument("--csv", type=Path, help="append one row per target")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    chosen = targets(args.targets)
    if args.case is not None:
        place = Path(tempfile.mkdtemp(prefix="fuzz-"))
        (place / "originals").mkdir()
        (place / "case" / "given").mkdir(parents=True)
        original = chosen[0].prepare(place / "originals")
        try:
            chosen[0].attempt(original, Random(f"{args.seed}:{chosen[0].name}:{args.case}"), place / "case")
        finally:
            print(place / "case")
        shutil.rmtree(place)
        return 0
    if args.work:
        first, end = map(int, args.work.split(":"))
        work(chosen[0], args.seed, range(first, end))
        return 0
    results: list[Result] = []
    for kind in chosen:
        start = time.perf_counter()
        result = campaign(kind, args.seed, args.cases or kind.cases)
        results.append(result)
        print(f"{kind.name}: {dict(result.counts)}, {result.peak / 2**20:.0f} MiB, {time.perf_counter() - start:.0f} s")
        print("\n".join(f"  {fault}" for fault in result.faults[:20]), end="\n" if result.faults else "")
        sys.stdout.flush()
        if args.csv:
            append(args.csv, result)
    return int(any(result.faults for result in results))


def targets(names: list[str]) -> list[Target]:
    """Those of the names, or all; the one for testing without the package's libraries."""
    if names == [WRONG.name]:
        return [WRONG]
    from tests.fuzz.targets import TARGETS

    return [TARGETS[name] for name in names or TARGETS]


def append(path: Path, result: Result) -> None:
    """One row: what was tried, what came of it, on which machine."""
    import torch

    counts = result.counts
    row = {
        "date": date.today().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "maskmed_zoo": __version__,
        "target": result.target,
        "seed": result.seed,
        "cases": sum(n for kind, n in counts.items() if kind != "memory"),
        **{kind: counts[kind] for kind in ("read", "refused", "raw", "unfit", "death", "hang", "memory", "leftover")},
        "peak_mib": round(result.peak / 2**20),
    }
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        if is_new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    sys.exit(main())
