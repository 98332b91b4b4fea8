"""Numbers that say where a query looked and how far a voxel's sampling points lie."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from maskmed_zoo.explain.observe import BlockAttention, Sampling
from maskmed_zoo.explain.places import voxel_of
from maskmed_zoo.settings import Size3


def attention_facts(block: BlockAttention, query: int, mask: Tensor) -> dict[str, float | None]:
    """About one query: peak over uniform attention, and the shares of attention and of the window within a mask.

    `mask` (d h w) is that of the window; a token counts in so far as it is covered. `prior` is the share of the window
    that was open to the query, None where nothing restricted it.
    """
    weights = block.weights[query]
    size: Size3 = (weights.shape[0], weights.shape[1], weights.shape[2])
    covered = F.adaptive_avg_pool3d(mask.float()[None, None], size)[0, 0]
    return {
        "peak": float(weights.max() * weights.numel()),
        "inside": float((weights * covered).sum()),
        "inside_if_uniform": float(covered.mean()),
        "prior": None if block.prior is None else float(block.prior[query].mean()),
    }


def sampling_facts(sampling: Sampling, queries: slice, extent: Tensor) -> list[dict[str, Any]]:
    """For each level: mean distance of the points from their query's centre in mm, and shares of weight.

    The mean is over `queries`, heads and points; `weighted_distance_mm` weights the points by attention. `weight` is
    the level's share, `outside` the share of that which lies outside of the window. `extent` (3) is its size in mm.
    """
    locations, weights = sampling.locations[queries], sampling.weights[queries]
    distances = torch.linalg.vector_norm((locations - sampling.centers[queries, None, None, None]) * extent, dim=-1)
    is_outside = ((locations < 0) | (locations > 1)).any(-1)
    facts: list[dict[str, Any]] = []
    for index, level in enumerate(sampling.levels):
        d, w = distances[:, :, index], weights[:, :, index]
        total = float(w.sum())
        facts.append(
            {
                "level": level,
                "distance_mm": float(d.mean()),
                "weighted_distance_mm": float((d * w).sum()) / total if total else None,
                "weight": total / float(weights.sum()),
                "outside": float((w * is_outside[:, :, index]).sum()) / total if total else None,
            }
        )
    return facts


def finest_query(sampling: Sampling, voxel: Size3, window: Size3) -> int:
    """The query that holds a voxel of the window, among those of the finest query level."""
    _, height, width = sampling.query_sizes[0]
    z, y, x = voxel_of(voxel, window, sampling.query_sizes[0])
    return (z * height + y) * width + x
