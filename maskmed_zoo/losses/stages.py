"""Deep supervision: the weight of every stage, and labels and masks at its resolution."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def halving_weights(stages: int, *, skip_lowest: bool = False) -> list[float]:
    """1, 1/2, 1/4, … normalized to sum 1: 16/31 … 1/31 for five stages (MaskMed §3.5).

    With `skip_lowest` the last one is 0 before normalizing, as in nnU-Net (unless there is only one stage).
    """
    weights = [0.5**i for i in range(stages)]
    if skip_lowest and stages > 1:
        weights[-1] = 0.0
    return [w / sum(weights) for w in weights]


def nearest_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Labels (b d h w) at another resolution, nearest voxel (nnU-Net's own way)."""
    if tuple(labels.shape[1:]) == tuple(size):
        return labels
    resized = F.interpolate(labels.unsqueeze(1).float(), tuple(size), mode="nearest-exact")
    return resized.squeeze(1).to(labels.dtype)


def pool_max(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Bool masks (b c d h w) at a coarser `size`: true where any voxel is, so that no small organ vanishes."""
    for axis, goal in zip((2, 3, 4), size, strict=True):
        while masks.shape[axis] > goal and masks.shape[axis] % (2 * goal) == 0:
            pairs = masks.unflatten(axis, (-1, 2))  # halving with `or` is ten times faster than the pooling below
            masks = pairs.select(axis + 1, 0) | pairs.select(axis + 1, 1)
    if tuple(masks.shape[2:]) == tuple(size):
        return masks
    return F.adaptive_max_pool3d(masks.float(), tuple(size)) > 0
