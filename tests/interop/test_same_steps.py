"""Training steps of nnU-Net's own trainer and of ours: from equal weights and batches, equal losses and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.nn import functional as F

import maskmed_zoo as zoo
from maskmed_zoo.recipe.nnunet_plan import recipe_of_plan
from maskmed_zoo.runner.trainer import Trainer
from tests.interop.plans import DATASET, configuration

STEPS = 3
SGD = {"train.optimizer": {"kind": "sgd", "lr": 1e-2, "momentum": 0.99, "weight_decay": 3e-5, "gradient_clip": 12}}


def nnunet_trainer(plan: dict[str, Any], work: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """nnU-Net's default trainer on the CPU; which data set it is, it reads off a file of one case."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(work / name))
    configured = plan | {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "normalization_schemes": ["ZScoreNormalization"] * 2,
        "use_mask_for_norm": [False] * 2,
        "batch_size": 2,
        "batch_dice": False,
    }
    plans = {
        "dataset_name": "Dataset999_Steps",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "configurations": {"3d_fullres": configured},
        "continue_training": False,
    }
    cases = work / "preprocessed" / "Dataset999_Steps" / "nnUNetPlans_3d_fullres"
    cases.mkdir(parents=True)
    (cases / "case.b2nd").touch()
    trainer: Any = nnUNetTrainer(plans, "3d_fullres", 0, DATASET | {"numTraining": 1}, torch.device("cpu"))
    trainer.initialize()
    trainer.network.train()
    return trainer


def test_three_steps_are_nnunets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network, deep supervision, loss, clipping and SGD at once; one sample lacks a label."""
    plan = configuration()
    theirs = nnunet_trainer(plan, tmp_path, monkeypatch)
    recipe = zoo.load_recipe(recipe_of_plan("pointwise_amos", plan, dataset=DATASET, twin=True), SGD)
    ours = Trainer(recipe, torch.device("cpu"))

    def their_weights() -> dict[str, torch.Tensor]:
        path = tmp_path / "checkpoint_final.pth"
        torch.save({"network_weights": theirs.network.state_dict()}, path)
        return zoo.create(recipe, pretrained=path).state_dict()

    start = their_weights()
    ours.model.load_state_dict(start)
    generator, shape = torch.Generator().manual_seed(0), plan["patch_size"]
    scales = theirs._get_deep_supervision_scales()
    for _ in range(STEPS):
        image = torch.randn(2, 2, *shape, generator=generator)
        labels = torch.randint(0, 3, (2, 1, *shape), generator=generator)
        labels[1][labels[1] == 2] = 0
        targets = [F.interpolate(labels.float(), scale_factor=s, mode="nearest-exact").short() for s in scales]
        loss = float(theirs.train_step({"data": image, "target": targets})["loss"])
        assert ours.step(image, labels[:, 0])["loss"] - 1 == pytest.approx(loss, rel=1e-5)  # 1 - Dice, and - Dice
    found, expected = ours.model.state_dict(), their_weights()
    moved = max(float((expected[name] - start[name]).abs().max()) for name in start)
    worst = max(float((expected[name] - found[name]).abs().max()) for name in start)
    assert moved > 1e-2
    assert worst < 1e-3 * moved
