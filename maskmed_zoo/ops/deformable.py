"""3-D multi-scale deformable attention: for each query, head, level and point, sample a value and add it, weighted.

The operation of Deformable DETR (Zhu et al. 2021, Eq. 3) in three dimensions, as MaskMed's FSAD uses it (§3.3, App. B).
At D = 1 it equals the 2-D `multi_scale_deformable_attention` of Hugging Face transformers.
This is the plain PyTorch form: one `grid_sample` per level, accumulated, so that no stack of samples is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from maskmed_zoo.contracts import Size3, full_precision


def deformable_attention(values: Tensor, shapes: Sequence[Size3], locations: Tensor, weights: Tensor) -> Tensor:
    """Sum over levels and points of `weights` times the trilinearly sampled `values`.

    Args:
        values: (b s h c), the levels flattened in z, y, x order one after the other, s = sum of their voxels.
        shapes: (d h w) of each level, Python ints.
        locations: (b q h l p 3) in z, y, x order, float32; 0 and 1 are the outer faces of the volume, so voxel i of n
            has its centre at (i + 0.5) / n (`align_corners=False`).
        weights: (b q h l p), float32.

    Outside a level the value is zero, voxel by voxel of the interpolation; a NaN or infinite location adds nothing.
    Locations and weights are used in float32 (or float64 where the values are) even under autocast: rounding
    coordinates to bfloat16 costs 10 % error. Returns (b q h c) in the dtype of `values`.
    Raises `ValueError` if shapes and tensors disagree.
    """
    b, s, h, c = values.shape
    _, q, _, levels, p, _ = locations.shape
    sizes = [d * y * x for d, y, x in shapes]
    fits = weights.shape == locations.shape[:-1] and locations.shape == (b, q, h, len(shapes), p, 3)
    if not fits or sum(sizes) != s:
        raise ValueError(
            f"deformable_attention: values {tuple(values.shape)}, shapes {list(shapes)}, locations "
            f"{tuple(locations.shape)} and weights {tuple(weights.shape)} do not belong together"
        )
    precision = torch.promote_types(values.dtype, torch.float32)
    with full_precision(values):
        finite = locations.isfinite().all(-1, keepdim=True)
        # Far outside is as good as infinity; the bound keeps the sampler's integer arithmetic defined.
        grid = torch.where(finite, locations.to(precision) * 2 - 1, -4.0).clamp(-4.0, 4.0)
        grid = grid.flip(-1).permute(3, 0, 2, 1, 4, 5).reshape(levels, b * h, q, p, 1, 3)
        scale = weights.to(precision).permute(3, 0, 2, 1, 4).reshape(levels, b * h, 1, q, p)
        result = values.new_zeros((b * h, c, q), dtype=precision)
        for level, (part, shape) in enumerate(zip(values.split(sizes, 1), shapes, strict=True)):
            if part.shape[1] == 0:
                continue
            volume = part.to(precision).permute(0, 2, 3, 1).reshape(b * h, c, *shape)
            sampled = F.grid_sample(volume, grid[level], mode="bilinear", padding_mode="zeros", align_corners=False)
            result = result + (sampled.squeeze(-1) * scale[level]).sum(-1)
        return result.reshape(b, h, c, q).permute(0, 3, 1, 2).to(values.dtype)


def _sampler_flops(_values: object, _grid: object, *_args: object, out_shape: Sequence[int], **_kwargs: object) -> int:
    """Trilinear interpolation of one number: eight multiplications and additions."""
    return 2 * 8 * math.prod(out_shape)


FLOP_FORMULAS = {torch.ops.aten.grid_sampler_3d: _sampler_flops}
"""What `torch.utils.flop_counter.FlopCounterMode(custom_mapping=...)` does not know by itself."""
