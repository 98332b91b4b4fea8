"""The memory that `plan` estimates for a training step, beside what the process of such a step took at its highest.

    python docs/benchmarks/plan_memory.py docs/benchmarks/plan_memory.csv

Each network plans its own patch for `BUDGET` on a made-up data set (one channel, 1 mm, or z four times as coarse), with
its own neck, head and loss; then two steps of batch 2 in float32 on the CPU, in a fresh process, are measured by the
highest resident memory beyond that of the process before. Linux.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from measure import Row, in_fresh_process, machine, peak, write

BUDGET = 2 * 2**30
SPACINGS = {"isotropic": (1.0, 1.0, 1.0), "thick z": (4.0, 1.0, 1.0)}
NETWORKS: dict[str, dict[str, Any]] = {
    "maskmed_amos": {},
    "pointwise_amos": {},
    "resenc_amos": {},
    "mask2former_amos": {},
    "maskformer_amos": {},
    "mednext_amos": {"model.encoder.variant": "S", "model.encoder.kernel_size": 3, "model.decoder.variant": "S",
                     "model.decoder.kernel_size": 3},
    "swin_unetr_amos": {"model.encoder.feature_size": 24},
    "swin_unetr_v2_amos": {"model.encoder.feature_size": 24},
    "unetr_amos": {"model.encoder.width": 384},
    "ux_net_amos": {"model.encoder.feature_size": 24},
    "timm resnet18": {"model.encoder": {"kind": "timm", "backbone": "resnet18"}},
    "timm slices": {"model.encoder": {"kind": "timm", "backbone": "resnet18", "mode": "slices"}},
    "monai SegResNet": {"model.encoder": {"kind": "monai", "network": "SegResNet"}},
}  # fmt: skip
"""Recipes, some of them narrower so that a patch fits, and encoders in maskmed_amos."""


def recipe_of(name: str, spacing: str) -> Any:
    """The recipe of a row, planned, and the estimate of a step of batch 2 in bytes."""
    import torch

    from maskmed_zoo.build import model_of
    from maskmed_zoo.plan.budget import Budget
    from maskmed_zoo.plan.choose import choose
    from maskmed_zoo.plan.footprint import StepMemory
    from maskmed_zoo.plan.grid import Grid
    from maskmed_zoo.recipe import load_recipe

    settings = dict(NETWORKS[name])
    encoder = settings.pop("model.encoder", None)
    base = name if name.endswith("_amos") else "maskmed_amos"
    settings |= {"model.encoder": encoder, "model.decoder.kernels": None} if encoder else {}
    z, y, x = SPACINGS[spacing]
    stated = load_recipe(base, settings | {"data.spacing": [z, y, x], "data.patch_size": [64, 64, 64]})
    grid = Grid((z, y, x), (200 / z, 200.0, 200.0), 0 if z > 1 else None, 100)
    recipe = choose(stated, grid, Budget(BUDGET, "as asked", narrow=False)).recipe
    recipe = load_recipe(recipe, {"train.batch_size": 2})
    with torch.device("meta"):
        model = model_of(recipe)
    start = time.process_time()
    estimate = StepMemory(model, recipe, narrow=False).bytes(recipe.data.patch_size, 2)
    return recipe, estimate, time.process_time() - start


def measured(name: str, spacing: str) -> Row:
    """In this process, whose modules are all imported before."""
    import torch

    from maskmed_zoo.build import model_of
    from maskmed_zoo.model import build_loss
    from maskmed_zoo.runner.optimizer import build_optimizer

    recipe, estimate, seconds = recipe_of(name, spacing)

    def steps() -> None:
        model = model_of(recipe)
        loss = build_loss(recipe.model, num_classes=model.num_classes, ignore_label=None)
        optimizer = build_optimizer(model, recipe.train.optimizer)
        for _ in range(2):
            image = torch.randn(2, model.in_channels, *recipe.data.patch_size)
            labels = torch.randint(0, model.num_classes, (2, *recipe.data.patch_size))
            value, _ = loss(model(image), labels)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

    taken = peak(steps)
    return {
        "network": name,
        "spacing": spacing,
        "patch_zyx": "x".join(map(str, recipe.data.patch_size)),
        "estimated_mb": round(estimate / 1e6),
        "measured_mb": round(taken),
        "ratio": round(estimate / 1e6 / taken, 2),
        "cpu_seconds_of_estimate": round(seconds, 1),
    }


def main() -> None:
    """Measure each in a process of its own, and write."""
    if sys.argv[1] == "one":
        sys.stdout.write(json.dumps(measured(*sys.argv[2:])) + "\n")
        return
    rows: list[Row] = []
    for spacing in SPACINGS:
        for name in NETWORKS:
            rows.append(in_fresh_process(__file__, "one", name, spacing) | machine())
            write(Path(sys.argv[1]), rows)


if __name__ == "__main__":
    main()
