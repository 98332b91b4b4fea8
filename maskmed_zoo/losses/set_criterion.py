"""The set criterion of query heads: match once on the full-resolution stage, then class, BCE and Dice at every stage.

MaskMed §3.5, Eq. 6. Targets are the labels present in the patch, background included; an unmatched query is "no
object". Where the paper is silent: cost weights equal loss weights; class loss is averaged over queries, mask losses
over matched pairs (MaskFormer); stage targets by max-pooling; see the config for the rest.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from maskmed_zoo.contracts import ComponentConfig, HeadOutput, Loss, StageOutput, full_precision
from maskmed_zoo.errors import JointError, NonFiniteError
from maskmed_zoo.losses.matcher import fixed, hungarian, matching_costs
from maskmed_zoo.losses.stages import halving_weights, label_masks, pool_max

TINY = torch.finfo(torch.float32).tiny


class SetCriterionConfig(ComponentConfig):
    """Settings of `set_criterion`; the weights 2 : 10 : 10 are the paper's best (Table 7)."""

    kind: Literal["set_criterion"] = "set_criterion"
    class_weight: float = Field(default=2.0, ge=0)
    bce_weight: float = Field(default=10.0, ge=0)
    dice_weight: float = Field(default=10.0, ge=0)
    no_object_weight: float = Field(default=1.0, ge=0, description="weight of 'no object' in the class loss")
    assigner: Literal["hungarian", "fixed"] = Field(
        default="hungarian", description="fixed: query i answers for label i"
    )


class SetCriterion(Loss):
    """Set prediction loss over a query head's output."""

    Config = SetCriterionConfig
    accepts = "queries"
    class_weights: Tensor

    def __init__(
        self, *, num_classes: int, config: SetCriterionConfig | None = None, ignore_label: int | None = None
    ) -> None:
        super().__init__()
        self.config = config or SetCriterionConfig()
        self.num_classes, self.ignore_label = num_classes, ignore_label
        class_weights = torch.ones(num_classes + 1)
        class_weights[-1] = self.config.no_object_weight
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(
        self,
        output: HeadOutput,
        labels: Tensor,
        *,
        annotated: Tensor | None = None,
        instances: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Labels (b d h w); returns the weighted sum over stages and the full-resolution `class`, `bce`, `dice`.

        Raises `NonFiniteError` if a matching cost or a stage's loss is not finite.
        """
        with full_precision(labels):
            full = label_masks(labels, self.num_classes, labels.shape[1:])
            ignored = torch.zeros_like(labels) if self.ignore_label is None else labels == self.ignore_label
            ignored = ignored.unsqueeze(1).float()
            assignment = self.assign(output.stages[0], full, 1 - ignored)
            weights = self.stage_weights(len(output.stages))
            total, parts = full.new_zeros(()), dict[str, Tensor]()
            for index, (weight, stage) in enumerate(zip(weights, output.stages, strict=True)):
                size = stage.spatial.shape[2:]
                terms = self._stage(stage, pool_max(full, size), 1 - pool_max(ignored, size), assignment)
                value = sum((self._weight(name) * term for name, term in terms.items()), start=full.new_zeros(()))
                if not value.isfinite():
                    raise NonFiniteError(f"loss of stage {index} is not finite: {_describe(terms)}")
                total = total + weight * value
                parts = parts or {name: term.detach() for name, term in terms.items()}
            return total, parts

    def stage_weights(self, stages: int) -> list[float]:
        """Halving with every halving of resolution; they sum to 1."""
        return halving_weights(stages)

    def assign(self, stage: StageOutput, targets: Tensor, valid: Tensor) -> Tensor:
        """(b n) the label each query answers for, -1 for none; targets (b k d h w), valid (b 1 d h w), both float."""
        masks, class_logits = _query_tensors(stage)
        present = (targets * valid).flatten(2).amax(-1) > 0
        if self.config.assigner == "fixed":
            return fixed(present, masks.shape[1])
        classes = torch.arange(self.num_classes, device=masks.device)
        weights = (self.config.class_weight, self.config.bce_weight, self.config.dice_weight)
        costs = matching_costs(
            masks.flatten(2), class_logits, targets.flatten(2), classes, valid=valid.flatten(2), weights=weights
        )
        return hungarian(costs, present)

    def _stage(self, stage: StageOutput, targets: Tensor, valid: Tensor, assignment: Tensor) -> dict[str, Tensor]:
        masks, class_logits = _query_tensors(stage)
        classes = torch.where(assignment >= 0, assignment, self.num_classes)
        # A sample without any target holds ignored voxels alone, and says nothing about its queries.
        known = (assignment >= 0).any(1, keepdim=True).float()
        class_values = F.cross_entropy(
            class_logits.float().transpose(1, 2), classes, self.class_weights, reduction="none"
        )
        class_loss = (class_values * known).sum() / (self.class_weights[classes] * known).sum().clamp_min(TINY)
        sample, query = (assignment >= 0).nonzero(as_tuple=True)
        matched = masks[sample, query].float().flatten(1)
        target = targets[sample, assignment[sample, query]].flatten(1)
        mask = valid[sample, 0].flatten(1)
        if len(sample) == 0:
            nothing = masks.sum() * 0
            return {"class": class_loss, "bce": nothing, "dice": nothing}
        target = target * mask
        bce = F.binary_cross_entropy_with_logits(matched, target, reduction="none") * mask
        bce = bce.sum(1) / mask.sum(1).clamp_min(1)
        probabilities = matched.sigmoid() * mask
        dice = 1 - (2 * (probabilities * target).sum(1) + 1) / (probabilities.sum(1) + target.sum(1) + 1)
        return {"class": class_loss, "bce": bce.mean(), "dice": dice.mean()}

    def _weight(self, term: str) -> float:
        return float(getattr(self.config, f"{term}_weight"))


def _query_tensors(stage: StageOutput) -> tuple[Tensor, Tensor]:
    if stage.masks is None or stage.class_logits is None:
        raise JointError("loss 'set_criterion' needs masks and class logits; use 'ce_dice' for heads that give logits")
    return stage.masks, stage.class_logits


def _describe(terms: dict[str, Tensor]) -> str:
    return ", ".join(f"{name} {value.item():g}" for name, value in terms.items())
