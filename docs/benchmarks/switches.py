"""What each switch of a training step costs and saves: `Trainer.step` with it beside the plain one, of given recipes.

    python docs/benchmarks/switches.py                      # maskmed_hippocampus_cpu on the CPU; writes switches.csv
    python docs/benchmarks/switches.py --device cuda --recipe maskmed_amos
    python docs/benchmarks/switches.py --switches compile compile+channels_last --rounds 3 --no-csv

Needs no data set: images are noise around boxes, one for each label. Every switch is measured in processes of its own.
In the first, the plain trainer and the one with the switch take turns, one step each, so that other work on the machine
weighs on both; the ratio is the median over rounds of the ratios within a round, of CPU-seconds on the CPU and of wall
seconds on CUDA. Seconds of the first step beyond a later one are those of compiling, of timing algorithms and the like.
Gradients of both from the same weights and batch are compared as the largest difference of a number over the largest
gradient. In two further processes the highest memory of a step is measured, plain and switched: on the CPU what is
resident beyond what was there before, weights and the optimizer's state, on CUDA all that PyTorch has allocated.
Names joined by + are switched on together.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from measure import Row, machine, peak, write
from torch import Tensor

from maskmed_zoo.errors import first_line
from maskmed_zoo.recipe import Recipe, load_recipe
from maskmed_zoo.runner.switches import cudnn_benchmark
from maskmed_zoo.runner.trainer import Trainer

FOLDER = Path(__file__).resolve().parent
PLAIN = ["train.amp=off", "train.optimizer.fused=auto"]
SWITCHES: dict[str, list[str]] = {
    "bf16": ["train.amp=bf16"],
    "channels_last": ["train.channels_last=true"],
    "compile": ["train.compile=true"],
    "checkpointing_encoder": ["train.checkpointing=[encoder]"],
    "checkpointing_decoder": ["train.checkpointing=[decoder]"],
    "checkpointing": ["train.checkpointing=[encoder, neck, decoder, head]"],
    "accumulate": ["train.accumulate=2"],
    "ema": ["train.ema=0.999"],
    "fused": ["train.optimizer.fused=on"],
    "not_fused": ["train.optimizer.fused=off"],
    "cudnn_benchmark": ["train.cudnn_benchmark=true"],
}
BY_DEVICE = {"cpu": {"fused", "cudnn_benchmark"}, "cuda": set[str]()}
"""Switches that change nothing there."""


def recipe_of(name: str, switch: str, settings: Sequence[str]) -> Recipe:
    """The recipe with a switch, or several joined by +; "plain": none."""
    chosen = [] if switch == "plain" else [line for one in switch.split("+") for line in SWITCHES[one]]
    return load_recipe(name, [*PLAIN, *settings, *chosen])


def batch_of(recipe: Recipe, device: torch.device) -> dict[str, Tensor]:
    """Noise (b c d h w), brighter in a box for each label, a third of the patch along each side."""
    generator, patch = torch.Generator().manual_seed(0), recipe.data.patch_size
    labels = torch.zeros(recipe.train.batch_size, *patch, dtype=torch.int64)
    for sample in labels:
        for label in range(1, len(recipe.labels.names)):
            start = [int(torch.randint(n - n // 3, (), generator=generator)) for n in patch]
            z, y, x = (slice(s, s + n // 3) for s, n in zip(start, patch, strict=True))
            sample[z, y, x] = label
    noise = torch.randn(len(labels), len(recipe.channels), *patch, generator=generator)
    batch = {"image": noise + labels[:, None], "labels": labels}
    return {name: x.pin_memory() if device.type == "cuda" else x for name, x in batch.items()}


def stepper(recipe: Recipe, device: torch.device) -> tuple[Trainer, Callable[[], object]]:
    """A trainer and one step of it."""
    trainer, batch = Trainer(recipe, device), batch_of(recipe, device)

    def step() -> None:
        with cudnn_benchmark(recipe.train, device):
            trainer.step(**batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return trainer, step


def seconds(step: Callable[[], object], device: torch.device) -> float:
    """Of a step: the process's on the CPU, wall seconds elsewhere."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    step()
    return clock() - start


def times(plain: Recipe, switched: Recipe, device: torch.device, rounds: int) -> Row:
    """Both in turn, and how far their first gradients are apart."""
    (one, plain_step), (other, step) = stepper(plain, device), stepper(switched, device)
    batch = batch_of(plain, device)
    loss, gradients = first_gradients(one, batch)
    start = time.perf_counter()
    other_loss, others = first_gradients(other, batch)
    first = time.perf_counter() - start
    plain_step()
    start = time.perf_counter()
    step()
    first += time.perf_counter() - start
    taken = [(seconds(plain_step, device), seconds(step, device)) for _ in range(rounds)]
    start = time.perf_counter()
    step()
    later = time.perf_counter() - start
    plain_seconds, switched_seconds = (statistics.median(values) for values in zip(*taken, strict=True))
    ratios = [b / a for a, b in taken]
    largest = max(float(g.abs().max()) for g in gradients)
    apart = max(float((a - b).abs().max()) for a, b in zip(gradients, others, strict=True))
    return {
        "plain_seconds": round(plain_seconds, 4),
        "seconds": round(switched_seconds, 4),
        "time_ratio": round(statistics.median(ratios), 3),
        "time_ratio_min": round(min(ratios), 3),
        "time_ratio_max": round(max(ratios), 3),
        "first_seconds": round(max(0.0, first - 2 * later), 1),
        "loss_difference": f"{abs(loss - other_loss) / abs(loss):.1e}",
        "gradient_difference": f"{apart / largest:.1e}",
    }


