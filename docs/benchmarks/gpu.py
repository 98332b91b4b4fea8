"""What there is to measure on a machine with one large NVIDIA GPU in ten minutes, the most valuable first.

    python docs/benchmarks/gpu.py --out gpu                                  # all but the training
    python docs/benchmarks/gpu.py --out gpu --data Dataset101_HeadNeckCT     # and 2000 steps on it, if time is left
    python docs/benchmarks/gpu.py --out gpu --device cpu --quick             # all of it in miniature, to try the script

Parts, each in a process of its own with a limit of time, so that one that fails or takes too long ends alone:
the Triton kernels of deformable attention against plain PyTorch in float64; the plain training step of maskmed_amos at
its full patch in bfloat16; the same with each switch of `switches.py`, by what it is likely to be worth; the kernels'
times beside plain PyTorch and stacked `grid_sample`; a training. Every number is appended to `gpu.csv` in the output
folder as it is found, with what became of every part; `gpu.log` has what the processes said.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measure import Row, append, in_turn, machine, medians
from msda import LARGE, QUICK, SMALL, passes, stacked
from switches import memory, recipe_of, times

from maskmed_zoo.data.phantom import make_phantom_dataset
from maskmed_zoo.ops.deformable import deformable_attention

HERE = Path(__file__).resolve()
RECIPE = "maskmed_amos"
SETTINGS = ["train.amp=bf16"]
TINY = [
    *SETTINGS, "data.patch_size=[32, 64, 64]", "model.encoder.channels=[4, 8, 8, 8, 8, 8]",
    *(f"model.{part}.{key}" for part in ("neck", "head") for key in ("width=16", "attention_heads=2")),
]  # fmt: skip
CHECKED = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 3e-3}
"""Types of values, and the largest error of outputs and gradients over the largest number of each."""
FIRST = ["compile", "channels_last", "fused", "cudnn_benchmark", "checkpointing", "compile+channels_last"]
LATER = ["checkpointing_encoder", "checkpointing_decoder", "compile+checkpointing", "accumulate", "ema"]
"""Switches before and after the kernels' times."""


def kernels(device: torch.device, quick: bool) -> Iterator[Row]:
    """Largest errors of the backend that "auto" takes; raises where one is too large."""
    case = replace(QUICK, width=8) if quick else QUICK
    wrong: list[str] = []
    for batch, width, heads in ((1, case.width, 8), (2, 24, 4), (2, 5, 3)):
        for dtype, most in CHECKED.items():
            shaped = replace(case, batch=batch, width=width, heads=heads, dtype=dtype)
            values, shapes, locations, weights = on(device, shaped.inputs())
            locations[0, 0, 0, 0, 0], locations[0, 1, 0, 0, 0, 1] = torch.nan, 1e30
            upper = torch.randn(batch, locations.shape[1], heads, width, device=device).to(values.dtype)
            leaves = [x.detach().requires_grad_() for x in (values, locations, weights)]
            output = deformable_attention(leaves[0], shapes, *leaves[1:])
            found = [output.detach(), *torch.autograd.grad(output, leaves, upper)]
            exact = [x.detach().double().requires_grad_() for x in (values, locations, weights)]
            output = deformable_attention(exact[0], shapes, *exact[1:], backend="torch")
            due = [output.detach(), *torch.autograd.grad(output, exact, upper.double())]
            names = ("output", "grad_values", "grad_locations", "grad_weights")
            for name, a, b in zip(names, found, due, strict=True):
                # Where a sample lies on the border between two voxels, its location has no gradient.
                apart = (a.double() - b).abs().flatten()
                apart = apart.quantile(0.999) if name == "grad_locations" and apart.numel() < 2**24 else apart.max()
                error = float(apart / b.abs().max().clamp_min(1e-12))
                what = f"{dtype}, batch {batch}, width {width}, heads {heads}: {name}"
                yield {"what": what, "measure": "error over the largest", "value": f"{error:.1e}"}
                wrong += [] if error <= most else [f"{what} {error:.1e}"]
    if wrong:
        raise SystemExit(f"wrong: {'; '.join(wrong)}")


def attention(device: torch.device, quick: bool) -> Iterator[Row]:
    """Milliseconds of the kernels beside plain PyTorch."""
    ways = {
        "stacked grid_sample": stacked,
        "torch": lambda v, s, x, w: deformable_attention(v, s, x, w, backend="torch"),
        "auto": deformable_attention,
    }
    for case in [QUICK] if quick else [SMALL, LARGE, replace(LARGE, name="large bfloat16", dtype="bfloat16")]:
        inputs = on(device, case.inputs())
        for name in ("forward", "forward + backward"):
            calls = {way: synchronized(passes(inputs, attend)[name], device) for way, attend in ways.items()}
            for way, milliseconds in medians(in_turn(calls, case.repetitions)).items():
                yield {"what": f"{case.name}, {name}, {way}", "measure": "ms", "value": round(milliseconds, 3)}


def on(device: torch.device, inputs: Sequence[Any]) -> Any:
    """Inputs of a case on a device, the gradient's type among them."""
    return tuple(x.to(device) if isinstance(x, torch.Tensor) else x for x in inputs)


