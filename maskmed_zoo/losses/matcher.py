"""The matcher: which query answers for which target (MaskMed §3.5; DETR, MaskFormer).

Costs are means over voxels in float32 outside autocast (a sum over a patch overflows float16), the assignment is
`scipy.optimize.linear_sum_assignment`, and the whole batch goes to the host in one copy.
Compared in the tests with Hugging Face's `Mask2FormerHungarianMatcher` and with scipy over all permutations.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from maskmed_zoo.contracts import full_precision
from maskmed_zoo.errors import NonFiniteError

Weights = tuple[float, float, float]
"""Class, BCE and Dice."""


@torch.no_grad()
def matching_costs(
    masks: Tensor, class_logits: Tensor, targets: Tensor, target_classes: Tensor, *, valid: Tensor, weights: Weights
) -> Tensor:
    """Cost (b n t) float32 of giving target t to query n: class, BCE and Dice terms times `weights`.

    Args:
        masks: (b n v) mask logits over voxels.
        class_logits: (b n k+1).
        targets: (b t v) float binary masks.
        target_classes: label of each target (t).
        valid: (b 1 v) float, 0 where a voxel is to be ignored.
        weights: class, BCE and Dice.
    """
    with full_precision(masks):
        masks, class_logits = masks.float(), class_logits.float()
        voxels = valid.sum(-1, keepdim=True).clamp_min(1)
        targets = targets * valid
        class_cost = -class_logits.softmax(-1)[..., target_classes]
        # BCE with logits is softplus(m) - m·t, voxel by voxel.
        softplus = (F.softplus(masks) * valid).sum(-1, keepdim=True)
        bce_cost = (softplus - torch.einsum("bnv,btv->bnt", masks, targets)) / voxels
        probabilities = masks.sigmoid() * valid
        overlap = torch.einsum("bnv,btv->bnt", probabilities, targets)
        size = probabilities.sum(-1).unsqueeze(2) + targets.sum(-1).unsqueeze(1)
        dice_cost = 1 - (2 * overlap + 1) / (size + 1)
        return weights[0] * class_cost + weights[1] * bce_cost + weights[2] * dice_cost


def hungarian(costs: Tensor, present: Tensor) -> Tensor:
    """Cheapest one-to-one assignment of the present targets to queries.

    `costs` (b n t), `present` (b t) bool. Returns (b n) int64 on the device of `costs`: the target of each query, or
    -1 for no object. Raises `NonFiniteError` for a NaN or infinite cost.
    """
    host = torch.cat([costs.flatten(1), present.to(costs.dtype)], 1).cpu()
    if not host.isfinite().all():
        raise NonFiniteError("matching cost is not finite: the masks or class logits of the full-resolution stage are")
    b, n, t = costs.shape
    table, is_present = host[:, : n * t].view(b, n, t).numpy(), host[:, n * t :].bool().numpy()
    assignment = torch.full((b, n), -1, dtype=torch.int64)
    for sample in range(b):
        targets = is_present[sample].nonzero()[0]
        rows, columns = linear_sum_assignment(table[sample][:, targets])
        assignment[sample, torch.from_numpy(rows)] = torch.from_numpy(targets[columns])
    return assignment.to(costs.device)


def fixed(present: Tensor, num_queries: int) -> Tensor:
    """Query i answers for target i where that is present: (b n) as `hungarian` returns it."""
    b, t = present.shape
    index = torch.arange(t, device=present.device).expand(b, t)
    assigned = torch.where(present, index, torch.full_like(index, -1))
    return F.pad(assigned, (0, num_queries - t), value=-1)
