"""How far sixty training steps lie apart that differ in rounding alone: by processes, pieces and threads.

    python docs/benchmarks/divided.py

A tiny network with a query head is trained for 60 steps of float32 in one process with one thread; in two processes;
in two, one and two again for 20 steps each, every time from the state that was saved; in one with `train.accumulate=2`;
and in one with two threads. The distance of the weights from those of the first is given as a share of the way that
these have gone. Rounding grows in training as it pleases, so this is repeated with other seeds. Writes `divided.csv`
beside this file, a row for each seed, and prints the mean of each, and of its difference to another number of threads
with an interval (95 %, Student's t over seeds).
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import measure
import torch
from scipy import stats
from torch import Tensor

import maskmed_zoo as zoo
from maskmed_zoo import distributed
from maskmed_zoo.runner.trainer import Trainer

HERE = Path(__file__).resolve().parent
RECIPE = {
    "model.encoder": {"kind": "plain_conv", "channels": [4, 8, 8], "blocks": 1},
    "model.neck": {"kind": "fsad", "query_levels": 1, "width": 12, "attention_heads": 2, "points": 2},
    "model.decoder": {"kind": "unet", "blocks": 1},
    "model.head": {"kind": "masked_query", "width": 12, "attention_heads": 2},
    "model.loss": {"kind": "set_criterion"},
    "data.channels": ["MRI"],
    "data.labels": {"background": 0, "left": 1, "right": 2},
    "data.patch_size": [16, 32, 32],
    "data.mirror_axes": [],
    "train.batch_size": 4,
    "train.epochs": 1,
    "train.iterations_per_epoch": 60,
    "train.optimizer": {"kind": "adamw", "lr": 3e-3, "transformer_scale": 0.3},
}
THIRD = 20


def learner(seed: int, **settings: Any) -> Trainer:
    changes = RECIPE | {"train.seed": seed} | {f"train.{name}": value for name, value in settings.items()}
    return Trainer(zoo.load_recipe("maskmed_hippocampus_cpu", changes), torch.device("cpu"))


def trained(trainer: Trainer, first: int, last: int) -> Trainer:
    """After these steps, each on a batch of its own: noise with two boxes, of which every sample has others."""
    seed = trainer.recipe.train.seed
    for step in range(first, last):
        generator = torch.Generator().manual_seed(1000 * seed + step)
        labels = torch.zeros(4, 16, 32, 32, dtype=torch.int64)
        labels[1, 2:9, 6:18, 4:14] = 1
        labels[2, 5:13, 16:28, 16:28] = 2
        labels[2, 2:7, 2:12, 2:12] = 1
        image = 0.5 * torch.randn(4, 1, 16, 32, 32, generator=generator) + labels[:, None]
        mine = slice(distributed.rank(), None, distributed.size())
        if not trainer.step(image[mine], labels[mine]):
            raise SystemExit(f"step {step} was skipped")
    return trainer


def weights(trainer: Trainer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()]).double()


def part(name: str, folder: Path, seeds: int) -> None:
    """One part of the measurement, in as many processes as are started with it."""
    torch.set_num_threads(2 if name == "threads" else 1)
    distributed.join()
    for seed in range(seeds):
        file = folder / f"{seed}_{name}.pt"
        trainer = learner(seed, accumulate=2 if name == "pieces" else 1)
        if name in ("between", "again"):
            before = {"between": "two_state", "again": "between_state"}[name]
            trainer.load_state(torch.load(folder / f"{seed}_{before}.pt", weights_only=True))
        start = weights(trainer)
        trained(trainer, *{"between": (THIRD, 2 * THIRD), "again": (2 * THIRD, 3 * THIRD)}.get(name, (0, THIRD)))
        if name in ("two", "between") and distributed.is_first():
            torch.save(trainer.state(), folder / f"{seed}_{name}_state.pt")
        if name not in ("between", "again"):
            trained(trainer, THIRD, 3 * THIRD)
        if distributed.is_first():
            torch.save((start, weights(trainer)), file)


def main() -> None:
    """Train, compare and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, metavar="N")
    parser.add_argument("--csv", type=Path, default=HERE / "divided.csv", metavar="FILE")
    parser.add_argument("--part", nargs=2, metavar=("NAME", "DIR"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part is not None:
        part(args.part[0], Path(args.part[1]), args.seeds)
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("one", "threads", "pieces", "two", "between", "again"):
            launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
            words = launch if name in ("two", "again") else []
            words = [sys.executable, *words, str(HERE / "divided.py"), "--part", name, folder]
            subprocess.run([*words, "--seeds", str(args.seeds)], check=True)
        for seed in range(args.seeds):
            found = {
                name: torch.load(Path(folder) / f"{seed}_{name}.pt", weights_only=True)
                for name in ("one", "threads", "pieces", "two", "again")
            }
            start, end = found.pop("one")
            names = {"threads": "two_threads", "pieces": "two_pieces", "two": "two_processes", "again": "two_one_two"}
            shares = {names[name]: float((w - end).norm() / (end - start).norm()) for name, (_, w) in found.items()}
            rows.append({"seed": seed} | {name: round(share, 6) for name, share in shares.items()} | measure.machine())
    measure.write(args.csv, rows)
    for name in ("two_threads", "two_pieces", "two_processes", "two_one_two"):
        shares = [row[name] for row in rows]
        more = [row[name] - row["two_threads"] for row in rows]
        half = stats.t.ppf(0.975, len(more) - 1) * stdev(more) / math.sqrt(len(more))
        low, high = fmean(more) - half, fmean(more) + half
        print(f"{name:14} {fmean(shares):.4f}, more than threads by {fmean(more):+.4f} ({low:+.4f} to {high:+.4f})")


if __name__ == "__main__":
    main()
