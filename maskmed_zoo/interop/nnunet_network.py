"""What nnU-Net v2's trainer and predictor hold of this package: a network called their way, and its learning rates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from maskmed_zoo.contracts import HeadOutput
from maskmed_zoo.model import SegmentationModel
from maskmed_zoo.recipe.schema import TrainRecipe
from maskmed_zoo.runner.optimizer import rate_factor


class PluginNetwork(nn.Module):
    """A model of this package as nnU-Net calls it."""

    def __init__(self, model: SegmentationModel, deep_supervision: bool) -> None:
        super().__init__()
        self.model, self.deep_supervision = model, deep_supervision

    def forward(self, image: Tensor, *, for_loss: bool = False) -> Any:
        """Image (b c d h w) to log-probabilities (b k d h w), with deep supervision a list of them, finest first.

        `for_loss`: the `HeadOutput` instead, with the final stage alone where deep supervision is off.
        """
        output = self.model(image)
        stages = output.stages if self.deep_supervision else output.stages[:1]
        if for_loss:
            return HeadOutput(stages)
        maps = [stage.log_probabilities() for stage in stages]
        return maps if self.deep_supervision else maps[0]


class GroupSchedule:
    """Warm-up and poly for each parameter group by its own base rate, a function of the iteration alone."""

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: TrainRecipe, per_epoch: int, total: int) -> None:
        self.optimizer, self.recipe, self.per_epoch, self.total = optimizer, recipe, per_epoch, total
        self.base = [float(group["lr"]) for group in optimizer.param_groups]
        self.iteration = 0

    def step(self, epoch: int) -> None:
        """Go to the first iteration of an epoch; called by nnU-Net, also after a checkpoint has been loaded."""
        self._move(epoch * self.per_epoch)

    def advance(self) -> None:
        """Go to the next iteration."""
        self._move(self.iteration + 1)

    def _move(self, iteration: int) -> None:
        self.iteration = iteration
        factor = rate_factor(self.recipe.optimizer, iteration, self.total)
        for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = base * factor
