"""The set criterion of query heads: match queries with targets, then class, BCE and Dice at every output.

MaskMed §3.5, Eq. 6. Targets are the labels present in the patch, background included, or its instances; an unmatched
query is "no object". Where the paper is silent: cost weights equal loss weights; class loss is averaged over queries,
mask losses over matched pairs (MaskFormer); stage targets by max-pooling; see the config for the rest, and `partial`
for labels that are not annotated.

With `match: per_stage`, `stage_weighting: equal` and `points: 12544` this is Mask2Former's criterion (MaskMed App. D.1)
but for its total: that is the sum over outputs, here it is their mean, so that no loss grows with the number of
outputs; multiply by that number to compare. Mask2Former's weights are 2 : 5 : 5 and 0.1 for "no object".

Beyond the paper: what is predicted is the sum over queries of class probability times mask probability, and none of
these terms trains it as such. `semantic_weight` adds cross-entropy and soft Dice (`ce_dice`) of that map, see
`combined`, against the labels, at every output; the instances of a label count as one there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from maskmed_zoo.contracts import ComponentConfig, HeadOutput, Loss, StageOutput, at_least_float32, full_precision
from maskmed_zoo.errors import JointError, NonFiniteError
from maskmed_zoo.losses.ce_dice import CEDiceLoss
from maskmed_zoo.losses.combined import combined_logits
from maskmed_zoo.losses.fused import mask_sums
from maskmed_zoo.losses.inputs import InputCheck
from maskmed_zoo.losses.matcher import Pairs, fixed, hungarian, mask_terms, matching_costs, to_host
from maskmed_zoo.losses.partial import (
    claimed_share,
    explain_rest,
    log_unclaimed,
    only_annotated,
    partial_costs,
    unmatched_class_loss,
)
from maskmed_zoo.losses.points import at_points, uncertain_points, uniform_points
from maskmed_zoo.losses.stages import halving_weights
from maskmed_zoo.losses.targets import Targets, instance_targets, label_targets
from maskmed_zoo.settings import Points, Size3

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
    absent: Literal["free", "empty"] = Field(
        default="free",
        description="fixed: masks of labels that are not in a patch have no loss, or that of an empty mask",
    )
    prior_noise: float = Field(
        default=0.0,
        ge=0,
        le=0.5,
        description="in training query i looks in the first block where label i is, up to this share of voxels "
        "flipped, in ever fewer patches (MP-Former); hungarian: whatever query i is matched with; 0: never",
    )
    match: Literal["once", "per_stage"] = Field(
        default="once", description="once: on the final, full-resolution output; per_stage: anew on each (Mask2Former)"
    )
    stage_weighting: Literal["halving", "equal"] = Field(
        default="halving", description="weights of the outputs, which sum to 1: each half of the one before, or equal"
    )
    points: Points | None = Field(
        default=None, description="mask terms on so many sampled points (Mask2Former: 12544); null: on all voxels"
    )
    semantic_weight: float = Field(
        default=0.0,
        ge=0,
        description="of cross-entropy and Dice of the combined map; 0: the loss of the paper",
    )

    @model_validator(mode="after")
    def _fixed_matches_nothing(self) -> Self:
        if self.assigner == "fixed" and self.match == "per_stage":
            raise ValueError("'match: per_stage' needs 'assigner: hungarian'")
        if self.assigner != "fixed" and self.absent == "empty":
            raise ValueError("'absent: empty' needs 'assigner: fixed'")
        return self


class SetCriterion(Loss):
    """Set prediction loss over a query head's output."""

    Config = SetCriterionConfig
    accepts = "queries"

    def __init__(
        self, *, num_classes: int, config: SetCriterionConfig | None = None, ignore_label: int | None = None
    ) -> None:
        super().__init__()
        self.config = config or SetCriterionConfig()
        self.num_classes, self.ignore_label = num_classes, ignore_label
        self.check = InputCheck(num_classes, ignore_label, self.accepts)
        self.semantic = CEDiceLoss(num_classes=num_classes, ignore_label=ignore_label)

    def forward(
        self,
        output: HeadOutput,
        labels: Tensor,
        *,
        annotated: Tensor | None = None,
        instances: Tensor | None = None,
        counts: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Labels (b d h w); returns the weighted sum over outputs and the `class`, `bce`, `dice` of the final one.

        With a `semantic_weight` also `ce_combined` and `dice_combined`, with instances (b d h w) also `dropped`, how
        many of them exceed the number of queries. Raises `JointError` for inputs that do not fit and `NonFiniteError`,
        naming the tensor, if masks, class logits or a cost are not finite.
        """
        given = self.check.look(output, labels, annotated, instances)
        annotated, instances = given.annotated, given.instances
        with full_precision(given.labels):
            full = self.targets(given.labels, annotated, instances)
            targets = [full.at(stage.spatial.shape[2:]) for stage in output.stages]
            pairs = self.assign(output.stages, targets, annotated, given.seen)
            total, parts = torch.zeros((), device=given.labels.device), dict[str, Tensor]()
            weights = self.stage_weights(len(output.stages))
            for weight, stage, at_stage, matched in zip(weights, output.stages, targets, pairs, strict=True):
                terms = self._stage(stage, at_stage, matched, annotated, counts)
                total = total + weight * sum(getattr(self.config, f"{name}_weight") * x for name, x in terms.items())
                parts = parts or {name: term.detach() for name, term in terms.items()}
            if self.config.semantic_weight:
                maps = [combined_logits(*_query_tensors(stage)) for stage in output.stages]
                of = None if counts is None else counts[3:]
                semantic, terms = self.semantic.of(maps, weights, given.labels, annotated, of)
                total = total + self.config.semantic_weight * semantic
                parts |= {f"{name}_combined": term for name, term in terms.items()}
            if instances is not None:
                parts["dropped"] = (full.present.sum() - (pairs[0].assignment >= 0).sum()).float()
            return total, parts

    def counts(
        self,
        output: HeadOutput,
        labels: Tensor,
        *,
        annotated: Tensor | None = None,
        instances: Tensor | None = None,
    ) -> Tensor:
        """Matched queries, as many as targets if there are enough, unmatched ones of samples with a target, and masks.

        With a `semantic_weight` those of `ce_dice` follow.
        """
        given = self.check.look(output, labels, annotated, instances)
        queries = _query_tensors(output.stages[0])[0].shape[1]
        present = self.targets(given.labels, given.annotated, given.instances).present
        matched = present.sum(1).clamp_max(queries)
        masks = matched.sum() + self._absent(present, given.annotated).sum()
        counted = torch.stack([matched.sum(), ((queries - matched) * (matched > 0)).sum(), masks])
        return torch.cat([counted, self.semantic.counts_of(output, given)]) if self.config.semantic_weight else counted

    def stage_weights(self, stages: int) -> list[float]:
        """Halving with every halving of resolution, or equal; they sum to 1."""
        return [1 / stages] * stages if self.config.stage_weighting == "equal" else halving_weights(stages)

    @torch.no_grad()
    def prior(self, labels: Tensor, size: Size3, *, annotated: Tensor | None, share: float) -> Tensor | None:
        """The masks of labels (b d h w) with noise; all is true for a label that is absent or not annotated."""
        if not self.config.prior_noise:
            return None
        targets = self.targets(labels, annotated).at(size)
        b, t = targets.present.shape
        rate = self.config.prior_noise * torch.rand(b, t, 1, 1, 1, device=labels.device)
        masks = targets.masks ^ (torch.rand(targets.masks.shape, device=labels.device) < rate)
        if targets.ignored is not None:
            masks |= targets.ignored
        is_free = torch.rand(b, 1, device=labels.device) >= share
        return masks | (is_free | ~targets.present)[..., None, None, None]

    def check_instances(self) -> None:
        """Raise `JointError` if these settings cannot separate instances."""
        if self.config.prior_noise:
            raise JointError("loss 'set_criterion' with 'prior_noise' takes no instances; set it to 0")
        if self.config.assigner == "fixed":
            raise JointError("loss 'set_criterion' with 'assigner: fixed' takes no instances; write 'hungarian'")

    def targets(self, labels: Tensor, annotated: Tensor | None = None, instances: Tensor | None = None) -> Targets:
        """What labels (b d h w) hold, as `forward` takes them."""
        if annotated is not None:
            labels = only_annotated(labels, annotated)
        if instances is None:
            return label_targets(labels, self.num_classes, self.ignore_label)
        self.check_instances()
        return instance_targets(labels, instances, self.num_classes, self.ignore_label)

    def assign(
        self,
        stages: Sequence[StageOutput],
        targets: Sequence[Targets],
        annotated: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> list[Pairs]:
        """The pairs of every stage; all that the host must know for it takes one copy, `Given.seen` included."""
        present = targets[0].present
        partial = torch.zeros_like(present[:, 0]) if annotated is None else ~annotated.all(1)
        matched = 0 if self.config.assigner == "fixed" else len(stages) if self.config.match == "per_stage" else 1
        costs = [self._costs(*pair, annotated) for pair in zip(stages[:matched], targets, strict=False)]
        # Finite where every number is, and so far from overflow that the loss is finite too.
        norms = [_norm(x.detach()) for stage in stages for x in _query_tensors(stage)]
        seen = present.new_zeros(0) if seen is None else seen
        on_host = to_host(seen, present, partial, self._absent(present, annotated), torch.stack(norms), *costs)
        self.check.judge(on_host[0])
        present, partial, absent = (x > 0 for x in on_host[1:4])
        _check_finite(on_host[4])
        assignments = [hungarian(table, present) for table in on_host[5:]]
        assignments = assignments or [fixed(present, _query_tensors(stages[0])[0].shape[1])]
        absent, device = absent if self.config.absent == "empty" else None, targets[0].present.device
        pairs = [Pairs.of(assignment, partial, device, absent) for assignment in assignments]
        return pairs if len(pairs) == len(stages) else pairs * len(stages)

    def _absent(self, present: Tensor, annotated: Tensor | None) -> Tensor:
        """(b t) which targets that are not present have a mask loss; none in a sample of ignored voxels alone."""
        if self.config.absent == "free":
            return torch.zeros_like(present)
        absent = ~present & present.any(1, keepdim=True)
        return absent if annotated is None else absent & annotated

    def _costs(self, stage: StageOutput, targets: Targets, annotated: Tensor | None) -> Tensor:
        masks, class_logits = _query_tensors(stage)
        count = self._points_of(masks)
        points = None if count is None else uniform_points(len(masks), count, masks.device)
        weights = (self.config.class_weight, self.config.bce_weight, self.config.dice_weight)
        valid = None if targets.ignored is None else at_points(targets.ignored, points) == 0
        logits, marks = at_points(masks, points), at_points(targets.masks, points)
        costs = matching_costs(logits, class_logits, marks, targets.classes, weights=weights, valid=valid)
        if annotated is None:
            return costs
        return partial_costs(costs, logits, class_logits, marks[:, 0], annotated, weights=weights, valid=valid)

    def _points_of(self, masks: Tensor) -> int | None:
        """How many points of masks (b n d h w) are sampled; None: all voxels are taken."""
        count = self.config.points
        return count if count is not None and count < masks[0, 0].numel() else None

    def _stage(
        self, stage: StageOutput, targets: Targets, pairs: Pairs, annotated: Tensor | None, counts: Tensor | None
    ) -> dict[str, Tensor]:
        losses, weights = self._class_losses(stage, targets, pairs, annotated)
        bce, dice = self._mask_losses(stage, targets, pairs, annotated)
        if counts is None:
            weight, masks = weights.sum(), max(1, len(pairs))
        else:
            matched, unmatched, masks = counts[:3].to(losses.dtype)
            weight, masks = matched + self.config.no_object_weight * unmatched, masks.clamp_min(1)
        return {
            "class": losses.sum() / weight.clamp_min(TINY),
            "bce": bce.sum() / masks,
            "dice": dice.sum() / masks,
        }

    def _class_losses(
        self, stage: StageOutput, targets: Targets, pairs: Pairs, annotated: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(b n) weighted class loss of every query, and its weight."""
        class_logits = at_least_float32(_query_tensors(stage)[1])
        is_matched = pairs.assignment >= 0
        labels = targets.classes.gather(1, pairs.assignment.clamp_min(0))
        labels = torch.where(is_matched, labels, self.num_classes)
        weights = F.pad(class_logits.new_ones(self.num_classes), (0, 1), value=self.config.no_object_weight)
        losses = F.cross_entropy(class_logits.transpose(1, 2), labels, weights, reduction="none")
        if annotated is not None and pairs.is_partial:
            unmatched = self.config.no_object_weight * unmatched_class_loss(class_logits, annotated)
            losses = torch.where(is_matched, losses, unmatched)
        # A sample without any target holds ignored voxels alone, from which its queries learn nothing.
        known = is_matched.any(1, keepdim=True).float()
        return losses * known, weights[labels] * known

    def _mask_losses(
        self, stage: StageOutput, targets: Targets, pairs: Pairs, annotated: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """BCE and Dice (m) of every pair."""
        masks, class_logits = _query_tensors(stage)
        if self._points_of(masks) is None and (annotated is None or not len(pairs.rest)):
            return _dense_mask_losses(masks.flatten(2), targets, pairs)
        rows = at_least_float32(masks[pairs.sample, pairs.query]).unsqueeze(1)
        ignored = None if targets.ignored is None else targets.ignored[pairs.sample]
        count = self._points_of(masks)
        points = None if count is None else uncertain_points(rows, ignored, count)
        logits = at_points(rows, points)[:, 0]
        target = at_points(targets.masks[pairs.sample, pairs.target].unsqueeze(1), points)[:, 0].to(rows.dtype)
        bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        probabilities = logits.sigmoid()
        if annotated is not None and len(pairs.rest):
            rest, sample = pairs.rest, pairs.sample[pairs.rest]
            share = claimed_share(class_logits, annotated) * (pairs.assignment < 0)
            others = at_points(masks.detach()[sample], None if points is None else points[rest])
            log_free = log_unclaimed(others, share[sample]).sum(1)
            joint_bce, joint = explain_rest(logits[rest], target[rest], log_free)
            bce, probabilities = bce.index_copy(0, rest, joint_bce), probabilities.index_copy(0, rest, joint)
        return mask_terms(
            bce, probabilities, target, None if ignored is None else at_points(ignored, points)[:, 0] == 0
        )


def _dense_mask_losses(masks: Tensor, targets: Targets, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """BCE and Dice (m) of every pair over all voxels of masks (b n v), as by `mask_terms`."""
    valid = None if targets.ignored is None else ~targets.ignored.flatten(1)
    marks = targets.masks.flatten(2)
    bce, overlap, size = mask_sums(masks, marks, (pairs.sample, pairs.query, pairs.target), valid)
    if valid is None:
        voxels, area = masks.shape[-1], marks.sum(-1)
    else:
        voxels = valid.sum(-1).clamp_min(1)[pairs.sample]
        area = torch.stack([(marks[:, i] & valid).sum(-1) for i in range(marks.shape[1])], 1)
    return bce / voxels, 1 - (2 * overlap + 1) / (size + area[pairs.sample, pairs.target] + 1)


def _query_tensors(stage: StageOutput) -> tuple[Tensor, Tensor]:
    if stage.masks is None or stage.class_logits is None:
        raise JointError("loss 'set_criterion' needs masks and class logits; use 'ce_dice' for heads that give logits")
    return stage.masks, stage.class_logits


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dtype=torch.promote_types(x.dtype, torch.float32))


def _check_finite(norms: Tensor) -> None:
    """`norms` are those of the masks, then of the class logits, of every stage in turn."""
    names = [f"{name} of stage {i}" for i in range(len(norms) // 2) for name in ("masks", "class logits")]
    bad = [name for name, norm in zip(names, norms, strict=True) if not norm.isfinite()]
    if bad:
        raise NonFiniteError(f"matching cost or loss is not finite: NaN or infinity in {', '.join(bad)}")
