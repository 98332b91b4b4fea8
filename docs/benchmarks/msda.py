"""Times and peak memory of deformable attention, every backend against the stacked 5-D `grid_sample` formulation.

    python docs/benchmarks/msda.py            # all cases, about seven minutes on two cores; writes msda.csv
    python docs/benchmarks/msda.py --quick    # a small case, seconds; prints only

The formulation compared with is that of Deformable DETR's reference code and of Hugging Face transformers, in three
dimensions: one `grid_sample` per level, all samples stacked, then multiplied with the weights and summed. Candidates
run in turn, medians of one run. Peak memory is of a fresh process each, beyond the inputs, with outputs and gradients.
Beside each forward pass stands its floor: as many rows gathered at random from a table as large as the values, which
`embedding_bag` does without any arithmetic on coordinates.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path

import torch
from measure import Row, in_fresh_process, in_turn, machine, medians, peak, write
from torch import Tensor
from torch.nn import functional as F

from maskmed_zoo.ops import native
from maskmed_zoo.ops.deformable import deformable_attention

FOLDER = Path(__file__).resolve().parent
BASE = "stacked grid_sample"
Attend = Callable[[Tensor, list[tuple[int, int, int]], Tensor, Tensor], Tensor]
Passes = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Case:
    """Cubic levels of values, and queries at the voxels of cubic levels."""

    name: str
    values: tuple[int, ...]
    queries: tuple[int, ...]
    batch: int = 1
    heads: int = 8
    width: int = 32
    points: int = 4
    locations: str = "local"
    dtype: str = "float32"
    repetitions: int = 3

    def inputs(self) -> tuple[Tensor, list[tuple[int, int, int]], Tensor, Tensor]:
        """Local: normal around the query's own place, two voxels wide; uniform: anywhere in the volume."""
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(
            self.batch, sum(n**3 for n in self.values), self.heads, self.width, generator=generator
        ).to(getattr(torch, self.dtype))
        centres = torch.cat([_centres(n) for n in self.queries])
        shape = (self.batch, len(centres), self.heads, len(self.values), self.points)
        if self.locations == "local":
            sizes = torch.tensor(self.values, dtype=torch.float32)[:, None, None]
            locations = torch.randn(*shape, 3, generator=generator).mul_(2 / sizes)
            locations += centres[:, None, None, None]
        else:
            locations = torch.rand(*shape, 3, generator=generator)
        weights = torch.randn(shape, generator=generator).flatten(3).softmax(-1).view(shape)
        return values, [(n, n, n) for n in self.values], locations, weights

    def rows(self) -> int:
        """Rows of channels that a forward pass reads."""
        queries = sum(n**3 for n in self.queries)
        return self.batch * queries * self.heads * len(self.values) * self.points * 8


SMALL = Case("small", (48, 24, 12, 6), (24, 12, 6), repetitions=5)
LARGE = Case("large", (96, 48, 24, 12), (24, 12), repetitions=5)
CASES = [
    SMALL,
    LARGE,
    replace(SMALL, name="small uniform", locations="uniform", repetitions=3),
    replace(LARGE, name="large uniform", locations="uniform", repetitions=3),
    replace(SMALL, name="small batch 2", batch=2, repetitions=3),
    replace(SMALL, name="small width 16", width=16, repetitions=3),
    replace(SMALL, name="small width 24", width=24, repetitions=3),
    replace(SMALL, name="small width 64", width=64, repetitions=3),
    replace(SMALL, name="small bfloat16", dtype="bfloat16", repetitions=3),
    replace(LARGE, name="large bfloat16", dtype="bfloat16", repetitions=3),
    Case("queries of four levels", (32, 16, 8, 4), (32, 16, 8, 4)),
    Case("six levels", (128, 64, 32, 16, 8, 4), (16, 8, 4), width=16),
]
QUICK = Case("quick", (24, 12, 6), (12, 6), repetitions=3)
MEASURED_MEMORY = ("small", "large")


def _centres(n: int) -> Tensor:
    axis = (torch.arange(n) + 0.5) / n
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)


