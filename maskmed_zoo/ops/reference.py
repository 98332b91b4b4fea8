"""Deformable attention in plain PyTorch: what every other backend is compared with, and where there is no other.

With gradients, under `torch.compile`, in an export and off the CPU it calls `grid_sample` once per level and
accumulates, so that no stack of samples is kept. On the CPU without gradients it calls `embedding_bag` on the values as
they lie in memory, which reads rows of channels and needs no transposed copy; it takes queries in chunks, so that the
indices of their corners stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 1 << 17  # samples whose rows and weights are held at a time


def attend(values: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """(b q h c); arguments as those of `deformable_attention`, shapes flat, locations and weights in full precision."""
    differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in (values, locations, weights))
    if differentiable or values.device.type != "cpu" or torch.compiler.is_compiling():
        return sample_levels(values, shapes, locations, weights)
    output = gather_rows(values, shapes, locations, weights)
    # A corner outside reads some row with weight zero, and zero times infinity is not zero.
    return output if output.isfinite().all() else sample_levels(values, shapes, locations, weights)


def sample_levels(values: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """One `grid_sample` per level; differentiable, also twice."""
    b, _, h, c = values.shape
    q = weights.shape[1]
    grid, scale = _grid(locations, weights)
    result = values.new_zeros((b * h, c, q), dtype=locations.dtype)
    for level, extent, part in _volumes(values, shapes, locations.dtype):
        volume = part.reshape(b * h, c, *extent)
        sampled = F.grid_sample(volume, grid[level], mode="bilinear", padding_mode="zeros", align_corners=False)
        result = result + (sampled.squeeze(-1) * scale[level]).sum(-1)
    return result.reshape(b, h, c, q).permute(0, 3, 1, 2).to(values.dtype)


def backward(
    grad: Tensor, values: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of values, locations and weights, given the one (b q h c) of the output.

    By the sampler's own backward op: inside a registered op there is no autograd.
    """
    b, _, h, c = values.shape
    q, points = weights.shape[1], weights.shape[4]
    grid, scale = _grid(locations, weights)
    grad = grad.to(locations.dtype).permute(0, 2, 3, 1).reshape(b * h, c, q, 1)
    of_values = torch.zeros(values.shape, dtype=locations.dtype, device=values.device)
    of_grid, of_scale = torch.zeros_like(grid), torch.zeros_like(scale)
    start = 0
    for level, extent, part in _volumes(values, shapes, locations.dtype):
        volume = part.reshape(b * h, c, *extent)
        sampled = F.grid_sample(volume, grid[level], mode="bilinear", padding_mode="zeros", align_corners=False)
        of_scale[level] = (sampled.squeeze(-1) * grad).sum(1, keepdim=True)
        of_volume, of_grid[level] = torch.ops.aten.grid_sampler_3d_backward(
            (grad * scale[level]).unsqueeze(-1), volume, grid[level], 0, 0, False, [True, True]
        )
        voxels = extent[0] * extent[1] * extent[2]
        of_values[:, start : start + voxels] = of_volume.view(b, h, c, voxels).permute(0, 3, 1, 2)
        start += voxels
    of_locations = 2 * of_grid.view(len(grid), b, h, q, points, 3).permute(1, 3, 2, 0, 4, 5).flip(-1)
    of_weights = of_scale.view(len(grid), b, h, q, points).permute(1, 3, 2, 0, 4)
    return of_values.to(values.dtype), of_locations, of_weights


