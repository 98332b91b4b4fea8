"""A folder of nnU-Net's results as its trainer leaves it, small, made without nnU-Net."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskmed_zoo.build import model_of
from maskmed_zoo.recipe.nnunet_plan import recipe_of_plan
from tests.interop.plans import DATASET, configuration

NAME = "nnUNetTrainer__nnUNetPlans__3d_fullres"
RESAMPLING: dict[str, Any] = {
    f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in ("data", "seg", "probabilities")
} | {
    f"resampling_fn_{what}_kwargs": {"is_seg": what == "seg", "order": order, "order_z": 0, "force_separate_z": None}
    for what, order in (("data", 3), ("seg", 1), ("probabilities", 1))
}
CT = {"mean": 40.0, "std": 120.0, "percentile_00_5": -150.0, "percentile_99_5": 260.0, "median": 30.0}
STATISTICS = {str(channel): CT | {"min": -300.0, "max": 500.0} for channel in range(2)}


def plans(kind: str = "PlainConvUNet", **changed: Any) -> dict[str, Any]:
    """All of plans.json, of channels CT and PET; `changed` are values of the configuration."""
    whole = configuration(kind) | RESAMPLING
    whole |= {
        "preprocessor_name": "DefaultPreprocessor",
        "normalization_schemes": ["CTNormalization", "ZScoreNormalization"],
        "use_mask_for_norm": [False, False],
    }
    return {
        "dataset_name": "Dataset001_Boxes",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": STATISTICS,
        "configurations": {"3d_fullres": whole | changed},
    }


def random_weights(plan: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Of our twin of the plan's network, norms included."""
    model = model_of(recipe_of_plan("pointwise_amos", plan["configurations"]["3d_fullres"], dataset=DATASET, twin=True))
    generator = torch.Generator().manual_seed(seed)
    return {name: t + 0.1 * torch.randn(t.shape, generator=generator) for name, t in model.state_dict().items()}


def write_results(
    root: Path,
    plan: Mapping[str, Any],
    folds: Mapping[str, Mapping[str, Tensor]],
    *,
    mirror_axes: Sequence[int] | None = (0, 1, 2),
    checkpoint: str = "checkpoint_final.pth",
    dataset: Mapping[str, Any] = DATASET,
) -> Path:
    """The folder of a trained model in `root`; `folds` are weights by "0", "1", … or "all"."""
    folder = root / NAME
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plan), encoding="utf-8")
    (folder / "dataset.json").write_text(json.dumps(dataset), encoding="utf-8")
    for fold, weights in folds.items():
        content = {
            "network_weights": dict(weights),
            "optimizer_state": {"state": {}},
            "logging": {"ema_fg_dice": [np.float64(0.5)]},
            "init_args": {"configuration": "3d_fullres", "fold": fold, "device": torch.device("cpu")},
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": None if mirror_axes is None else tuple(mirror_axes),
        }
        (folder / f"fold_{fold}").mkdir(exist_ok=True)
        torch.save(content, folder / f"fold_{fold}" / checkpoint)
    return folder
