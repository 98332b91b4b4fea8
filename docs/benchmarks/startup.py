"""How much processor time passes before anything is done: `--help` of every command, and the network of a recipe.

    python docs/benchmarks/startup.py docs/benchmarks/startup.csv

Each row is the median of several fresh processes. A network is counted from where `import torch` has ended.
"""

from __future__ import annotations

import csv
import resource
import statistics
import subprocess
import sys
from pathlib import Path

from measure import machine

from maskmed_zoo.cli.main import VERBS

REPETITIONS = 5
RECIPES = ("pointwise_hippocampus_cpu", "maskmed_hippocampus_cpu")
CREATE = """
import time, torch
start = time.process_time()
import maskmed_zoo
maskmed_zoo.create({recipe!r})
print(time.process_time() - start)
"""


def main() -> None:
    """Measure and write."""
    rows = [{"what": f"{verb} --help", "cpu_seconds": median_of(lambda v=verb: help_of(v))} for verb in VERBS]
    for recipe in RECIPES:
        seconds = median_of(lambda r=recipe: create(r))
        rows.append({"what": f"zoo.create('{recipe}') above import torch", "cpu_seconds": seconds})
    with Path(sys.argv[1]).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], *machine()])
        writer.writeheader()
        writer.writerows(row | machine() for row in rows)


def median_of(measure) -> str:
    return f"{statistics.median(measure() for _ in range(REPETITIONS)):.3f}"


def help_of(verb: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "maskmed_zoo", verb, "--help"], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def create(recipe: str) -> float:
    code = CREATE.format(recipe=recipe)
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