def synchronized(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """A call that returns when the device has finished."""

    def run() -> None:
        kept = call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        del kept

    return run


def step(device: torch.device, quick: bool, switch: str) -> Iterator[Row]:
    """Time and memory of a training step with a switch."""
    settings, rounds = (TINY, 2) if quick else (SETTINGS, 10)
    recipe = recipe_of(RECIPE, switch, settings)
    mb = memory(recipe, device)
    yield {"what": switch, "measure": "peak MB", "value": round(mb)}
    found = times(recipe_of(RECIPE, "plain", settings), recipe, device, rounds)
    yield {"what": switch, "measure": "steps per second", "value": round(1 / found["seconds"], 3)}
    for name in ("time_ratio", "first_seconds", "loss_difference", "gradient_difference"):
        yield {"what": switch, "measure": name, "value": found[name]}


def part_of(arguments: argparse.Namespace) -> None:
    """A part in this process, a number a line."""
    device = torch.device(arguments.device)
    name, _, switch = arguments.part.partition(":")
    rows = {"kernels": kernels, "attention": attention}[name](device, arguments.quick) if not switch else None
    for row in rows or step(device, arguments.quick, switch):
        print(json.dumps(row), flush=True)


def training(arguments: argparse.Namespace, seconds: float) -> Iterator[Row]:
    """The command, and what its steps say; told to stop where time is short, so that its state is saved."""
    recipe, length, data, run = "maskmed_headneck", (8, 250), arguments.data, arguments.out / "run"
    if arguments.quick:
        recipe, length, data = "maskmed_phantom", (1, 4), arguments.out / "phantom"
        make_phantom_dataset(data, cases=4, shape=(32, 32, 32))
    settings = [f"train.epochs={length[0]}", f"train.iterations_per_epoch={length[1]}", "train.validate_every=4"]
    command = [sys.executable, "-m", "maskmed_zoo", "train", recipe, "--data", str(data), "--out", str(run)]
    command += ["--device", arguments.device, *(word for line in settings for word in ("--set", line))]
    with (arguments.out / "gpu.log").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            process.wait(max(1.0, seconds - 30))
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                process.wait(25)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    lines = (run / "steps.jsonl").read_text(encoding="utf-8").splitlines() if (run / "steps.jsonl").exists() else []
    steps = [json.loads(line) for line in lines]
    yield {"what": recipe, "measure": "steps", "value": len(steps)}
    yield {"what": recipe, "measure": "exit code", "value": process.returncode}
    for name in ("loss", "seconds", "data_seconds"):
        values = [row[name] for row in steps[-100:] if name in row]
        if values:
            yield {"what": recipe, "measure": f"{name}, mean of the last 100 steps", "value": sum(values) / len(values)}
    if (run / "metrics.csv").exists():
        yield {"what": recipe, "measure": "metrics.csv", "value": (run / "metrics.csv").read_text(encoding="utf-8")}


def in_child(arguments: argparse.Namespace, part: str, seconds: float) -> tuple[list[Row], str]:
    """The rows that a part wrote, all if it came to its end, and how it ended."""
    command = [sys.executable, str(HERE), "--out", str(arguments.out), "--device", arguments.device, "--part", part]
    command += ["--quick"] if arguments.quick else []
    with (arguments.out / "gpu.log").open("a", encoding="utf-8") as log:
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, timeout=seconds, check=False)
            output, end = done.stdout, "done" if not done.returncode else f"exit code {done.returncode}, see gpu.log"
        except subprocess.TimeoutExpired as error:
            output, end = error.stdout or b"", f"took more than {seconds:.0f} s"
    lines = output.decode(errors="replace").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")], end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.csv, gpu.log and the run")
    parser.add_argument("--data", type=Path, help="data set of the training, Dataset101_HeadNeckCT")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--minutes", type=float, default=9.5, help="for everything")
    parser.add_argument("--parts", nargs="+", help="those alone, such as kernels attention step:compile training")
    parser.add_argument("--quick", action="store_true", help="a tiny network and few repetitions")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        part_of(arguments)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu"
    start, about = time.perf_counter(), {"device": name} | machine()
    parts = ["kernels", "step:plain", *(f"step:{s}" for s in FIRST), "attention", *(f"step:{s}" for s in LATER)]
    parts = arguments.parts or [*parts, *(["training"] if arguments.data or arguments.quick else [])]
    for part in parts:
        left = 60 * arguments.minutes - (time.perf_counter() - start)
        # What comes after is not to be had if one takes all; only the last may.
        limit = left if part == parts[-1] else min(left, 120 if "compile" in part else 75)
        began = time.perf_counter()
        if left < 15:
            rows, end = [], "no time left"
        elif part == "training":
            rows, end = list(training(arguments, limit)), "done"
        else:
            rows, end = in_child(arguments, part, limit)
        took = round(time.perf_counter() - began, 1)
        rows.append({"what": "", "measure": "end", "value": end})
        append(arguments.out / "gpu.csv", [{"part": part, **row, "part_seconds": took} | about for row in rows])
        print(f"{part:28} {took:6.1f} s  {end}", flush=True)
        for row in rows[:-1] if part != "kernels" else []:
            print(f"    {row['what']:40} {row['measure']:32} {str(row['value']).splitlines()[0]}", flush=True)


if __name__ == "__main__":
    main()
