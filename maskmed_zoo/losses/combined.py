"""The map that query heads are used for: p_k(v) ∝ Σ_n class probability n, k times mask probability n, v.

`StageOutput.log_probabilities` floors it at 1e-6, below which there is no gradient. For a loss it is wanted as it is:
the masks are divided by the largest one at each voxel, which the softmax over labels takes out again, so that no sum is
too small for float32 unless class logits lie more than 80 apart.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from maskmed_zoo.contracts import at_least_float32, full_precision

TINY = torch.finfo(torch.float32).tiny


def combined_logits(masks: Tensor, class_logits: Tensor) -> Tensor:
    """(b k d h w), of which the softmax over k is the combined map of masks (b n d h w) and class logits (b n k+1)."""
    with full_precision(masks):
        log_masks = F.logsigmoid(at_least_float32(masks))
        shares = (log_masks - log_masks.detach().amax(1, keepdim=True)).exp()
        classes = at_least_float32(class_logits).softmax(-1)[..., :-1]
        return torch.einsum("bnk,bndhw->bkdhw", classes, shares).clamp_min(TINY).log()
