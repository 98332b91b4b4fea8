"""The optimizer of a run on the CPU against PyTorch's plain one, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from maskmed_zoo.recipe import load_recipe
from maskmed_zoo.runner.optimizer import build_optimizer


class Late(nn.Module):
    """Weights of which some have no gradient in the first steps, as of a layer that is skipped by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.late = (nn.Parameter(torch.linspace(-1, 1, 5)) for _ in range(2))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"cnn": [self.early, self.late], "transformer": []}

    def forward(self, step: int) -> torch.Tensor:
        return self.early.square().sum() + (self.late.exp().sum() if step > 1 else 0)


@pytest.mark.parametrize("fused", ["auto", "on", "off"])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_weights_whose_first_gradient_comes_late(tiny_recipe: Path, kind: str, fused: str) -> None:
    settings = {"kind": kind, "lr": 0.1, "momentum": 0.9, "fused": fused}
    config = load_recipe(tiny_recipe, {"train.optimizer": settings}).train.optimizer
    due, found = Late(), Late()
    plain: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": False}
    optimizers = (
        torch.optim.SGD(due.parameters(), momentum=0.9, nesterov=True, **plain)
        if kind == "sgd"
        else torch.optim.AdamW(due.parameters(), **plain),
        build_optimizer(found, config),  # pyright: ignore[reportArgumentType]  # has what is needed of a model
    )
    assert optimizers[1].defaults["fused"] is (fused != "off")
    for step in range(5):
        for model, optimizer in zip((due, found), optimizers, strict=True):
            optimizer.zero_grad()
            model(step).backward()
            optimizer.step()
        for a, b in zip(found.parameters(), due.parameters(), strict=True):
            torch.testing.assert_close(a, b)
