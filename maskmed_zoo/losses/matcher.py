"""The matcher: which query answers for which target (MaskMed §3.5; DETR, MaskFormer).

Costs are means over voxels in float32 outside autocast (a sum over a patch overflows float16), the assignment is
`scipy.optimize.linear_sum_assignment`, and all that the host must know goes there in one copy.
Compared in the tests with Hugging Face's `Mask2FormerHungarianMatcher` and with scipy over all permutations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from maskmed_zoo.contracts import full_precision
from maskmed_zoo.errors import JointError, NonFiniteError
from maskmed_zoo.losses.fused import cache_sized, softplus

Weights = tuple[float, float, float]
"""Class, BCE and Dice."""


@torch.no_grad()
def matching_costs(
    masks: Tensor,
    class_logits: Tensor,
    targets: Tensor,
    target_classes: Tensor,
    *,
    weights: Weights,
    valid: Tensor | None = None,
) -> Tensor:
    """Cost (b n t) float32 of giving target t to query n: class, BCE and Dice terms times `weights`.

    Args:
        masks: (b n v) mask logits over voxels or points.
        class_logits: (b n k+1).
        targets: (b t v) masks, bool or in [0, 1].
        target_classes: (b t) label of each target.
        weights: class, BCE and Dice.
        valid: (b 1 v) bool, false where a voxel is to be ignored; None: all count.
    """
    index = target_classes.unsqueeze(1).expand(-1, masks.shape[1], -1)
    with full_precision(masks):
        class_cost = -class_logits.float().softmax(-1).gather(2, index)
        stretches = cache_sized(masks.shape[-1], masks.shape[0] * masks.shape[1], masks.device)
        sums = [_sums(masks[..., at], targets[..., at], None if valid is None else valid[..., at]) for at in stretches]
        products, overlap, size = (sum(x[1:], start=x[0]) for x in zip(*sums, strict=True))
        voxels = masks.shape[-1] if valid is None else valid.sum(-1, keepdim=True).clamp_min(1)
        dice_cost = 1 - (2 * overlap + 1) / (size + 1)
        return weights[0] * class_cost + weights[1] * products / voxels + weights[2] * dice_cost


def _sums(masks: Tensor, targets: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(b n t) each over voxels: BCE, σ(m) t, and σ(m) + t."""
    masks, targets = masks.float(), targets.float()
    rising, probabilities = softplus(masks), masks.sigmoid()
    if valid is not None:
        rising, probabilities, targets = rising * valid, probabilities * valid, targets * valid
    # BCE with logits is softplus(m) - m t.
    bce = rising.sum(-1, keepdim=True) - torch.einsum("bnv,btv->bnt", masks, targets)
    size = probabilities.sum(-1).unsqueeze(2) + targets.sum(-1).unsqueeze(1)
    return bce, torch.einsum("bnv,btv->bnt", probabilities, targets), size


def mask_terms(bce: Tensor, probabilities: Tensor, target: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """BCE and Dice (...) of masks (... v): BCE as a mean over voxels, Dice with 1 added above and below.

    `valid` (... v) bool, false where a voxel is to be ignored; None: all count.
    """
    if valid is None:
        mean = bce.mean(-1)
    else:
        target, probabilities = target * valid, probabilities * valid
        mean = (bce * valid).sum(-1) / valid.sum(-1).clamp_min(1)
    return mean, 1 - (2 * (probabilities * target).sum(-1) + 1) / (probabilities.sum(-1) + target.sum(-1) + 1)


def to_host(*tensors: Tensor) -> list[Tensor]:
    """Small tensors of one device as float32 on the host, in one copy for all."""
    flat = torch.cat([tensor.detach().flatten().float() for tensor in tensors]).cpu()
    pieces = flat.split([tensor.numel() for tensor in tensors])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]


def hungarian(costs: Tensor, present: Tensor) -> Tensor:
    """Cheapest one-to-one assignment of the present targets to queries; of too many targets, the cheapest.

    `costs` (b n t), `present` (b t) bool, both on the host. Returns (b n) int64: the target of each query, or -1 for
    no object. Raises `NonFiniteError` for a NaN or infinite cost.
    """
    from scipy.optimize import linear_sum_assignment  # a third of a second, for those who match

    if not costs.isfinite().all():
        raise NonFiniteError("matching cost is not finite")
    assignment = torch.full(costs.shape[:2], -1, dtype=torch.int64)
    for sample, (table, is_present) in enumerate(zip(costs, present, strict=True)):
        targets = is_present.nonzero()[:, 0]
        rows, columns = linear_sum_assignment(table[:, targets].numpy())
        assignment[sample, torch.from_numpy(rows)] = targets[torch.from_numpy(columns)]
    return assignment


def fixed(present: Tensor, num_queries: int) -> Tensor:
    """Query i answers for target i where that is present: (b n) as `hungarian` returns it.

    Raises `JointError` for fewer queries than targets.
    """
    b, t = present.shape
    if num_queries < t:
        raise JointError(f"{num_queries} queries for {t} labels; 'assigner: fixed' needs one per label, at least")
    index = torch.arange(t, device=present.device).expand(b, t)
    assigned = torch.where(present, index, torch.full_like(index, -1))
    return F.pad(assigned, (0, num_queries - t), value=-1)


@dataclass(frozen=True)
class Pairs:
    """An assignment (b n) and its pairs as indices (m): sample, query, target.

    With `absent` (b t) these targets, which are empty and assigned to nobody, are paired too, each with the query of
    its number. `is_partial`: a sample has partial labels; `rest` (r) are the numbers of the pairs of such samples whose
    target is the background, if it is not empty.
    """

    assignment: Tensor
    sample: Tensor
    query: Tensor
    target: Tensor
    rest: Tensor
    is_partial: bool

    @classmethod
    def of(cls, assignment: Tensor, partial: Tensor, device: torch.device, absent: Tensor | None = None) -> Pairs:
        """From an assignment (b n) on the host, so that `device` is not waited for; partial (b) and absent bool."""
        answers = assignment
        if absent is not None:
            answers = assignment.maximum(fixed(absent, assignment.shape[1]))
        sample, query = (answers >= 0).nonzero(as_tuple=True)
        target = answers[sample, query]
        rest = (partial[sample] & (assignment[sample, query] == 0)).nonzero()[:, 0]
        parts = (assignment.flatten(), sample, query, target, rest)
        moved = torch.cat(parts).to(device, non_blocking=True).split([len(part) for part in parts])
        return cls(moved[0].view_as(assignment), *moved[1:], is_partial=bool(partial.any()))

    def __len__(self) -> int:
        return len(self.sample)
