"""Partial labels: in a sample where only some labels are annotated, a voxel v of label 0 has the loss

    -log Σ_{k ∈ {0} ∪ U} p_k(v)  =  log Σ_k exp z_k(v)  -  log Σ_{k ∈ {0} ∪ U} exp z_k(v),

with logits z, probabilities p = softmax(z), and U the labels that are not annotated in the sample. Such a voxel is
background or any label of U, and its likelihood is the marginal one, summed over what it may be (Fang & Yan 2020, Shi
et al. 2021). The class of an unmatched query has the same loss, with "no object" in the place of label 0.

For the masks of queries the alternative would be to ignore the voxels of label 0 in the background's mask. In a data
set where no case is complete there would then be no voxel at all from which the background is learnt. So these voxels
are a target that must be explained: by the background's query, or by an unmatched query that claims a label of U there.
What the latter claim is taken as given (detached): labels that are not annotated give no signal to the masks of those
queries.

The matching is ours. Two labels that are never annotated in the same sample never compete for queries, so that both
would be given to the one query that finds organs at all. A query's share of U is therefore charged to it as a candidate
for a foreground label: a query that stands for a label of U is taken. And a query is a candidate for the background by
how it explains the voxels of label 0, claims of all others included, whatever it does elsewhere; the loss corrects that
later. Otherwise each set of annotated labels trains a background of its own, which covers U. In 30 toy runs of two
organs that were never annotated together, 30 learnt both, and 12 did without the charge. `assigner: fixed` needs
nothing of this.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from maskmed_zoo.contracts import at_least_float32, full_precision
from maskmed_zoo.losses.matcher import Weights, mask_terms

CHARGE = 2.0
"""What a whole share of U costs, in sums of the weights; half of it outweighs what class and Dice can differ by."""


def only_annotated(labels: Tensor, annotated: Tensor) -> Tensor:
    """Labels (b d h w) in which those that are not annotated (b k) become 0; an ignore label stays."""
    known = annotated.gather(1, labels.flatten(1).long().clamp(0, annotated.shape[1] - 1)).view_as(labels)
    return labels.masked_fill(~known & (labels < annotated.shape[1]), 0)


def merge_unannotated(logits: Tensor, annotated: Tensor) -> Tensor:
    """Logits (b k d h w) in which label 0 holds the summed probability of itself and U, and U none (-inf)."""
    open_ = ~annotated[..., None, None, None]
    rest = torch.cat([torch.ones_like(open_[:, :1]), open_[:, 1:]], 1)
    merged = logits.masked_fill(~rest, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([merged, logits[:, 1:].masked_fill(open_[:, 1:], -torch.inf)], 1)


def unmatched_class_loss(class_logits: Tensor, annotated: Tensor) -> Tensor:
    """(b n) minus log of the summed probability of "no object" and U; class logits (b n k+1), annotated (b k)."""
    closed = F.pad(annotated, (0, 1), value=False).unsqueeze(1)
    return -class_logits.log_softmax(-1).masked_fill(closed, -torch.inf).logsumexp(-1)


@torch.no_grad()
def claimed_share(class_logits: Tensor, annotated: Tensor) -> Tensor:
    """(b n) each query's probability of being one of U; class logits (b n k+1), annotated (b k)."""
    return (
        at_least_float32(class_logits).softmax(-1)[..., :-1].masked_fill(annotated.unsqueeze(1), 0).sum(-1).clamp_max(1)
    )


@torch.no_grad()
def log_unclaimed(masks: Tensor, share: Tensor) -> Tensor:
    """(r n v) log-probability that a query does not claim a voxel, 1 - share σ(mask), at least exp(-30).

    masks (r n v) logits, share (r n): `claimed_share`, 0 for those who have no say.
    """
    return torch.log1p(-(share.unsqueeze(-1) * at_least_float32(masks).sigmoid())).clamp_min(-30)


def explain_rest(background: Tensor, target: Tensor, log_free: Tensor) -> tuple[Tensor, Tensor]:
    """BCE and p (... v): the voxels of label 0 explained jointly by the background's query and by the claims of others.

    With `background` logits, `target` 0 or 1, `log_free` the log-probability that no other claims the voxel, ≤ 0:
    p = 1 - (1 - σ(background)) exp(log_free) and BCE = -t log p - (1 - t) log(1 - σ(background)), which without claims
    are the ordinary ones.
    """
    outside = F.logsigmoid(-background)
    log_p = torch.logaddexp(F.logsigmoid(background), outside + (-log_free.expm1()).log())
    return -target * log_p - (1 - target) * outside, log_p.exp()


@torch.no_grad()
def partial_costs(
    costs: Tensor,
    masks: Tensor,
    class_logits: Tensor,
    rest: Tensor,
    annotated: Tensor,
    *,
    weights: Weights,
    valid: Tensor | None,
) -> Tensor:
    """Costs (b n t) of `matching_costs` in samples where not every label is annotated (see above).

    `rest` (b v) is the mask of target 0, the background; the other arguments are those of `matching_costs`.
    """
    with full_precision(masks):
        share = claimed_share(class_logits, annotated)
        log_free = log_unclaimed(masks, share)
        log_free = (log_free.sum(1, keepdim=True) - log_free).clamp_max(0)
        target = at_least_float32(rest).unsqueeze(1)
        inside = target > 0 if valid is None else (target > 0) & valid
        bce, dice = mask_terms(*explain_rest(at_least_float32(masks), target, log_free), target, inside)
        background = -weights[0] * class_logits.float().softmax(-1)[..., 0] + weights[1] * bce + weights[2] * dice
        first = torch.where(~annotated.all(1, keepdim=True), background, costs[..., 0]).unsqueeze(2)
        return torch.cat([first, costs[..., 1:] + CHARGE * sum(weights) * share.unsqueeze(2)], 2)
