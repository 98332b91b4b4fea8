# pyright: reportMissingImports=false, reportMissingTypeStubs=false
"""The CUDA backend: launches `triton_kernels`.

The first call for a number of channels times tiles of several numbers of queries and warps (`triton.autotune`), among
them those with four float32 or eight 16-bit channels per thread, so that loads and atomics move 16 bytes. The gradient
of the values is summed by float32 atomics, whose order varies from run to run; under
`torch.use_deterministic_algorithms` the corners are sorted by row instead and each row sums its own.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import nullcontext
from math import prod
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

TILES = tuple((queries, warps) for queries in (4, 8, 16, 32) for warps in (1, 2, 4) if queries >= 4 * warps)
SMALL_TILE = (4, 1)


@functools.cache
def missing() -> str | None:
    """Why the kernels cannot run, or None."""
    try:
        import triton
    except ImportError as error:
        return f"no Triton: {error}"
    return None if hasattr(triton, "jit") else "no Triton"


@functools.cache
def kernels() -> ModuleType:
    """The module of the kernels, which imports Triton."""
    from maskmed_zoo.ops import triton_kernels

    return triton_kernels


@functools.cache
def _tuned(name: str) -> Any:
    import triton

    configs = [triton.Config({"BQ": queries}, num_warps=warps) for queries, warps in TILES]
    zeroed = ["grad_values"] if name == "backward_kernel" else []
    return triton.autotune(configs, key=["channels"], reset_to_zero=zeroed)(getattr(kernels(), name))


def forward(values: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """(b q h c) in the type of `values`; arguments as those of `deformable_attention`, shapes flat."""
    b, _, h, c = values.shape
    q, levels, points = weights.shape[1], weights.shape[3], weights.shape[4]
    output = values.new_zeros((b, q, h, c))
    if output.numel() and values.numel():
        values = values if values.stride(-1) == 1 else values.contiguous()
        _launch(
            "forward_kernel", values, q, b * h,
            (values, _table(tuple(shapes), values.device), locations.contiguous(), weights.contiguous(), output,
             q, h, levels, points, c, *values.stride()[:3]),
        )  # fmt: skip
    return output


def backward(
    grad: Tensor, values: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor, *, wants_values: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of values (None if not wanted), locations and weights, given the one (b q h c) of the output."""
    b, s, h, c = values.shape
    q, levels, points = weights.shape[1], weights.shape[3], weights.shape[4]
    grad, locations, weights = grad.contiguous(), locations.contiguous(), weights.contiguous()
    of_locations, of_weights = torch.zeros_like(locations), torch.zeros_like(weights)
    scatter = wants_values and not torch.are_deterministic_algorithms_enabled()
    # Not touched without `scatter`; the kernel wants an address all the same.
    of_values = torch.zeros(values.shape if scatter else 1, dtype=locations.dtype, device=values.device)
    if grad.numel() and values.numel():
        values = values if values.stride(-1) == 1 else values.contiguous()
        _launch(
            "backward_kernel", values, q, b * h,
            (grad, values, _table(tuple(shapes), values.device), locations, weights,
             of_values, of_locations, of_weights, q, h, levels, points, c, s, *values.stride()[:3]),
            SCATTER=scatter,
        )  # fmt: skip
    if not wants_values:
        return None, of_locations, of_weights
    if not scatter:
        of_values = collect(grad, values.shape, shapes, locations, weights)
    return of_values.to(values.dtype), of_locations, of_weights


def collect(grad: Tensor, size: Sequence[int], shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """The gradient (b s h c) of the values, `size`, without atomics: level by level, corners sorted by row."""
    b, s, h, c = size
    levels, points = weights.shape[3], weights.shape[4]
    result = torch.zeros((b, s, h, c), dtype=locations.dtype, device=grad.device)
    start = 0
    for level in range(levels):
        extent = tuple(shapes[3 * level : 3 * level + 3])
        voxels = prod(extent)
        if voxels and grad.numel() and points:
            row, scale = corner_rows(locations[:, :, :, level], weights[:, :, :, level], extent)
            ordered, order = row.flatten().sort(stable=True)
            # Corners outside have the row after the last, and no program.
            ends = torch.searchsorted(ordered, torch.arange(b * voxels * h, device=grad.device), right=True)
            with _on(grad.device):
                kernels().collect_kernel[(b * voxels * h,)](
                    grad, scale.flatten(), order, ends, result, points * 8, c, start * h, voxels * h, s * h,
                    BC=_tile(c), ACC=_accumulator(result.dtype), num_warps=1,
                )  # fmt: skip
        start += voxels
    return result


def corner_rows(locations: Tensor, weights: Tensor, extent: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Rows among (b d h w heads) and scales, both (b q heads p 8), of samples (b q heads p 3) of one level."""
    b, _, h, _ = weights.shape
    size = torch.tensor(extent, device=locations.device)
    position = locations * size - 0.5
    inside = ((position > -1) & (position < size)).all(-1, keepdim=True)
    position = torch.where(inside, position, -2.0)
    low = position.floor()
    shares = torch.stack([1 - (position - low), position - low], -1)
    voxel = low.long().unsqueeze(-1) + torch.tensor([0, 1], device=low.device)  # (b q h p 3 2)
    z, y, x = ((voxel[..., axis, :], shares[..., axis, :], extent[axis]) for axis in range(3))
    corners: list[tuple[Tensor, Tensor]] = []
    batch = torch.arange(b, device=low.device).view(b, 1, 1, 1)
    head = torch.arange(h, device=low.device).view(h, 1)
    for corner in range(8):
        i, j, k = corner // 4, corner // 2 % 2, corner % 2
        at = [(axis[0][..., side], axis[2]) for axis, side in ((z, i), (y, j), (x, k))]
        row = batch
        valid = inside[..., 0]
        for index, length in at:
            row = row * length + index
            valid = valid & (index >= 0) & (index < length)
        row = torch.where(valid, row * h + head, b * prod(extent) * h)
        corners.append((row, weights * z[1][..., i] * y[1][..., j] * x[1][..., k]))
    return torch.stack([row for row, _ in corners], -1), torch.stack([scale for _, scale in corners], -1)


@functools.lru_cache(64)
def _table(shapes: tuple[int, ...], device: torch.device) -> Tensor:
    """(l 4) int64: d, h, w and first voxel of each level; kept, so that a call copies nothing to the device."""
    rows: list[tuple[int, ...]] = []
    start = 0
    for at in range(0, len(shapes), 3):
        rows.append((*shapes[at : at + 3], start))
        start += prod(shapes[at : at + 3])
    return torch.tensor(rows, dtype=torch.int64, device=device)


def _launch(name: str, values: Tensor, queries: int, lanes: int, arguments: tuple[Any, ...], **constants: Any) -> None:
    import triton

    constants |= {"BC": _tile(values.shape[-1]), "ACC": _accumulator(values.dtype)}
    with _on(values.device):
        if values.device.type == "cuda":
            _tuned(name)[lambda meta: (triton.cdiv(queries, meta["BQ"]), lanes)](*arguments, **constants)
        else:  # Triton's interpreter, which has nothing to time
            size, warps = SMALL_TILE
            grid = (triton.cdiv(queries, size), lanes)
            getattr(kernels(), name)[grid](*arguments, BQ=size, num_warps=warps, **constants)


def _tile(channels: int) -> int:
    return max(2, 1 << (channels - 1).bit_length())


def _accumulator(dtype: torch.dtype) -> Any:
    import triton.language as tl

    return tl.float64 if dtype == torch.float64 else tl.float32


def _on(device: torch.device) -> Any:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
