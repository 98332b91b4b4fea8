"""Training patches per second of two processes as one run, against two independent runs, a core each.

The one run divides its batch among the processes; each of the independent ones has half a batch of its own. Processes
are bound to their core and have one thread. Both ways are measured in turn, several rounds; the figures are medians
over all epochs but the first of each run. Wants a machine on which nothing else runs.

    python docs/benchmarks/processes.py --data Dataset004_Hippocampus --csv docs/benchmarks/processes.csv
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import maskmed_zoo as zoo
from maskmed_zoo.recipe import load_recipe

FIELDS = ("recipe", "batch", "steps", "rounds", "one_run", "two_runs", "ratio", "parameters", "processor", "torch")


def train(recipe: str, data: str, out: str, settings: list[str]) -> None:
    """One process: rank and core are told by LOCAL_RANK."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[int(os.environ["LOCAL_RANK"])]})
    torch.set_num_threads(1)
    zoo.train(load_recipe(recipe, settings), data=data, out=out, device="cpu", workers=0)


def seconds(run: Path) -> list[float]:
    """Of every epoch but the first."""
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [float(row["seconds"]) for row in csv.DictReader(file)][1:]


def measured(args: argparse.Namespace, folder: Path, number: int) -> tuple[float, float]:
    """Patches per second of one run and of two."""
    steps = [f"train.epochs={args.epochs}", f"train.iterations_per_epoch={args.steps}", "train.validation_iterations=0"]
    worker = [str(Path(__file__).resolve()), "--worker", "--recipe", args.recipe, "--data", str(args.data)]
    together = [*worker, "--out", str(folder / f"one_{number}"), "--settings", *steps, f"train.batch_size={args.batch}"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launch, *together], check=True)
    alone = ["--settings", *steps, f"train.batch_size={args.batch // 2}"]
    runs = [folder / f"two_{number}_{core}" for core in range(2)]
    started = [
        subprocess.Popen([sys.executable, *worker, "--out", str(run), *alone], env=os.environ | {"LOCAL_RANK": core})
        for core, run in zip("01", runs, strict=True)
    ]
    codes = [process.wait() for process in started]
    if any(codes):
        raise SystemExit("a run failed")
    one = args.batch * args.steps / statistics.median(seconds(folder / f"one_{number}"))
    two = sum(args.batch // 2 * args.steps / statistics.median(seconds(run)) for run in runs)
    return one, two


def main() -> None:
    """Measure, print and append a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipe", default="maskmed_hippocampus_cpu")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10, help="of an epoch")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    parser.add_argument("--settings", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        train(args.recipe, str(args.data), args.out, args.settings)
        return
    with tempfile.TemporaryDirectory() as folder:
        rounds = [measured(args, Path(folder), number) for number in range(args.rounds)]
    one, two = (statistics.median(values) for values in zip(*rounds, strict=True))
    ratio = statistics.median(a / b for a, b in rounds)
    size = sum(p.numel() for p in zoo.create(args.recipe).parameters())
    row = [args.recipe, args.batch, args.steps * args.epochs, args.rounds, f"{one:.3f}", f"{two:.3f}", f"{ratio:.3f}"]
    row += [size, platform.processor() or platform.machine(), torch.__version__]
    sys.stdout.write(f"{one:.2f} patches a second as one run, {two:.2f} as two: {ratio:.3f}\n")
    if args.csv:
        is_new = not args.csv.exists()
        with args.csv.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(FIELDS)
            writer.writerow(row)


if __name__ == "__main__":
    main()
