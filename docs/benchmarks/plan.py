"""Our plan beside nnU-Net's planner, for its own networks: plain, ResEnc M, L and XL, each with two budgets.

    python docs/benchmarks/plan.py docs/benchmarks/plan.csv [DATASET…]

On made-up fingerprints, and on the data sets named; a folder without dataset.json is one of CT files. nnU-Net's
planner runs in this process, on the same numbers, written as its own extraction would write them; its networks are
counted on the meta device, which changes no figure. Axes are compared in z, y, x. Wants `nnunetv2`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskmed_zoo.planning.budget import Budget
from maskmed_zoo.planning.choose import choose
from maskmed_zoo.planning.grid import grid_of
from maskmed_zoo.recipe import Recipe, load_recipe

GIB = 2**30
PLANNERS = {
    "plain": ("ExperimentPlanner", "pointwise_amos", (8, 11)),
    "ResEnc M": ("nnUNetPlannerResEncM", "resenc_amos", (8, 12)),
    "ResEnc L": ("nnUNetPlannerResEncL", "resenc_amos", (24, 32)),
    "ResEnc XL": ("nnUNetPlannerResEncXL", "resenc_amos", (40, 80)),
}
"""nnU-Net's planner, the recipe of the same network, and budgets in GiB."""


@dataclass(frozen=True)
class Facts:
    """What a planner is told of a data set; spacings in mm and shapes after the crop, both z, y, x."""

    spacings: Sequence[tuple[float, float, float]]
    shapes: Sequence[tuple[int, int, int]]
    channels: int = 1
    labels: int = 3


def made_up() -> dict[str, Facts]:
    """Six kinds of data sets, of seeded random cases."""
    kinds: dict[str, tuple[Any, Any, int, int]] = {
        "thin slab": ((10.0, 1.4, 1.4), (11, 230, 230), 1, 4),
        "long CT": ((1.5, 0.9, 0.9), (900, 500, 500), 1, 105),
        "tiny volumes": ((1.0, 1.0, 1.0), (34, 51, 36), 1, 3),
        "5 mm slices": ((5.0, 0.78, 0.78), (95, 512, 512), 1, 14),
        "4 channels": ((1.0, 1.0, 1.0), (138, 170, 137), 4, 4),
        "0.3 mm": ((0.3, 0.3, 0.3), (330, 420, 400), 1, 3),
    }
    generator = np.random.default_rng(0)
    found: dict[str, Facts] = {}
    for name, (spacing, shape, channels, labels) in kinds.items():
        spread = np.exp(generator.normal(0, 0.12, (25, 3)))
        spread[:, 2] = spread[:, 1]  # pixels are square
        spacings = [tuple(row) for row in (np.array(spacing) * spread).round(4).tolist()]
        shapes = [tuple(row) for row in (np.array(shape) / spread).round().astype(int).tolist()]
        found[name] = Facts(spacings, shapes, channels, labels)
    return found


def of_dataset(root: Path) -> Facts:
    """The facts of a data set on disk, by this package's fingerprint."""
    from maskmed_zoo.data.crop import nonzero_box
    from maskmed_zoo.data.dataset import open_dataset
    from maskmed_zoo.data.fingerprint import fingerprint_dataset
    from maskmed_zoo.data.formats import read_image

    if not (root / "dataset.json").exists():
        names = [path for path in sorted(root.glob("*_ct*.nii.gz")) if "labels" not in path.name]
        scans = [read_image(path) for path in names]
        boxes = [nonzero_box(scan.array[None]) for scan in scans]
        shapes: list[Any] = [tuple(side.stop - side.start for side in box[-3:]) for box in boxes]
        return Facts([scan.geometry.spacing for scan in scans], shapes, labels=118)  # TotalSegmentator's classes
    dataset = open_dataset(root)
    found = fingerprint_dataset(dataset)
    return Facts(found.spacings, found.shapes_after_crop, len(dataset.channels), len(dataset.labels))


def ours(facts: Facts, recipe: str, gib: float) -> dict[str, Any]:
    """What this package plans."""
    labels = {"background": 0} | {f"label_{i}": i for i in range(1, facts.labels)}
    grid = grid_of(facts.spacings, facts.shapes)
    stated = load_recipe(
        recipe,
        {
            "data.labels": labels,
            "data.channels": [f"channel {i}" for i in range(facts.channels)],
            "data.spacing": list(grid.spacing),
            "data.normalization": "auto",
        },
    )
    planned: Recipe = choose(stated, grid, Budget(int(gib * GIB), "as asked", narrow=True)).recipe
    encoder: Any = planned.model.encoder
    return {
        "spacing": list(planned.data.spacing),
        "patch": list(planned.data.patch_size),
        "strides": [list(step) for step in encoder.strides],
        "kernels": [list(kernel) for kernel in encoder.kernels],
        "channels": list(encoder.channels),
        "batch": planned.train.batch_size,
    }


