# pyright: basic, reportMissingImports=false, reportUnknownParameterType=false, reportMissingParameterType=false, reportGeneralTypeIssues=false
# ruff: noqa: N803, PLR0917
"""The Triton kernels of deformable attention: forward, backward, and the deterministic gradient of the values.

One program handles BQ queries of one head, all channels in one tile. Levels and points are loops at run time: unrolled,
one configuration compiles for half a minute. The bounds are tested before a coordinate becomes an integer, so NaN and
huge locations add nothing; whatever can pass 2^31 elements is counted in 64 bits.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def axis(location, extent, at, mask):
    """Position in voxels along an axis, outside of the level where not masked in."""
    return tl.load(location + at, mask=mask, other=-9.0) * extent - 0.5


@triton.jit
def forward_kernel(
    values, levels_at, locations, weights, output,
    queries, heads, levels, points, channels, stride_b, stride_s, stride_h,
    BQ: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """`levels_at` (l 4) int64: d, h, w and first voxel of each level."""
    query = tl.program_id(0) * BQ + tl.arange(0, BQ)
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    channel = tl.arange(0, BC)
    here, there = query < queries, channel < channels
    lane = (batch * queries + query) * heads + head
    source = values + batch * stride_b + head * stride_h
    total = tl.zeros([BQ, BC], ACC)
    for level in range(levels):
        depth = tl.load(levels_at + 4 * level).to(tl.int32)
        height = tl.load(levels_at + 4 * level + 1).to(tl.int32)
        width = tl.load(levels_at + 4 * level + 2).to(tl.int32)
        first = source + tl.load(levels_at + 4 * level + 3) * stride_s
        for point in range(points):
            at = (lane * levels + level) * points + point
            z, y = axis(locations, depth, 3 * at, here), axis(locations, height, 3 * at + 1, here)
            x = axis(locations, width, 3 * at + 2, here)
            inside = (z > -1) & (z < depth) & (y > -1) & (y < height) & (x > -1) & (x < width)
            z, y, x = tl.where(inside, z, 0.0), tl.where(inside, y, 0.0), tl.where(inside, x, 0.0)
            z0, y0, x0 = tl.floor(z), tl.floor(y), tl.floor(x)
            fz, fy, fx = z - z0, y - y0, x - x0
            zi, yi, xi = z0.to(tl.int32), y0.to(tl.int32), x0.to(tl.int32)
            weight = tl.load(weights + at, mask=here, other=0.0)
            for corner in tl.static_range(8):
                dz, dy, dx = corner // 4, corner // 2 % 2, corner % 2
                sz = fz if dz else 1 - fz
                sy = fy if dy else 1 - fy
                sx = fx if dx else 1 - fx
                cz, cy, cx = zi + dz, yi + dy, xi + dx
                valid = inside & (cz >= 0) & (cz < depth) & (cy >= 0) & (cy < height) & (cx >= 0) & (cx < width)
                row = ((cz * height + cy) * width + cx).to(tl.int64)
                tile = first + row[:, None] * stride_s + channel[None, :]
                value = tl.load(tile, mask=valid[:, None] & there[None, :], other=0.0).to(ACC)
                total += value * (sz * sy * sx * weight)[:, None]
    to = output + lane[:, None] * channels + channel[None, :]
    tl.store(to, total.to(output.dtype.element_ty), mask=here[:, None] & there[None, :])


@triton.jit
def backward_kernel(
    grad, values, levels_at, locations, weights, grad_values, grad_locations, grad_weights,
    queries, heads, levels, points, channels, voxels, stride_b, stride_s, stride_h,
    BQ: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr, SCATTER: tl.constexpr,
):  # fmt: skip
    """Gradients of locations and weights; with SCATTER that of the values, (b s h c) of zeros before, by atomics."""
    query = tl.program_id(0) * BQ + tl.arange(0, BQ)
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    channel = tl.arange(0, BC)
    here, there = query < queries, channel < channels
    lane = (batch * queries + query) * heads + head
    source = values + batch * stride_b + head * stride_h
    target = grad_values + (batch * voxels * heads + head) * channels
    step = tl.cast(heads, tl.int64) * channels
    from_ = grad + lane[:, None] * channels + channel[None, :]
    g = tl.load(from_, mask=here[:, None] & there[None, :], other=0.0).to(ACC)
    for level in range(levels):
        depth = tl.load(levels_at + 4 * level).to(tl.int32)
        height = tl.load(levels_at + 4 * level + 1).to(tl.int32)
        width = tl.load(levels_at + 4 * level + 2).to(tl.int32)
        start = tl.load(levels_at + 4 * level + 3)
        for point in range(points):
            at = (lane * levels + level) * points + point
            z, y = axis(locations, depth, 3 * at, here), axis(locations, height, 3 * at + 1, here)
            x = axis(locations, width, 3 * at + 2, here)
            inside = (z > -1) & (z < depth) & (y > -1) & (y < height) & (x > -1) & (x < width)
            z, y, x = tl.where(inside, z, 0.0), tl.where(inside, y, 0.0), tl.where(inside, x, 0.0)
            z0, y0, x0 = tl.floor(z), tl.floor(y), tl.floor(x)
            fz, fy, fx = z - z0, y - y0, x - x0
            zi, yi, xi = z0.to(tl.int32), y0.to(tl.int32), x0.to(tl.int32)
            weight = tl.load(weights + at, mask=here, other=0.0)
            of_weight, of_z, of_y, of_x = fz * 0, fz * 0, fz * 0, fz * 0
            for corner in tl.static_range(8):
                dz, dy, dx = corner // 4, corner // 2 % 2, corner % 2
                sz = fz if dz else 1 - fz
                sy = fy if dy else 1 - fy
                sx = fx if dx else 1 - fx
                cz, cy, cx = zi + dz, yi + dy, xi + dx
                valid = inside & (cz >= 0) & (cz < depth) & (cy >= 0) & (cy < height) & (cx >= 0) & (cx < width)
                row = start + ((cz * height + cy) * width + cx)
                mask = valid[:, None] & there[None, :]
                tile = source + row[:, None] * stride_s + channel[None, :]
                product = tl.sum(tl.load(tile, mask=mask, other=0.0).to(ACC) * g, axis=1)
                of_weight += sz * sy * sx * product
                of_z += (2 * dz - 1) * sy * sx * product
                of_y += (2 * dy - 1) * sz * sx * product
                of_x += (2 * dx - 1) * sz * sy * product
                if SCATTER:
                    to = target + row[:, None] * step + channel[None, :]
                    tl.atomic_add(to, g * (sz * sy * sx * weight)[:, None], mask=mask, sem="relaxed")
            tl.store(grad_weights + at, of_weight, mask=here)
            tl.store(grad_locations + 3 * at, of_z * weight * depth, mask=here)
            tl.store(grad_locations + 3 * at + 1, of_y * weight * height, mask=here)
            tl.store(grad_locations + 3 * at + 2, of_x * weight * width, mask=here)


@triton.jit
def collect_kernel(
    grad, scales, order, ends, grad_values, samples, channels, first, rows, step,
    BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradient of one row of values per program: its corners, sorted by row, are summed in their order.

    `order` gives, sorted by row, the number of the corner among (b q h p 8); `ends` where each row's corners end.
    """
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BC)
    there = channel < channels
    total = tl.zeros([BC], ACC)
    begin = tl.load(ends + row - 1, mask=row > 0, other=0)
    end = tl.load(ends + row)
    for i in range(begin, end):
        corner = tl.load(order + i)
        g = tl.load(grad + corner // samples * channels + channel, mask=there, other=0.0).to(ACC)
        total += g * tl.load(scales + corner)
    batch, voxel = row // rows, row % rows
    tl.store(grad_values + (batch * step + first + voxel) * channels + channel, total, mask=there)
