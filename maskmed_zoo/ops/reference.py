"""Deformable attention in plain PyTorch: what every other backend is compared with, and where there is no other.

With gradients, under `torch.compile`, in an export and off the CPU: one `grid_sample` per level, accumulated, so that
no stack of samples is kept. On the CPU without gradients: `embedding_bag` on the values as they lie in memory, which
reads rows of channels and needs no transposed copy; queries in chunks, so that the indices of their corners stay in the
cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 1 << 17  # corners whose rows and weights are held at a time


def attend(values: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """(b q h c); arguments as those of `deformable_attention`, shapes flat, locations and weights in full precision."""
    differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in (values, locations, weights))
    if differentiable or values.device.type != "cpu" or torch.compiler.is_compiling():
        return sample_levels(values, shapes, locations, weights)
    output = gather_rows(values, shapes, locations, weights)
    # A corner outside reads some row with weight zero, and zero times infinity is not zero.
    return output if output.isfinite().all() else sample_levels(values, shapes, locations, weights)


def backward(
    grad: Tensor, values: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of values, locations and weights, given the one (b q h c) of the output."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (values, locations, weights)]
        output = sample_levels(leaves[0], shapes, leaves[1], leaves[2])
    of_values, of_locations, of_weights = torch.autograd.grad(output, leaves, grad, materialize_grads=True)
    return of_values, of_locations, of_weights


def sample_levels(values: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """One `grid_sample` per level; differentiable, also twice."""
    b, _, h, c = values.shape
    _, q, _, levels, p, _ = locations.shape
    precision = locations.dtype
    finite = locations.isfinite().all(-1, keepdim=True)
    # Far outside is as good as infinity; the bound keeps the sampler's integer arithmetic defined.
    grid = torch.where(finite, locations * 2 - 1, -4.0).clamp(-4.0, 4.0)
    grid = grid.flip(-1).permute(3, 0, 2, 1, 4, 5).reshape(levels, b * h, q, p, 1, 3)
    scale = weights.permute(3, 0, 2, 1, 4).reshape(levels, b * h, 1, q, p)
    result = values.new_zeros((b * h, c, q), dtype=precision)
    start = 0
    for level in range(levels):
        depth, height, width = shapes[3 * level : 3 * level + 3]
        part = values[:, start : start + depth * height * width]
        start += depth * height * width
        if part.shape[1] == 0:
            continue
        volume = part.to(precision).permute(0, 2, 3, 1).reshape(b * h, c, depth, height, width)
        sampled = F.grid_sample(volume, grid[level], mode="bilinear", padding_mode="zeros", align_corners=False)
        result = result + (sampled.squeeze(-1) * scale[level]).sum(-1)
    return result.reshape(b, h, c, q).permute(0, 3, 1, 2).to(values.dtype)


def gather_rows(values: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """`embedding_bag` on rows of channels, a chunk of queries at a time; without gradients."""
    b, s, h, c = values.shape
    q, levels, points = weights.shape[1], weights.shape[3], weights.shape[4]
    output = values.new_zeros((b, q, h, c))
    if output.numel() == 0 or values.numel() == 0 or points == 0:
        return output
    rows = values.to(locations.dtype).reshape(b * s * h, c)
    index = torch.int32 if rows.shape[0] < 2**31 else torch.int64
    extents = torch.tensor(shapes).view(levels, 1, 3)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), extents.prod(-1).flatten().cumsum(0)[:-1]])
    used = [level for level in range(levels) if all(shapes[3 * level : 3 * level + 3])]
    size = max(1, CHUNK // (8 * len(used) * points * h))
    extents = extents[used].to(index)
    heads = torch.arange(h, dtype=index).view(h, 1, 1)
    for batch in range(b):
        first = ((starts[used] + batch * s) * h).to(index).view(-1, 1) + heads
        for at in range(0, q, size):
            chunk = slice(at, at + size)
            where, share = locations[batch, chunk], weights[batch, chunk]
            if len(used) < levels:
                where, share = where[:, :, used], share[:, :, used]
            indices, scales = corners(where, share, extents, first, h)
            bags = indices.numel() // (8 * len(used) * points)
            summed = F.embedding_bag(indices.view(bags, -1), rows, mode="sum", per_sample_weights=scales.view(bags, -1))
            output[batch, chunk] = summed.view(-1, h, c)
    return output


def corners(
    locations: Tensor, weights: Tensor, extents: Tensor, first: Tensor, step: int
) -> tuple[Tensor, Tensor]:
    """Rows and weights (q h l p 2 2 2) of the corners of samples (q h l p 3).

    `extents` (l 1 3) voxels, `first` (h l 1) the row of each level's first voxel, `step` rows from voxel to voxel. A
    corner outside has weight zero and the row of the nearest voxel inside.
    """
    position = locations * extents - 0.5
    # Of the samples outside, NaN among them, both voxels per axis are outside.
    position = torch.where((position > -1) & (position < extents), position, -2.0)
    low = position.floor()
    share = position - low
    low = low.to(extents.dtype).unsqueeze(-1)
    sides = torch.cat([low, low + 1], -1)  # (q h l p 3 2)
    inside = (sides >= 0) & (sides < extents.unsqueeze(-1))
    shares = torch.stack([1 - share, share], -1).mul_(inside)
    sides = sides.clamp_min_(0).minimum(extents.unsqueeze(-1) - 1)
    height, width = extents[..., 1, None], extents[..., 2, None]
    z, y, x = sides.unbind(-2)
    plane = (z.mul(height).unsqueeze(-1) + y.unsqueeze(-2)).mul_(width.unsqueeze(-1)).mul_(step)
    plane += first[..., None, None]
    z, y, x_share = shares.unbind(-2)
    scale = (z * weights.unsqueeze(-1)).unsqueeze(-1) * y.unsqueeze(-2)
    row = plane.unsqueeze(-1) + x.mul(step)[..., None, None, :]
    return row, scale.unsqueeze(-1) * x_share[..., None, None, :]
