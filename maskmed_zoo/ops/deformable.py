"""3-D multi-scale deformable attention: for each query, head, level and point, sample a value and add it, weighted.

The operation of Deformable DETR (Zhu et al. 2021, Eq. 3) in three dimensions, as MaskMed's FSAD uses it (§3.3, App. B).
At D = 1 it equals the 2-D `multi_scale_deformable_attention` of Hugging Face transformers. The work is done by one of
the backends beside this file; docs/reference/deformable-attention.md compares them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskmed_zoo.contracts import full_precision
from maskmed_zoo.ops import reference, registration
from maskmed_zoo.ops.arguments import check
from maskmed_zoo.ops.backend import Backend, resolve
from maskmed_zoo.ops.registration import FLOP_FORMULAS
from maskmed_zoo.settings import Size3

__all__ = ["FLOP_FORMULAS", "Backend", "deformable_attention"]


def deformable_attention(
    values: Tensor, shapes: Sequence[Size3], locations: Tensor, weights: Tensor, *, backend: Backend = "auto"
) -> Tensor:
    """Sum over levels and points of `weights` times the trilinearly sampled `values`.

    Args:
        values: (b s h c), the levels flattened in z, y, x order one after the other, s = sum of their voxels; float32,
            bfloat16, float16 or float64. Sums are made in float32 (float64 for float64 values).
        shapes: (d h w) of each level, Python ints. A level may be empty.
        locations: (b q h l p 3) in z, y, x order, float32; 0 and 1 are the outer faces of the volume, so voxel i of n
            has its centre at (i + 0.5) / n (`align_corners=False`).
        weights: (b q h l p), float32.
        backend: "native" (CPU), "triton" (CUDA), "torch" (everywhere), or "auto", the fastest one there is.

    Outside a level the value is zero, voxel by voxel of the interpolation; a NaN, infinite or huge location adds
    exactly nothing. Locations and weights are used in float32 (or float64 where the values are) even under autocast:
    rounding coordinates to bfloat16 costs 10 % error. Differentiable once (the backend "torch" also twice).
    Returns (b q h c) in the dtype of `values`.
    Raises `ValueError` if shapes, tensors, their types or devices disagree, `UserError` if a backend asked for is not
    there.
    """
    flat = [n for d, h, w in shapes for n in (d, h, w)]
    check(values, locations, weights, flat)
    precision = torch.promote_types(values.dtype, torch.float32)
    locations, weights = locations.to(precision), weights.to(precision)
    if resolve(backend, values.device.type) == "torch":
        with full_precision(values):
            return reference.attend(values, flat, locations, weights)
    return registration.forward(values, locations, weights, flat)