def _grid(locations: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(l bh q p 1 3) as `grid_sample` takes it, and weights (l bh 1 q p)."""
    b, q, h, levels, p, _ = locations.shape
    finite = locations.isfinite().all(-1, keepdim=True)
    # Far outside is as good as infinity; the bound keeps the sampler's integer arithmetic defined.
    grid = torch.where(finite, locations * 2 - 1, -4.0).clamp(-4.0, 4.0)
    grid = grid.flip(-1).permute(3, 0, 2, 1, 4, 5).reshape(levels, b * h, q, p, 1, 3)
    return grid, weights.permute(3, 0, 2, 1, 4).reshape(levels, b * h, 1, q, p)


def _volumes(values: Tensor, shapes: Sequence[int], precision: torch.dtype) -> Iterator[tuple[int, list[int], Tensor]]:
    """Number, (d h w) and values (b h c s) of every level that is not empty."""
    start = 0
    for level in range(len(shapes) // 3):
        extent = list(shapes[3 * level : 3 * level + 3])
        part = values[:, start : start + extent[0] * extent[1] * extent[2]]
        start += part.shape[1]
        if part.shape[1]:
            yield level, extent, part.to(precision).permute(0, 2, 3, 1)


def gather_rows(values: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """`embedding_bag` on rows of channels, a chunk of queries at a time; without gradients."""
    b, s, h, c = values.shape
    q, levels, points = weights.shape[1], weights.shape[3], weights.shape[4]
    output = values.new_zeros((b, q, h, c))
    if output.numel() == 0 or values.numel() == 0 or points == 0:
        return output
    rows = values.to(locations.dtype).reshape(b * s * h, c)
    extents = torch.tensor(shapes, device=values.device).view(levels, 3)
    starts = extents.prod(-1).cumsum(0) - extents.prod(-1)
    used = [level for level in range(levels) if all(shapes[3 * level : 3 * level + 3])]
    size = min(q, max(1, CHUNK // (len(used) * points * h)))
    # Everything per sample has the samples' shape in full, so that every step below runs over memory in one go.
    sample = (size, h, len(used), points)
    index = torch.int32 if rows.shape[0] < 2**31 else torch.int64
    heads = torch.arange(h, device=values.device).view(h, 1)
    extent = [e.view(-1, 1).expand(sample).to(index) for e in extents[used].unbind(-1)]
    for batch in range(b):
        first = ((starts[used] + batch * s) * h + heads).unsqueeze(-1).expand(sample).to(index)
        for at in range(0, q, size):
            where, share = locations[batch, at : at + size, :, used], weights[batch, at : at + size, :, used]
            n = len(where)
            summed = _sum_corners(rows, where, share, extents=[e[:n] for e in extent], first=first[:n], step=h)
            output[batch, at : at + n] = summed.view(n, h, c)
    return output


def _sum_corners(
    rows: Tensor, locations: Tensor, weights: Tensor, *, extents: list[Tensor], first: Tensor, step: int
) -> Tensor:
    """(q * h c) sums over the corners of samples (q h l p 3), one after the other.

    `extents` voxels per axis and `first`, the row of the level's first voxel, per sample; `step` rows from voxel to
    voxel. A corner outside has weight zero and the row of the nearest voxel inside.
    """
    sides: list[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]] = []  # per axis: voxel and share, low and high
    for at, extent in zip(locations.unbind(-1), extents, strict=True):
        position = (at * extent).sub_(0.5)
        # Of the samples outside, NaN among them, both voxels are outside.
        position = torch.where((position > -1) & (position < extent), position, -2.0)
        low = position.floor()
        share = position.sub_(low)
        low = low.to(extent.dtype)
        last = extent - 1
        low_share = (1 - share).mul_(low >= 0)
        high_share = share.mul_((low < last) & (low > -2))
        sides.append(((low.clamp_min(0), low_share), (torch.minimum(low.add_(1).clamp_min_(0), last), high_share)))
    height, width = extents[1:]
    bags = locations.shape[0] * locations.shape[1]
    result = rows.new_zeros((bags, rows.shape[-1]))
    for z, of_z in sides[0]:
        plane, of_plane = z * height, of_z * weights
        for y, of_y in sides[1]:
            line, of_line = (plane + y).mul_(width), of_plane * of_y
            for x, of_x in sides[2]:
                row, scale = (line + x).mul_(step).add_(first).reshape(bags, -1), (of_line * of_x).reshape(bags, -1)
                result += F.embedding_bag(row, rows, mode="sum", per_sample_weights=scale)
    return result
