"""Cross-entropy plus soft Dice with deep supervision: nnU-Net's `DC_and_CE_loss`, the loss of the dense heads.

Dice per case and foreground label, averaged; labels by nearest voxel at coarser stages; the lowest stage has weight 0.
With partial labels a voxel of label 0 is "background or a label that is not annotated", with the sum of their
probabilities, and Dice is over the foreground labels annotated in each case. Instances are not separated.
Deviation from nnU-Net: the Dice term is 1 - Dice instead of -Dice, so that 0 is the optimum; gradients are equal.
Compared in the tests with MONAI's `DiceCELoss`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from maskmed_zoo.contracts import ComponentConfig, HeadOutput, Loss, at_least_float32, is_eager_cpu
from maskmed_zoo.losses.fused import dense_sums
from maskmed_zoo.losses.inputs import Given, InputCheck
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
        counts: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Labels (b d h w); returns the weighted sum over stages and the full-resolution parts `ce` and `dice`.

        Raises `JointError` for inputs that do not fit; on a GPU, wrong values in any but the first call are an error of
        the call after it.
        """
        given = self.check(output, labels, annotated, instances)
        stages = [stage.spatial for stage in output.stages]
        return self.of(stages, self.stage_weights(len(stages)), given.labels, given.annotated, counts)

    def of(
        self,
        stages: Sequence[Tensor],
        weights: Sequence[float],
        labels: Tensor,
        annotated: Tensor | None,
        counts: Tensor | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The same of logits (b k d h w) of every stage with these weights, and of what an `InputCheck` has seen."""
        if annotated is not None:
            labels = only_annotated(labels, annotated)
        counted = self._counted(labels, annotated)
        scores = counted.sum() if counts is None else counts[0]
        total, parts = labels.new_zeros((), dtype=torch.float32), dict[str, Tensor]()
        for i, (weight, logits) in enumerate(zip(weights, stages, strict=True), start=1):
            if weight == 0:
                continue
            wide = at_least_float32(logits)
            wide = wide if annotated is None else merge_unannotated(wide, annotated)
            target = nearest_labels(labels, logits.shape[2:]).long()
            valid = self._valid(target)
            ce, dice = _sums(wide, target, valid, counted)
            voxels = _voxels(target, valid) if counts is None else counts[i]
            ce, dice = ce / voxels.clamp_min(1), dice / scores.clamp_min(1)
            total = total + weight * (self.config.ce_weight * ce + self.config.dice_weight * dice)
            parts = parts or {"ce": ce.detach(), "dice": dice.detach()}
        return total, parts

    def counts(
        self,
        output: HeadOutput,
        labels: Tensor,
        *,
        annotated: Tensor | None = None,
        instances: Tensor | None = None,
    ) -> Tensor:
        """The Dice scores, then the voxels of every stage."""
        return self.counts_of(output, self.check.look(output, labels, annotated, instances))

    def counts_of(self, output: HeadOutput, given: Given) -> Tensor:
        """The same of what an `InputCheck` has seen."""
        stages = [nearest_labels(given.labels, stage.spatial.shape[2:]).long() for stage in output.stages]
        voxels = [_voxels(target, self._valid(target)) for target in stages]
        return torch.stack([self._counted(given.labels, given.annotated).sum(), *voxels])

    def stage_weights(self, stages: int) -> list[float]:
        """Halving, the lowest 0 unless `supervise_lowest`; they sum to 1."""
        return halving_weights(stages, skip_lowest=not self.config.supervise_lowest)

    def _counted(self, labels: Tensor, annotated: Tensor | None) -> Tensor:
        """(b k-1) int64, 1 for every foreground label that has a Dice score in a sample."""
        if annotated is None:
            return labels.new_ones(len(labels), self.num_classes - 1, dtype=torch.int64)
        return annotated[:, 1:].long()

    def _valid(self, target: Tensor) -> Tensor | None:
        """The voxels of a target (b d h w) that count; None: all."""
        # Without an ignore label the check has marked wrong voxels, but for the CPU, where they were an error.
        if self.check.ignore_label is None and is_eager_cpu(target):
            return None
        return target != self.ignore_label


def _voxels(target: Tensor, valid: Tensor | None) -> Tensor:
    return torch.tensor(target.numel(), device=target.device) if valid is None else valid.sum()


def _sums(logits: Tensor, target: Tensor, valid: Tensor | None, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy summed over voxels, and 1 - Dice over the foreground labels that `counted` (b k-1) has."""
    if valid is not None:
        target, valid = target.masked_fill(~valid, 0).flatten(1), valid.flatten(1)
    ce, overlap, size, reference = dense_sums(logits.flatten(2), target.flatten(1), valid)
    losses = 1 - (2 * overlap + SMOOTH) / (size + reference + SMOOTH)
    return ce, (losses[:, 1:] * counted).sum()
