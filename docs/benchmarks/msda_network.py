"""What deformable attention costs inside a network, and a level sampled before or after its projection.

    python docs/benchmarks/msda_network.py            # about eight minutes on two cores; writes msda_network.csv
    python docs/benchmarks/msda_network.py --quick    # small patches, a minute; prints only

Training steps (forward, loss, backward, optimizer) of `maskmed_headneck` with the necks `fsad` and `skip`, in turn,
medians of one run; the peak memory of a step at the patch of `maskmed_amos`, one sample, each in a fresh process,
beyond network and input. Then `DeformableBlock` alone: one level, projected first or sampled first.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from measure import Row, in_fresh_process, in_turn, machine, medians, peak, write

import maskmed_zoo as zoo
from maskmed_zoo.layers.deformable import DeformableBlock
from maskmed_zoo.layers.position import voxel_centers
from maskmed_zoo.layers.transformer import TransformerConfig
from maskmed_zoo.recipe import Recipe
from maskmed_zoo.runner.trainer import Trainer

FOLDER = Path(__file__).resolve().parent
NECKS = ("skip", "fsad")
# Channels and voxels per side of the level, sides of the levels whose voxels are queries.
LEVELS = [(32, 64, (16, 8, 4)), (64, 32, (16, 8, 4)), (128, 24, (16, 8, 4)), (128, 16, (16, 8, 4)), (32, 96, (24, 12))]


def recipe_with(name: str, neck: str, patch: tuple[int, ...] | None = None) -> Recipe:
    overrides: dict[str, object] = {"model.neck.kind": neck}
    if patch:
        overrides["data.patch_size"] = list(patch)
    return zoo.load_recipe(name, overrides)


def step(recipe: Recipe, batch: int) -> Callable[[], object]:
    """A training step on random images and labels."""
    torch.manual_seed(0)
    trainer = Trainer(recipe, torch.device("cpu"))
    trainer.model.train()
    size = (batch, *recipe.data.patch_size)
    image = torch.randn(batch, trainer.model.in_channels, *size[1:])
    labels = torch.randint(trainer.model.num_classes, size)
    return lambda: trainer.step(image, labels)


def block(channels: int, side: int, queries: tuple[int, ...], first: str, training: bool) -> Callable[[], object]:
    """Attention of width 192, 8 heads and 4 points over one level; `first` is "project" or "sample"."""
    torch.manual_seed(0)
    layer = DeformableBlock((channels,), TransformerConfig(width=192, attention_heads=8), 4)
    layer._late = lambda *_: first == "sample"
    level = torch.randn(1, side**3, channels)
    centres = torch.cat([voxel_centers((n,) * 3, level.device).flatten(0, 2) for n in queries])
    locations = centres[None, :, None, None, None] + torch.randn(1, len(centres), 8, 1, 4, 3) * 2 / side
    weights = torch.rand(1, len(centres), 8, 1, 4)
    leaves = [x.requires_grad_(training) for x in (level, locations, weights)]

    def run() -> object:
        with torch.set_grad_enabled(training):
            output = layer._attend([leaves[0]], [(side,) * 3], leaves[1], leaves[2])
            return torch.autograd.grad(output.sum(), leaves) if training else output

    return run


def child(words: list[str]) -> None:
    """Peak memory of one step or one pass in this process."""
    if words[0] == "step":
        run = step(recipe_with(words[1], words[2], tuple(map(int, words[3].split(",")))), 1)
    else:
        channels, side, queries = json.loads(words[1])
        block(8, 8, (2,), words[2], words[3] == "training")()  # loads all code
        run = block(channels, side, tuple(queries), words[2], words[3] == "training")
    print(json.dumps(peak(run)))


def rows_of(what: str, times: dict[str, list[float]], peaks: dict[str, float], base: str) -> list[Row]:
    """One row per candidate; the ratio is its time over that of `base`."""
    middle = medians(times)
    found = []
    for name, milliseconds in middle.items():
        ratio = milliseconds / middle[base]
        row = {"what": what, "candidate": name, "median_ms": round(milliseconds, 1), "ratio": round(ratio, 3)}
        row["peak_mb"] = round(peaks[name]) if name in peaks else ""
        print(
            f"{what:58} {name:8} {row['median_ms']:9.1f} ms  {ratio:5.2f} x {base}  peak MB {row['peak_mb']}",
            flush=True,
        )
        found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small patches, nothing is written")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.child:
        child(arguments.child)
        return
    fresh = (__file__, "--threads", str(arguments.threads), "--child")
    patch = (32, 32, 32) if arguments.quick else None
    rows: list[Row] = []
    steps = {neck: step(recipe_with("maskmed_headneck", neck, patch), 2) for neck in NECKS}
    size = recipe_with("maskmed_headneck", "skip", patch).data.patch_size
    rows += rows_of(f"step, maskmed_headneck, patch {size}, batch 2", in_turn(steps, 3 if patch else 5), {}, "skip")
    large = (32, 64, 64) if arguments.quick else recipe_with("maskmed_amos", "skip").data.patch_size
    for neck in NECKS:
        used = in_fresh_process(*fresh, "step", "maskmed_amos", neck, ",".join(map(str, large)))
        rows.append({"what": f"step, maskmed_amos, patch {large}, batch 1", "candidate": neck, "median_ms": "",
                     "ratio": "", "peak_mb": round(used)})  # fmt: skip
        print(f"{rows[-1]['what']:58} {neck:8} peak MB {rows[-1]['peak_mb']}", flush=True)
    for level in LEVELS[-2:] if arguments.quick else LEVELS:
        for name in ("inference", "training"):
            calls = {first: block(*level, first, name == "training") for first in ("project", "sample")}
            peaks = {first: in_fresh_process(*fresh, "block", json.dumps(level), first, name) for first in calls}
            what = f"{name}, {level[0]} channels, {level[1]}^3 voxels, queries {level[2]}"
            rows += rows_of(what, in_turn(calls, 5), peaks, "project")
    about = machine()
    print(about)
    if not arguments.quick:
        write(FOLDER / "msda_network.csv", [row | about for row in rows])


if __name__ == "__main__":
    main()
