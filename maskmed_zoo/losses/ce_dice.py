"""Cross-entropy plus soft Dice with deep supervision: nnU-Net's `DC_and_CE_loss`, the loss of the dense heads.

Dice per case and foreground label, averaged; labels by nearest voxel at coarser stages; the lowest stage has weight 0.
With partial labels a voxel of label 0 is "background or a label that is not annotated", with the sum of their
probabilities, and Dice is over the foreground labels annotated in each case. Instances are not separated.
Deviation from nnU-Net: the Dice term is 1 - Dice instead of -Dice, so that 0 is the optimum; gradients are equal.
Compared in the tests with MONAI's `DiceCELoss`.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from maskmed_zoo.contracts import ComponentConfig, HeadOutput, Loss, is_eager_cpu
from maskmed_zoo.losses.fused import dense_sums
from maskmed_zoo.losses.inputs import InputCheck
from maskmed_zoo.losses.partial import merge_unannotated, only_annotated
from maskmed_zoo.losses.stages import halving_weights, nearest_labels

SMOOTH = 1e-5


class CEDiceConfig(ComponentConfig):
    """Settings of `ce_dice`."""

    kind: Literal["ce_dice"] = "ce_dice"
    ce_weight: float = Field(default=1.0, ge=0)
    dice_weight: float = Field(default=1.0, ge=0)
    supervise_lowest: bool = Field(default=False, description="give the lowest stage its weight too (nnU-Net: no)")


class CEDiceLoss(Loss):
    """CE + Dice over a head's logits."""

    Config = CEDiceConfig
    accepts = "logits"

    def __init__(
        self, *, num_classes: int, config: CEDiceConfig | None = None, ignore_label: int | None = None
    ) -> None:
        super().__init__()
        self.config = config or CEDiceConfig()
        self.num_classes = num_classes
        self.check = InputCheck(num_classes, ignore_label, self.accepts)
        self.ignore_label = -100 if ignore_label is None else ignore_label

    def forward(
        self,
        output: HeadOutput,
        labels: Tensor,
        *,
        annotated: Tensor | None = None,
        instances: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Labels (b d h w); returns the weighted sum over stages and the full-resolution parts `ce` and `dice`.

        Raises `JointError` for inputs that do not fit; on a GPU, wrong values in any but the first call are an error of
        the call after it.
        """
        given = self.check(output, labels, annotated, instances)
        labels, annotated = given.labels, given.annotated
        if annotated is None:
            counted = torch.ones(len(labels), self.num_classes, device=labels.device)
        else:
            labels, counted = only_annotated(labels, annotated), annotated.float()
        weights = self.stage_weights(len(output.stages))
        total, parts = labels.new_zeros((), dtype=torch.float32), dict[str, Tensor]()
        for weight, stage in zip(weights, output.stages, strict=True):
            if weight == 0:
                continue
            logits = stage.spatial.float()
            if annotated is not None:
                logits = merge_unannotated(logits, annotated)
            ce, dice = self._terms(logits, nearest_labels(labels, logits.shape[2:]).long(), counted[:, 1:])
            total = total + weight * (self.config.ce_weight * ce + self.config.dice_weight * dice)
            parts = parts or {"ce": ce.detach(), "dice": dice.detach()}
        return total, parts

    def stage_weights(self, stages: int) -> list[float]:
        """Halving, the lowest 0 unless `supervise_lowest`; they sum to 1."""
        return halving_weights(stages, skip_lowest=not self.config.supervise_lowest)

    def _terms(self, logits: Tensor, target: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy, mean over voxels, and Dice, mean over the foreground labels that `counted` (b k-1) weighs.

        Each is 0 if there are none.
        """
        target, valid, voxels = target.flatten(1), None, target.numel()
        # Without an ignore label the check has marked wrong voxels, but for the CPU, where they were an error.
        if self.check.ignore_label is not None or not is_eager_cpu(target):
            valid = target != self.ignore_label
            target, voxels = target.masked_fill(~valid, 0), valid.sum().clamp_min(1)
        ce, overlap, size, reference = dense_sums(logits.flatten(2), target, valid)
        losses = 1 - (2 * overlap + SMOOTH) / (size + reference + SMOOTH)
        return ce / voxels, (losses[:, 1:] * counted).sum() / counted.sum().clamp_min(1)