def stacked(values: Tensor, shapes: list[tuple[int, int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """What everything is compared with. Values of 16 bits are converted first."""
    b, _, h, c = values.shape
    _, q, _, levels, p, _ = locations.shape
    grids = 2 * locations - 1
    samples: list[Tensor] = []
    for level, part in enumerate(values.float().split([prod(s) for s in shapes], 1)):
        volume = part.flatten(2).transpose(1, 2).reshape(b * h, c, *shapes[level])
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1).flip(-1).unsqueeze(3)
        samples.append(F.grid_sample(volume, grid, align_corners=False).squeeze(-1))
    scale = weights.transpose(1, 2).reshape(b * h, 1, q, levels * p)
    output = (torch.stack(samples, -2).flatten(-2) * scale).sum(-1)
    return output.view(b, h, c, q).permute(0, 3, 1, 2).to(values.dtype)


def with_instructions(number: int) -> Attend:
    """The native backend with an instruction set of less than the best; it stays until the next call sets another."""

    def attend(values: Tensor, shapes: list[tuple[int, int, int]], locations: Tensor, weights: Tensor) -> Tensor:
        library, _ = native.load()
        assert library is not None
        library.instructions = number
        return deformable_attention(values, shapes, locations, weights, backend="native")

    return attend


def candidates() -> dict[str, Attend]:
    """By name, the formulation compared with first."""
    found: dict[str, Attend] = {
        BASE: stacked,
        "torch": lambda v, s, x, w: deformable_attention(v, s, x, w, backend="torch"),
    }
    library, _ = native.load()
    if library:
        for number in range(1, library.instructions + 1):
            found[f"native, {native.SETS[number]}"] = with_instructions(number)
        if library.instructions == 0:
            found["native"] = with_instructions(0)
    return found


def passes(inputs: tuple[Tensor, list[tuple[int, int, int]], Tensor, Tensor], attend: Attend) -> Passes:
    """Inference, and a training pass: forward and the gradients of all inputs."""
    values, shapes, locations, weights = inputs
    grad = torch.ones(1, dtype=values.dtype).expand(*locations.shape[:3], values.shape[-1])

    def inference() -> Tensor:
        with torch.no_grad():
            return attend(values, shapes, locations, weights)

    def training() -> tuple[Tensor, tuple[Tensor, ...]]:
        leaves = [x.detach().requires_grad_() for x in (values, locations, weights)]
        output = attend(leaves[0], shapes, leaves[1], leaves[2])
        return output, torch.autograd.grad(output, leaves, grad)

    return {"forward": inference, "forward + backward": training}


def times(case: Case, only: tuple[str, ...] = ("forward", "forward + backward")) -> list[Row]:
    """One row per pass and candidate."""
    inputs = case.inputs()
    calls = {name: passes(inputs, attend) for name, attend in candidates().items()}
    floor = in_turn({"floor": gather(case)}, 3)["floor"] if "forward" in only else []
    rows: list[Row] = []
    for name in only:
        taken = in_turn({candidate: both[name] for candidate, both in calls.items()}, case.repetitions)
        middle = medians(taken)
        for candidate, milliseconds in middle.items():
            rows.append(
                {
                    "pass": name,
                    "candidate": candidate,
                    "median_ms": round(milliseconds, 1),
                    "min_ms": round(min(taken[candidate]), 1),
                    "ratio": round(middle[BASE] / milliseconds, 2),
                    "floor_ms": round(min(floor), 1) if name == "forward" else "",
                }
            )
    return rows


def gather(case: Case) -> Callable[[], object]:
    """As many rows as the case reads, in random order, from a table as large as its values."""
    count = case.batch * sum(n**3 for n in case.values) * case.heads
    table = torch.ones(count, case.width)
    indices = torch.randint(count, (case.rows() // 128, 128), dtype=torch.int32)
    return lambda: F.embedding_bag(indices, table, mode="sum")


def stream() -> float:
    """GB/s of reading 1 GB in order."""
    memory = torch.ones(1 << 28)
    return memory.numel() * 4 / 1e6 / min(in_turn({"stream": memory.sum}, 5)["stream"])


def child(case: str, candidate: str, name: str) -> None:
    """Peak memory in this process, after a small case that loads all code."""
    passes(QUICK.inputs(), candidates()[candidate])[name]()
    chosen = next(c for c in CASES if c.name == case)
    print(json.dumps(peak(passes(chosen.inputs(), candidates()[candidate])[name])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small case, nothing is written")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.child:
        child(*arguments.child)
        return
    about, rows = machine(), []
    for case in [QUICK] if arguments.quick else CASES:
        facts = {k: "-".join(map(str, v)) if isinstance(v, tuple) else v for k, v in asdict(case).items()}
        measured = times(case)
        for row in measured:
            row["peak_mb"] = ""
            if case.name in MEASURED_MEMORY and not arguments.quick:
                words = ("--threads", str(arguments.threads), "--child", case.name, row["candidate"], row["pass"])
                row["peak_mb"] = round(in_fresh_process(__file__, *words))
            rows.append(facts | row | about)
            print(
                f"{case.name:24} {row['pass']:19} {row['candidate']:22} {row['median_ms']:8.1f} ms {row['ratio']:6.2f}x"
                f"  floor {row['floor_ms'] or '-'}  peak MB {row['peak_mb'] or '-'}",
                flush=True,
            )
    print(f"reading in order: {stream():.0f} GB/s; {about}")
    if not arguments.quick:
        write(FOLDER / "msda.csv", rows)


if __name__ == "__main__":
    main()