def nnunets(facts: Facts, planner: str, gib: float) -> dict[str, Any]:
    """What nnU-Net plans, axes turned back to z, y, x."""
    from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner as module
    from nnunetv2.experiment_planning.experiment_planners.residual_unets import residual_encoder_unet_planners
    from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

    cls = getattr(module, planner, None) or getattr(residual_encoder_unet_planners, planner)
    with tempfile.TemporaryDirectory() as folder:
        _written(Path(folder), facts)
        module.nnUNet_raw = module.nnUNet_preprocessed = folder
        with warnings.catch_warnings(action="ignore"):  # ResEnc planners want their own budget
            made = cls("Dataset999_Plan", gpu_memory_target_in_gb=gib)
        forward, backward = made.determine_transpose()
        spacing = made.determine_fullres_target_spacing()
        shapes = [
            compute_new_shape(shape, old, spacing) for old, shape in zip(facts.spacings, facts.shapes, strict=True)
        ]
        median = np.median(shapes, 0)[forward]
        voxels = float(np.prod(median, dtype=np.float64) * len(shapes))
        with torch.device("meta"):
            plan = made.get_plans_for_configuration(spacing[forward], median, "3d_fullres", voxels, {})
    network = plan["architecture"]["arch_kwargs"]

    def back(values: Any) -> list[Any]:
        return [list(values)[axis] for axis in backward]

    return {
        "spacing": [float(x) for x in back(plan["spacing"])],
        "patch": [int(x) for x in back(plan["patch_size"])],
        "strides": [back(step) for step in network["strides"]],
        "kernels": [back(kernel) for kernel in network["kernel_sizes"]],
        "channels": list(network["features_per_stage"]),
        "batch": int(plan["batch_size"]),
    }


def _written(folder: Path, facts: Facts) -> None:
    """A data set without images, and its fingerprint, as nnU-Net's planner reads them."""
    root = folder / "Dataset999_Plan"
    root.mkdir()
    description = {
        "channel_names": {str(i): "MRI" for i in range(facts.channels)},
        "labels": {"background": 0} | {f"label_{i}": i for i in range(1, facts.labels)},
        "numTraining": len(facts.shapes),
        "file_ending": ".nii.gz",
        "dataset": {"a": {"images": ["a_0000.nii.gz"], "label": "a.nii.gz"}},
    }
    fingerprint = {
        "spacings": [list(x) for x in facts.spacings],
        "shapes_after_crop": [list(x) for x in facts.shapes],
        "median_relative_size_after_cropping": 1.0,
        "foreground_intensity_properties_per_channel": {},
    }
    (root / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    (root / "dataset_fingerprint.json").write_text(json.dumps(fingerprint), encoding="utf-8")


def compared(name: str, facts: Facts, network: str, gib: float) -> dict[str, Any]:
    """A row: what is equal, and both plans where something is not."""
    planner, recipe, _ = PLANNERS[network]
    mine, theirs = ours(facts, recipe, gib), nnunets(facts, planner, gib)
    row: dict[str, Any] = {"data": name, "cases": len(facts.shapes), "network": network, "memory_gib": gib}
    row |= {f"{key}_equal": "yes" if mine[key] == theirs[key] else "no" for key in mine}
    row |= {"patch_zyx": "x".join(map(str, mine["patch"])), "levels": len(mine["strides"]), "batch": mine["batch"]}
    return row | {"nnunet_where_not_equal": _difference(mine, theirs)}


def _difference(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    return "; ".join(f"{key} {theirs[key]}" for key in mine if mine[key] != theirs[key])


def main() -> None:
    """Compare and write."""
    from measure import write

    every = made_up() | {Path(root).name: of_dataset(Path(root)) for root in sys.argv[2:]}
    rows: list[dict[str, Any]] = []
    for name, facts in every.items():
        for network, (_, _, budgets) in PLANNERS.items():
            rows += [compared(name, facts, network, gib) for gib in budgets]
            sys.stderr.write(f"{rows[-1]}\n")
    write(Path(sys.argv[1]), rows)


if __name__ == "__main__":
    main()
