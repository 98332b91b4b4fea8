"""The memory that `plan` estimates for a training step, beside what the process of such a step took at its highest.

    python docs/benchmarks/plan_memory.py docs/benchmarks/plan_memory.csv

Two steps of batch 1 in float32 on the CPU, in a fresh process, by the highest resident memory beyond that of before;
the patch is `PATCH`, the loss and the optimizer are the recipe's. Linux.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from measure import Row, in_fresh_process, machine, peak, write

PATCH = (64, 64, 64)
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
"""Recipes, some of them narrower, and encoders in maskmed_amos."""


def recipe_of(name: str) -> Any:
    """The recipe of a row."""
    from maskmed_zoo.recipe import load_recipe

    settings = dict(NETWORKS[name])
    encoder = settings.pop("model.encoder", None)
    settings |= {"model.encoder": encoder, "model.decoder.kernels": None} if encoder else {}
    settings |= {"model.encoder.img_size": list(PATCH)} if name == "unetr_amos" else {}
    base = name if name.endswith("_amos") else "maskmed_amos"
    return load_recipe(base, settings | {"data.patch_size": list(PATCH)})


def measured(name: str) -> Row:
    """In this process, whose modules are all imported before."""
    import torch

    from maskmed_zoo.build import model_of
    from maskmed_zoo.model import build_loss
    from maskmed_zoo.planning.footprint import StepMemory
    from maskmed_zoo.runner.optimizer import build_optimizer

    recipe = recipe_of(name)
    with torch.device("meta"):
        meta = model_of(recipe)
    start = time.process_time()
    estimate = StepMemory(meta, recipe, narrow=False).bytes(PATCH, 1)
    seconds = time.process_time() - start

    def steps() -> None:
        model = model_of(recipe)
        loss = build_loss(recipe.model, num_classes=model.num_classes, ignore_label=None)
        optimizer = build_optimizer(model, recipe.train.optimizer)
        for _ in range(2):
            image = torch.randn(1, model.in_channels, *PATCH)
            labels = torch.randint(0, model.num_classes, (1, *PATCH))
            value, _ = loss(model(image), labels)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

    taken = peak(steps)
    return {
        "network": name,
        "patch_zyx": "x".join(map(str, PATCH)),
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
    for name in NETWORKS:
        rows.append(in_fresh_process(__file__, "one", name) | machine())
        write(Path(sys.argv[1]), rows)


if __name__ == "__main__":
    main()
