"""Every row of the paper's ablations and every baseline builds and learns: a step on a real patch lowers its loss.

Networks are narrow and patches small here, so that all of them take seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maskmed_zoo import registry
from maskmed_zoo.ablation.grid import load_grid
from maskmed_zoo.build import model_of
from maskmed_zoo.data.case import load_case
from maskmed_zoo.data.dataset import open_dataset
from maskmed_zoo.recipe import Recipe, load_recipe
from maskmed_zoo.runner.trainer import Trainer

TABLES = ("table3", "table4", "table5", "table6", "table7", "controls")
BASE = "maskmed_headneck_5mm_cpu"
ONE_STEP = {"optimizer.kind": "adamw", "optimizer.lr": 3e-4, "optimizer.warmup_iterations": 0}
NARROW = {"channels": (6, 8, 8, 8, 8, 8), "feature_size": 12, "hidden_size": 24, "mlp_dim": 24, "num_layers": 4}


def one_step() -> dict[str, Any]:
    return {f"train.{key}": value for key, value in ONE_STEP.items()}


def rows() -> list[Any]:
    found = [pytest.param(table, row, id=f"{table}-{row}") for table in TABLES for row in load_grid(table).grid.rows]
    assert len(found) >= 24
    return found


def baselines() -> list[str]:
    found = [card.name for card in registry.find(kind="model") if str(card.facts["recipe"]).startswith("baselines/")]
    assert len(found) >= 8
    return [*found, "pointwise_amos", "maskmed_amos", "maskmed_btcv"]


def patch(real_data: Path, size: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Around the mandible of a real CT: image (1 1 d h w), normalized, and its five organs (1 d h w)."""
    dataset = open_dataset(real_data / "Dataset101_HeadNeckCT")
    image, labels, _ = load_case(dataset.cases[0], dataset)
    assert labels is not None
    centre = [int(c) for c in np.argwhere(labels == dataset.labels["mandible"]).mean(0)]
    start = [max(0, min(c - s // 2, n - s)) for c, s, n in zip(centre, size, labels.shape, strict=True)]
    where = tuple(slice(a, a + s) for a, s in zip(start, size, strict=True))
    missing = [(0, max(0, s - n)) for s, n in zip(size, labels.shape, strict=True)]
    crop, organs = np.pad(image[0][where], missing), np.pad(labels[where], missing)
    assert len(np.unique(organs)) >= 4
    normal = (crop.clip(-200, 300) - 50) / 150
    return torch.from_numpy(normal).float()[None, None], torch.from_numpy(organs.astype(np.int64))[None]


def losses(recipe: Recipe, image: Tensor, labels: Tensor) -> tuple[float, float]:
    """Of one patch before and after one step on it."""
    trainer = Trainer(recipe, torch.device("cpu"))
    before = trainer.step(image, labels)["loss"]
    with torch.no_grad():
        after, _ = trainer.loss(trainer.model.train()(image), labels)
    return before, float(after)


@pytest.mark.parametrize(("table", "row"), rows())
def test_a_step_lowers_the_loss_of_every_row(table: str, row: str, real_data: Path) -> None:
    narrow = ["model.encoder.channels=[6,8,12,16]", "data.patch_size=[24,32,32]"]
    settings = [f"{key}={value}" for key, value in one_step().items()]
    recipe = load_grid(table).recipes(BASE, [*narrow, *settings])[row]
    before, after = losses(recipe, *patch(real_data, recipe.data.patch_size))
    assert 0 < after < before


@pytest.mark.parametrize("name", baselines())
def test_a_step_lowers_the_loss_of_every_baseline(name: str, real_data: Path) -> None:
    recipe = load_recipe(name)
    changes: dict[str, Any] = {"model.loss.points": 2000} if getattr(recipe.model.loss, "points", None) else {}
    for part in ("encoder", "neck", "decoder", "head"):
        fields = getattr(recipe.model, part).model_dump()
        changes |= {f"model.{part}.{key}": NARROW[key] for key in NARROW.keys() & fields.keys() if part == "encoder"}
        changes |= {f"model.{part}.{key}": 24 for key in ("width",) if isinstance(fields.get(key), int)}
        changes |= {f"model.{part}.layers": 2} if part == "neck" and "layers" in fields else {}
        changes |= {"model.decoder.channels": 8} if part == "decoder" and "channels" in fields else {}
    with torch.device("meta"):
        stride = model_of(recipe).encoder.out_spec.total_stride
    size = (max(32, 2 * stride[0]), max(32, stride[1]), max(32, stride[2]))  # norms need more than one voxel
    changes |= {"data.patch_size": size} | one_step()
    if hasattr(recipe.model.encoder, "img_size"):
        changes["model.encoder.img_size"] = size
    before, after = losses(load_recipe(name, changes), *patch(real_data, size))
    assert 0 < after < before
