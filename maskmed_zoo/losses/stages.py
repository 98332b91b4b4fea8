"""Deep supervision: the weight of every stage and the labels at its resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def halving_weights(stages: int, *, skip_lowest: bool = False) -> list[float]:
    """1, 1/2, 1/4, … normalised to sum 1: 16/31 … 1/31 for five stages (MaskMed §3.5).

    With `skip_lowest` the last one is 0 before normalising, as in nnU-Net (unless there is only one stage).
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


def label_masks(labels: Tensor, num_classes: int, size: Sequence[int]) -> Tensor:
    """(b k d h w) float32 binary masks of every label at `size`, by max-pooling so that no small organ vanishes."""
    masks = torch.stack([labels == k for k in range(num_classes)], 1).float()
    return pool_max(masks, size)


def pool_max(masks: Tensor, size: Sequence[int]) -> Tensor:
    """(b c d h w) max-pooled to `size`; the identity where the size is right."""
    if tuple(masks.shape[2:]) == tuple(size):
        return masks
    return F.adaptive_max_pool3d(masks, tuple(size))