def first_gradients(trainer: Trainer, batch: dict[str, Tensor]) -> tuple[float, list[Tensor]]:
    """Loss and gradients before the first step."""
    trainer.model.train()
    values = trainer.gradients(**batch)
    return float(values["loss"]), [p.grad.float().clone() for p in trainer.model.parameters() if p.grad is not None]


def memory(recipe: Recipe, device: torch.device) -> float:
    """MB at the highest in a step after the first."""
    trainer, step = stepper(recipe, device)
    for _ in range(2):
        step()
    trainer.optimizer.zero_grad(set_to_none=True)
    if device.type != "cuda":
        return peak(step)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return torch.cuda.max_memory_allocated(device) / 1e6


def in_child(limit: float, words: Sequence[str]) -> Any:
    """What a process of its own prints in its last line; `SystemExit` with its last line of error if it fails."""
    try:
        command = [sys.executable, __file__, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired as error:
        raise SystemExit(f"took more than {limit:.0f} s") from error
    if done.returncode:
        raise SystemExit((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def child(arguments: argparse.Namespace) -> None:
    """`time` or `memory` of a switch."""
    device, (name,) = torch.device(arguments.device), arguments.recipe
    recipe = recipe_of(name, arguments.switches[0], arguments.set)
    if arguments.child == "memory":
        print(json.dumps(memory(recipe, device)))
    else:
        print(json.dumps(times(recipe_of(name, "plain", arguments.set), recipe, device, arguments.rounds)))


def row_of(arguments: argparse.Namespace, name: str, switch: str, plain_mb: float) -> Row:
    """Everything about a switch."""
    words = ["--device", arguments.device, "--recipe", name, "--threads", str(arguments.threads)]
    words += ["--rounds", str(arguments.rounds), "--set", *arguments.set]
    recipe = recipe_of(name, switch, arguments.set)
    found: Row = in_child(arguments.limit, [*words, "--child", "time", "--switches", switch])
    mb = in_child(arguments.limit, [*words, "--child", "memory", "--switches", switch])
    return {
        "recipe": name,
        "device": arguments.device if arguments.device == "cpu" else torch.cuda.get_device_name(),
        "patch": "x".join(map(str, recipe.data.patch_size)),
        "batch": recipe.train.batch_size,
        "settings": " ".join(arguments.set),
        "switch": switch,
        "rounds": arguments.rounds,
        **found,
        "plain_mb": round(plain_mb),
        "mb": round(mb),
        "memory_ratio": round(mb / plain_mb, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", nargs="+", help="default: maskmed_hippocampus_cpu, on CUDA maskmed_amos")
    parser.add_argument("--switches", nargs="+", help=f"of {', '.join(SWITCHES)}; joined by + together; default: each")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="for the plain step too")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=float, default=1800, help="seconds for each process")
    parser.add_argument("--csv", type=Path, default=FOLDER / "switches.csv")
    parser.add_argument("--no-csv", action="store_true", help="print only")
    parser.add_argument("--child", choices=["time", "memory"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.recipe = arguments.recipe or ["maskmed_amos" if arguments.device == "cuda" else "maskmed_hippocampus_cpu"]
    if arguments.child:
        child(arguments)
        return
    rows: list[Row] = []
    for name in arguments.recipe:
        words = ["--device", arguments.device, "--recipe", name, "--threads", str(arguments.threads)]
        words += ["--set", *arguments.set, "--child", "memory", "--switches", "plain"]
        plain_mb = in_child(arguments.limit, words)
        for switch in arguments.switches or [s for s in SWITCHES if s not in BY_DEVICE[arguments.device]]:
            try:
                row = row_of(arguments, name, switch, plain_mb)
            except (Exception, SystemExit) as error:  # of this switch alone
                print(f"{name} {switch}: {first_line(error)}", flush=True)
                continue
            rows.append(row | machine())
            print(
                f"{name} {switch:22} {row['seconds']:8.3f} s, x {row['time_ratio']:.3f} "
                f"({row['time_ratio_min']:.3f} to {row['time_ratio_max']:.3f}), {row['mb']} MB, "
                f"x {row['memory_ratio']:.3f}, first {row['first_seconds']} s, loss {row['loss_difference']}, "
                f"gradients {row['gradient_difference']}",
                flush=True,
            )
            if not arguments.no_csv:
                write(arguments.csv, rows)


if __name__ == "__main__":
    main()
